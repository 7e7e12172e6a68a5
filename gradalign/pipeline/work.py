"""What is handed out to be scored, what comes back, and how one part is scored wherever that is."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import pyarrow as pa
import torch

from gradalign.models.threads import cpu_threads
from gradalign.pipeline.cast import Cast
from gradalign.pipeline.config import RunConfig
from gradalign.pipeline.group import Spending, score_group
from gradalign.pipeline.progress import Progress
from gradalign.pipeline.restore import stored_questions
from gradalign.store import RunFolder
from gradalign.types import Question

SMALL = 20_000_000  # parameters; what a model has to have for threads to be of use
SPENT = ("rollouts", "targeted_rollouts", "sampled_tokens")


@dataclass(frozen=True)
class Task:
    """A part to score: its questions, each with its place in the set, and those to leave out, each with the reason.

    `held` says that the run has rows of it, which are added to. A `trial` is scored and thrown away. `units` is the work that is planned.
    """

    part: int
    places: Sequence[tuple[int, Question]]
    spending: Spending
    units: int
    held: bool = False
    trial: bool = False
    left_out: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Done:
    """A part that stands in the run folder: its rows of the table `scores`, rollouts and tokens in it, and what it took where."""

    task: Task
    scores: Sequence[Mapping[str, Any]]
    rollouts: int
    tokens: int
    seconds: float
    worker: str = ""


@dataclass(frozen=True)
class Failed:
    """A part that broke: why, at which question if that is known, and with what error if it was raised in this process."""

    task: Task
    reason: str
    question: str | None = None
    error: BaseException | None = None


@dataclass(frozen=True)
class Facts:
    """What is known of a run's models once they are loaded, wherever that is."""

    fingerprints: Mapping[str, str]
    notices: Sequence[str]
    window: int
    engine: str

    @classmethod
    def of(cls, cast: Cast) -> "Facts":
        window = cast.student.model.language_model.context_window
        return cls(cast.fingerprints, tuple(cast.notices), window, cast.student.engine.kind)


@runtime_checkable
class Executor(Protocol):
    """Where parts are scored: in this process, or by workers. Rows do not depend on it."""

    facts: Facts

    def run(self, folder: RunFolder, config: RunConfig, tasks: Sequence[Task], progress: Progress) -> Iterator[Done | Failed]:
        """Score tasks, each written to the folder when it is done; they come back in any order."""
        ...

    def close(self) -> None:
        """Let go of workers."""
        ...


class Meter:
    """Keeps a part's units at what was planned for it, whatever it really took."""

    def __init__(self, progress: Progress, units: int):
        self.progress, self.left = progress, units

    def begin(self, units: int, done: int) -> None:
        self.progress.begin(units, done)

    def stage(self, what: str) -> None:
        self.progress.stage(what)

    def advance(self, units: int) -> None:
        step = min(units, self.left)
        self.left -= step
        self.progress.advance(step)

    def standing(self, standing: Any, spent: tuple[int, int]) -> None:
        self.progress.standing(standing, spent)

    def complete(self) -> None:
        self.advance(self.left)


def carry_out(task: Task, folder: RunFolder, config: RunConfig, cast: Cast, progress: Progress, worker: str = "") -> Done:
    """Score a task and write its part."""
    began = time.monotonic()
    with fitting_threads(cast):
        stored = stored_questions(folder, task.part, cast, config.student) if task.held else {}
        rows = score_group(task.places, cast, config, task.spending, progress, stored, task.left_out)
    if not task.trial:
        budget = task.spending.budget
        folder.write(task.part, rows, {"amount": budget.amount, "unit": budget.unit})
    return Done(task, rows["scores"].to_pylist(), *spent(rows["questions"]), time.monotonic() - began, worker)


def spent(questions: pa.Table) -> tuple[int, int]:
    """Rollouts and tokens sampled, from the table `questions`."""
    base, targeted, tokens = (sum(questions[name].to_pylist()) for name in SPENT)
    return base + targeted, tokens


def fitting_threads(cast: Cast) -> AbstractContextManager[None]:
    """One CPU thread while every model is small: their matrices gain nothing from more, and threads that wait for each other lose much."""
    return cpu_threads(1 if cast.parameters < SMALL else torch.get_num_threads())
