"""What `gradalign score` costs as its input grows: seconds and peak memory against questions, base rollouts, rollout length, vocabulary.

Each goes over a factor of sixteen while the others stand. Questions and rollouts are scored with the built-in student; for length and
vocabulary the student and its teacher are random models of small width, whose rollouts hardly end before their limit. Apart from these
`gradalign rank` is measured against questions, on runs of made-up numbers, with eight pairs of teacher and objective. Every point is a
process of its own, that has imported everything and scored one question, or ranked eight, before the clock starts. So what is fixed
(imports, loading, the first use of each library) is mostly out of it; what is left of it bends the curve at its small end, and exponents
are therefore those of a straight line through the logarithms of the three largest points. Time is that of the threads that work (of one,
in scoring), in which what else the machine does hardly shows; of two runs the shorter counts. Memory is the peak of the whole process;
its exponent is through all points.

The vocabulary begins at 8,192 tokens, since what does not depend on it is most of the time of smaller ones; rollouts of all lengths are
over as many. Attention, which is quadratic in the length, is a larger share of a model as narrow as this than of a real one.

Exits 1, at full size, if an exponent of time is above 1.1, or that of memory in the number of questions, scored or ranked, above 0.2.
At full size it also draws docs/linear_cost.svg. `SMALL=1` for the size that CI runs.
"""

import gc
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from side_by_side import Comparison, tell
from synthetic import write_run
from transformers import Qwen3Config, Qwen3ForCausalLM
from trials import SMALL, report

from gradalign.api import configure, run_score
from gradalign.engines import HFEngine
from gradalign.findings import rank
from gradalign.models import CausalLanguageModel, LoadedModel
from gradalign.pipeline import Budget, Cast, Effort, Execution, Member, RunConfig, load_cast
from gradalign.store import load_run
from gradalign.types import Question, TeacherSpec

PICTURE = Path(__file__).parents[1] / "docs" / "linear_cost.svg"
POINTS, REPEATS = (3, 1) if SMALL else (5, 2)
LARGEST = 3  # points that exponents of time are taken from
TIME, MEMORY = 1.1, 0.2
BOUND = ("questions", "ranked")  # whose memory MEMORY is meant for
FROM = (
    {"questions": 4, "rollouts": 8, "length": 8, "vocabulary": 2048, "ranked": 50}
    if SMALL
    else {"questions": 8, "rollouts": 32, "length": 16, "vocabulary": 8192, "ranked": 500}
)
MEANT = {
    "questions": "questions",
    "rollouts": "base rollouts a question",
    "length": "tokens a rollout",
    "vocabulary": "tokens of vocabulary",
    "ranked": "questions ranked",
}
QUESTIONS = 2 if SMALL else 4
EFFORT = Effort(Budget(16))


class WordCodec:
    """Tokens as words: even ones say yes, odd ones no, so that the first token of a rollout decides how it is graded."""

    def __init__(self, vocabulary: int):
        self.stop_ids = frozenset({vocabulary - 1})

    def prompt(self, user: str, system: str | None = None) -> tuple[int, ...]:
        return (*self.ids(user), 1)

    def boundary(self, user: str, system: str | None = None) -> tuple[int, ...]:
        return (1,)

    def ids(self, text: str) -> tuple[int, ...]:
        return tuple(2 + len(word) for word in text.split())

    def text(self, tokens: Sequence[int] | np.ndarray) -> str:
        return "".join(" no" if token % 2 else " yes" for token in tokens)

    shown = text


