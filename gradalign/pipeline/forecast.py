"""What a run will cost, before it is run: planned nodes, rollouts, tokens, and time from a few questions really scored."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from gradalign.pipeline.budget import Effort
from gradalign.pipeline.cast import Cast
from gradalign.pipeline.config import RunConfig
from gradalign.pipeline.execute import split
from gradalign.pipeline.group import Spending, score_group
from gradalign.pipeline.progress import Progress
from gradalign.pipeline.work import fitting_threads
from gradalign.types import Question

_SAMPLE = 4


@dataclass(frozen=True)
class Forecast:
    """A run's cost at its whole budget, foretold from `measured` questions that took `measured_seconds`."""

    questions: int
    visited_nodes: int
    chosen_nodes: int
    filter_rollouts: int
    base_rollouts: int
    demonstrations: int
    teacher_rollouts: int
    targeted_rollouts: int
    tokens: int
    seconds: float
    measured: int
    measured_seconds: float


def forecast(
    questions: Sequence[Question], cast: Cast, config: RunConfig, effort: Effort, progress: Progress, processes: int = 1
) -> Forecast:
    """Score the first questions of the run's own order, keep nothing, and scale up to a run by so many processes."""
    parts = split(questions, config)
    sample = [place for part in parts for place in part][:_SAMPLE]
    progress.begin(0, 0)
    began = time.perf_counter()
    with fitting_threads(cast):
        rows = score_group(sample, cast, config, Spending(effort.budget, len(questions)), progress, {})
    seconds = time.perf_counter() - began
    scale = len(questions) / len(sample)

    def total(name: str) -> int:
        return round(scale * sum(rows["questions"][name].to_pylist()))

    def sampled(purpose: str) -> int:
        return round(scale * rows["rollouts"]["purpose"].to_pylist().count(purpose))

    return Forecast(
        questions=len(questions),
        visited_nodes=total("nodes"),
        chosen_nodes=total("scored_nodes"),
        filter_rollouts=0 if config.filter is None else config.filter_rollouts * len(questions),
        base_rollouts=total("rollouts"),
        demonstrations=sampled("demonstration"),
        teacher_rollouts=sampled("teacher"),
        targeted_rollouts=total("targeted_rollouts"),
        tokens=total("sampled_tokens"),
        seconds=scale * seconds / min(processes, len(parts)),
        measured=len(sample),
        measured_seconds=seconds,
    )
