"""Ray over two workers of this machine against one, and against the executor of this process, on a known model with a real one's latency.

Every step of sampling takes `STEP` seconds for all completions under way together, as on a GPU that is busy with them (a sleep, so
that two cores can stand for more). Throughput is questions over the time from the first part's beginning to the last one's end, as the
run's own log has it, so that starting Ray (told apart) is not in it. The three take turns, three times each; medians. The overhead
per question is the time of one worker less that of this process on the same questions. Exits 1, at full size, if two workers are
not 1.7 times as fast as one, or the overhead is 50 ms or more. `SMALL=1` for the size that CI runs.
"""

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

from latency import delayed
from trials import SMALL, Quality, draw_world, report

from gradalign.api import run_score
from gradalign.pipeline import Budget, Effort, Execution

QUESTIONS, TURNS, STEP = (16, 1, 0.01) if SMALL else (96, 3, 0.02)
PART = 4
WORLD = draw_world("easy", QUESTIONS, [Quality(1.0), Quality(-0.5)], seed=5)
CONFIG = WORLD.config(seed=1, rollouts=16, part_size=PART)
WAYS = {
    "this process": Execution(),
    "Ray, 1 worker": Execution(executor="ray", workers=1),
    "Ray, 2 workers": Execution(executor="ray", workers=2),
}


def measure(way: str, out: Path) -> tuple[float, float]:
    """Seconds from the first part's beginning to the last one's end, and those before it."""
    began = time.monotonic()
    run_score(
        CONFIG, out, WAYS[way], cast=delayed(WORLD.cast(), STEP), questions=WORLD.student.questions(), effort=Effort(Budget(16))
    )
    whole = time.monotonic() - began
    events = [json.loads(line) for line in (out / "log" / "session-0001.jsonl").read_text().splitlines()]
    scoring = [event["seconds"] for event in events if event["event"] == "part"][-1]
    return scoring, whole - scoring


def main() -> int:
    taken: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as place:
        for turn in range(TURNS):
            for number, way in enumerate(WAYS):
                taken[way].append(measure(way, Path(place) / f"{turn}-{number}"))
    scoring = {way: statistics.median(seconds for seconds, _ in both) for way, both in taken.items()}
    other = {way: statistics.median(seconds for _, seconds in both) for way, both in taken.items()}
    alone, one, two = (scoring[way] for way in WAYS)
    overhead = (one - alone) / QUESTIONS
    rows = [
        [
            way,
            f"{QUESTIONS / scoring[way]:.2f}",
            f"{one / scoring[way]:.2f}",
            f"{1000 * scoring[way] / QUESTIONS:.0f}",
            f"{other[way]:.1f}",
        ]
        for way in WAYS
    ]
    heads = ["executor", "questions/s", "against 1 worker", "ms a question", "s to start and end"]
    title = f"{QUESTIONS} questions, {1000 * STEP:g} ms a step; Ray adds {1000 * overhead:.1f} ms a question"
    found = {"scoring": scoring, "other": other, "all": taken, "speedup": one / two, "overhead_ms": 1000 * overhead}
    report("ray_scaling", title, heads, rows, found)
    return int(not SMALL and (one / two < 1.7 or overhead >= 0.05))


if __name__ == "__main__":
    sys.exit(main())