def random_member(name: str, vocabulary: int, window: int, seed: int) -> Member:
    """A random model of small width with an engine that samples from it."""
    config = Qwen3Config(
        vocab_size=vocabulary, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=1,
        num_key_value_heads=1, head_dim=32, max_position_embeddings=window, initializer_range=0.2, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = CausalLanguageModel(Qwen3ForCausalLM(config).eval(), name, vocabulary)
    codec = WordCodec(vocabulary)
    return Member(LoadedModel(model, codec, f"{name}-{seed}"), HFEngine(model, codec.stop_ids))


def random_run(vocabulary: int, length: int, questions: int) -> tuple[RunConfig, Cast, list[Question]]:
    """A run of a random student and a random teacher."""
    window = length + 64
    config = RunConfig("random", "made", ("model:other",), rollouts=16, max_tokens=length, demonstrations=1, candidates=2)
    cast = Cast(
        random_member("random", vocabulary, window, 0),
        (TeacherSpec("model:other", "none", "other"),),
        {"other": random_member("other", vocabulary, window, 1)},
    )
    return config, cast, [Question(f"q{i}", "yes or no?" + " why" * i, "yes", "boolean") for i in range(questions)]


def built_in_run(questions: int, rollouts: int) -> tuple[RunConfig, Cast, None]:
    """A run of the built-in student."""
    config = configure(limit=questions, rollouts=rollouts)
    return config, load_cast(config, Execution()), None


def scoring(run: tuple[RunConfig, Cast, list[Question] | None], folder: Path) -> Callable[[], object]:
    """What scores a run."""
    config, cast, questions = run
    return lambda: run_score(config, folder, cast=cast, questions=questions, effort=EFFORT)


def ranking(questions: int, folder: Path) -> Callable[[], object]:
    """What ranks a run of made-up numbers, written for it."""
    write_run(folder, questions, scored=8, rollouts=4, length=16, part=8)
    return lambda: rank(load_run(folder))


WORK: dict[str, Callable[[int, Path], Callable[[], object]]] = {
    "questions": lambda amount, folder: scoring(built_in_run(amount, 8), folder),
    "rollouts": lambda amount, folder: scoring(built_in_run(2 * QUESTIONS, amount), folder),
    "length": lambda amount, folder: scoring(random_run(8192, amount, 2), folder),
    "vocabulary": lambda amount, folder: scoring(random_run(amount, 16, 2), folder),
    "ranked": ranking,
}
WARMING: dict[str, Callable[[Path], Callable[[], object]]] = {
    **dict.fromkeys(("questions", "rollouts"), lambda folder: scoring(built_in_run(1, 8), folder)),
    "length": lambda folder: scoring(random_run(8192, FROM["length"], 1), folder),
    "vocabulary": lambda folder: scoring(random_run(FROM["vocabulary"], 16, 1), folder),
    "ranked": lambda folder: ranking(8, folder),
}


def measure(axis: str, amount: int) -> dict[str, float]:
    """Do one piece of work; seconds of work and on the clock, the process's peak memory, and where that stood before."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        WARMING[axis](Path(place) / "first")()
        work = WORK[axis](amount, Path(place) / "run")
        gc.collect()
        before, began, worked = peak_mib(), time.perf_counter(), time.process_time()
        work()
        wall, seconds = time.perf_counter() - began, time.process_time() - worked
    return {"amount": amount, "seconds": seconds, "wall_seconds": wall, "before_mib": before, "peak_mib": peak_mib()}


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _apart(axis: str, amount: int) -> dict[str, float]:
    """A measurement in a process of its own."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(measure, (axis, amount))


def all_points() -> dict[str, list[dict[str, float]]]:
    """Every point in turn, as often as is asked, since a machine is busy for a while and then is not; the shorter run of each."""
    runs = [{axis: [_apart(axis, start * 2**i) for i in range(POINTS)] for axis, start in FROM.items()} for _ in range(REPEATS)]
    return {
        axis: [min(of_point, key=lambda run: run["seconds"]) for of_point in zip(*(run[axis] for run in runs), strict=True)]
        for axis in FROM
    }


def exponent(points: Sequence[dict[str, float]], what: str) -> float:
    """Slope of the straight line through logarithms."""
    return float(np.polyfit(np.log([p["amount"] for p in points]), np.log([p[what] for p in points]), 1)[0])


def draw(found: dict[str, dict[str, Any]]) -> None:
    """Seconds above, memory below; a dashed line grows as the input does."""
    figure = Figure(figsize=(12, 5.2), layout="constrained")
    panels = figure.subplots(2, len(found), sharex="col")
    for column, (axis, of_axis) in enumerate(found.items()):
        amounts = np.array([point["amount"] for point in of_axis["points"]])
        for row, (what, unit, colour, marker) in enumerate(
            (("seconds", "s", "#0072b2", "o"), ("peak_mib", "MiB", "#d55e00", "s"))
        ):
            values, panel = np.array([point[what] for point in of_axis["points"]]), panels[row][column]
            panel.loglog(amounts, values, color=colour, marker=marker, base=2)
            panel.set_title(f"exponent {of_axis['exponents'][what]:.2f}", fontsize=10)
            panel.set_xticks(
                amounts, [f"{amount // 1024}k" if amount % 1024 == 0 else f"{amount:,}" for amount in amounts], fontsize=8
            )
            panel.set_ylim(values.min() / 1.5, values.max() * 1.5)
            if what == "seconds":
                panel.loglog(amounts, values[-1] * amounts / amounts[-1], color="#777777", linestyle="--", base=2)
            else:
                panel.set_xlabel(MEANT[axis])
            panel.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
            if column == 0:
                panel.set_ylabel(f"{'time' if what == 'seconds' else 'peak memory'}, {unit}")
    with matplotlib.rc_context({"svg.hashsalt": "linear_cost"}):
        figure.savefig(PICTURE, metadata={"Date": None, "Creator": None})


def comparisons(axis: str, of_axis: dict[str, Any]) -> list[Comparison]:
    """The exponents for `bench.py`."""
    first, last = (of_axis["points"][i]["amount"] for i in (0, -1))
    what = f"{{}} against {MEANT[axis]}, {first:,} to {last:,}"
    exponents = of_axis["exponents"]
    memory = MEMORY if axis in BOUND else None
    return [
        Comparison(what.format("time"), "exponent", [exponents["seconds"]], bar=TIME),
        Comparison(what.format("memory"), "exponent", [exponents["peak_mib"]], bar=memory),
    ]


def main() -> None:
    found: dict[str, dict[str, Any]] = {}
    for axis, points in all_points().items():
        exponents = {"seconds": exponent(points[-LARGEST:], "seconds"), "peak_mib": exponent(points, "peak_mib")}
        found[axis] = {"points": points, "exponents": exponents}
    rows = [
        [
            f"{MEANT[axis]}, {of_axis['points'][0]['amount']:,} to {of_axis['points'][-1]['amount']:,}",
            ", ".join(f"{point['seconds']:.2f}" for point in of_axis["points"]),
            f"{of_axis['exponents']['seconds']:.2f}",
            ", ".join(f"{point['peak_mib']:.0f}" for point in of_axis["points"]),
            f"{of_axis['exponents']['peak_mib']:.2f}",
        ]
        for axis, of_axis in found.items()
    ]
    columns = ["", "seconds", "exponent", "peak MiB", "exponent"]
    report(
        "linear_cost",
        "Cost of scoring, and of ranking, as the input grows, each point twice the one before",
        columns,
        rows,
        found,
    )
    tell([comparison for axis, of_axis in found.items() for comparison in comparisons(axis, of_axis)])
    if SMALL:
        return
    draw(found)
    beyond = [f"time in {MEANT[axis]}" for axis in found if found[axis]["exponents"]["seconds"] > TIME]
    beyond += [f"memory in {MEANT[axis]}" for axis in BOUND if found[axis]["exponents"]["peak_mib"] > MEMORY]
    if beyond:
        sys.exit(f"beyond its limit: {', '.join(beyond)}")


if __name__ == "__main__":
    main()
