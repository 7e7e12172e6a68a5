"""Where the default `gradalign score` spends its time: the share inside of models' forward passes, and what takes the rest.

The command of `make demo`, in a process that has imported everything: each model's forward pass and the layer that makes logits are
timed, while a thread looks, every two milliseconds, at which function of gradalign is at work outside of them: while questions are scored,
and after that, when they are ranked and the report is written. The draw of tokens, softmax and everything about text are no forward
pass. Start-up is measured apart, in fresh processes: `import gradalign`, and `gradalign --help`.

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
from transformers import PreTrainedModel
from trials import SMALL, report

import gradalign.api
import gradalign.report
from gradalign.models import CausalLanguageModel

ARGUMENTS = ["score", *(["--limit", "8"] if SMALL else [])]
REPEATS, STARTS = (1, 1) if SMALL else (3, 5)
SHARE, IMPORT, HELP = 0.85, 0.3, 0.5
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


def profile() -> dict[str, Any]:
    """Run the command once; its output goes nowhere."""
    watch = Watch()
    score = gradalign.api.run_score

    def run_score(*arguments: Any, **named: Any) -> Any:
        watch.scores, began = True, time.perf_counter()
        try:
            return score(*arguments, **named)
        finally:
            watch.scoring, watch.scores = time.perf_counter() - began, False

    gradalign.api.run_score = run_score
    PreTrainedModel.__call__ = watch.timed(PreTrainedModel.__call__)  # pyright: ignore
    CausalLanguageModel.logits = watch.timed(CausalLanguageModel.logits)
    with tempfile.TemporaryDirectory() as place, redirect_stdout(StringIO()), redirect_stderr(StringIO()), watch.looking():
        began = time.perf_counter()
        app([*ARGUMENTS, "--out", str(Path(place) / "run")], standalone_mode=False)
        seconds = time.perf_counter() - began
    during, after = (dict(watch.elsewhere[scores].most_common()) for scores in (True, False))
    return {"seconds": seconds, "scoring": watch.scoring, "forward": watch.forward, "scoring_outside": during, "after": after}


def _apart(measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A measurement in a process of its own, with everything imported and nothing remembered."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(measure)


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
    runs = [_apart(profile) for _ in range(REPEATS)]
    starts = start_up()
    share = float(np.median([run["forward"] / run["scoring"] for run in runs]))
    middle = sorted(runs, key=lambda run: run["forward"] / run["scoring"])[len(runs) // 2]
    rows = [
        ["the command", f"{middle['seconds']:.2f}", ""],
        ["of it scoring", f"{middle['scoring']:.2f}", "100%"],
        ["of that forward passes", f"{middle['forward']:.2f}", f"{share:.0%}"],
    ]
    for what, key in (("scoring, outside", "scoring_outside"), ("after scoring", "after")):
        top = list(middle[key].items())[:SHOWN]
        rows += [[f"  {what}: {name}", f"{seconds:.2f}", f"{seconds / middle['scoring']:.1%}"] for name, seconds in top]
    rows += [
        [name, f"{np.median(seconds):.2f} ({min(seconds):.2f}-{max(seconds):.2f})", ""] for name, seconds in starts.items()
    ]
    title = f"gradalign {' '.join(ARGUMENTS)}: {share:.0%} of scoring in forward passes"
    report("demo_profile", title, ["", "seconds", "of scoring"], rows, {"share": share, "runs": runs, "start_up": starts})
    scoring, forward = ([run[what] for run in runs] for what in ("scoring", "forward"))
    tell(
        [
            Comparison("the default run, scoring", "s", scoring, "forward passes in it", forward, 1 / SHARE),
            Comparison("import gradalign", "s", starts["import gradalign"], bar=IMPORT),
            Comparison("gradalign --help", "s", starts["gradalign --help"], bar=HELP),
        ]
    )
    late = [name for name, most in (("import gradalign", IMPORT), ("gradalign --help", HELP)) if np.median(starts[name]) > most]
    beyond = late + ([f"forward passes take {share:.0%}, not {SHARE:.0%}"] if share < SHARE else [])
    print("\n".join(f"beyond its limit: {what}" for what in beyond))
    return int(bool(late) and not SMALL)


if __name__ == "__main__":
    sys.exit(main())
