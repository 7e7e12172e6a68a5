"""Memory of a long run: 5,000 questions on an exactly known model, with the process's resident memory as questions are finished.

One process, the executor of `gradalign score`, parts of 8 questions. The model is small, so that what grows with questions, if anything
does, is seen. What the run must remember of a question is its name and five sums for each teacher and objective. Exits 1, at full
size, if memory after all questions is more than a tenth above that after the first tenth of them. `SMALL=1` for the size that CI runs.
"""

import gc
import os
import sys
import tempfile
import time
from pathlib import Path

import torch
from latency import tabular_cast
from trials import SMALL, report

from gradalign.api import run_score
from gradalign.findings import Standing
from gradalign.pipeline import Budget, Effort, RunConfig
from gradalign.types import Question

QUESTIONS = 500 if SMALL else 5000
TEACHERS = ("model:better", "model:worse")


class Watching:
    """Progress that looks at the process's memory at every tenth of the questions."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.seen: list[dict[str, float]] = []

    def begin(self, units: int, done: int) -> None: ...

    def stage(self, what: str) -> None: ...

    def advance(self, units: int) -> None: ...

    def standing(self, standing: Standing, spent: tuple[int, int]) -> None:
        done = len(standing.questions)
        if done >= (len(self.seen) + 1) * QUESTIONS // 10:
            gc.collect()
            self.seen.append({"questions": done, "seconds": time.monotonic() - self.began, "resident_mib": resident()})


def resident() -> float:
    """Resident memory of this process in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main() -> int:
    torch.set_num_threads(1)
    config = RunConfig(
        "tabular", "many", TEACHERS, ("reverse_kl",), rollouts=8, max_tokens=4, demonstrations=1, part_size=8, candidates=2
    )
    questions = [Question(f"q{i}", "which?", "yes", "boolean") for i in range(QUESTIONS)]
    watching = Watching()
    with tempfile.TemporaryDirectory() as place:
        run_score(
            config,
            Path(place) / "run",
            progress=watching,
            cast=tabular_cast(TEACHERS),
            questions=questions,
            effort=Effort(Budget(8)),
        )
        stored = sum(file.stat().st_size for file in (Path(place) / "run").rglob("*") if file.is_file())
    rows = [[f"{s['questions']:,}", f"{s['seconds']:.0f}", f"{s['resident_mib']:.1f}"] for s in watching.seen]
    first, last = watching.seen[0]["resident_mib"], watching.seen[-1]["resident_mib"]
    grown = f"{last - first:+.1f} MiB after the first tenth ({last / first - 1:+.1%})"
    title = f"{QUESTIONS:,} questions: {grown}; {stored / 2**20:.0f} MiB on disk"
    report("long_runs", title, ["questions", "seconds", "resident MiB"], rows, {"seen": watching.seen, "stored_bytes": stored})
    return int(not SMALL and last > 1.1 * first)


if __name__ == "__main__":
    sys.exit(main())
