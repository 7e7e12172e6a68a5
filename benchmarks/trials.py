"""What the statistical benchmarks share: families of questions with teachers of known quality, scored by the real pipeline."""

import json
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import machine
from rich.console import Console
from rich.progress import track
from rich.table import Table

from gradalign.models import LoadedModel
from gradalign.objectives import parse_objective
from gradalign.pipeline import Budget, Cast, Member, RunConfig, Silent
from gradalign.pipeline.group import Spending, score_questions
from gradalign.pipeline.result import QuestionResult
from gradalign.testbed import Automaton, AutomatonCodec, draw_family
from gradalign.types import TeacherSpec

SMALL = os.environ.get("SMALL") == "1"
RESULTS = Path(__file__).parent / "results"
console = Console(width=150)


@dataclass(frozen=True)
class Quality:
    """A teacher: how far it is tilted to success, its noise, and the share of states in which it differs from the student."""

    tilt: float
    noise: float = 0.7
    share: float = 0.3


@dataclass(frozen=True)
class World:
    """Questions of a family, and teachers of them, with everything known exactly."""

    student: Automaton
    teachers: tuple[Automaton, ...]

    @property
    def names(self) -> list[str]:
        """Names of the teachers as a user would write them."""
        return [f"model:t{i}" for i in range(len(self.teachers))]

    def cast(self) -> Cast:
        """Student and teachers as the pipeline takes them."""
        specs = tuple(TeacherSpec(name, "none", name.removeprefix("model:")) for name in self.names)
        others = {
            name.removeprefix("model:"): _member(teacher) for name, teacher in zip(self.names, self.teachers, strict=True)
        }
        return Cast(_member(self.student), specs, others)

    def config(self, seed: int, objectives: tuple[str, ...] = ("reverse_kl",), **settings) -> RunConfig:
        """A run's settings on this world."""
        length = self.student.length
        return RunConfig(
            "automaton", "family", tuple(self.names), objectives, max_tokens=length, demonstrations=1, seed=seed, **settings
        )

    def exact(self, objective: str = "reverse_kl"):
        """Exact scores of each teacher."""
        return [self.student.exact_scores(teacher, parse_objective(objective)) for teacher in self.teachers]


def _member(model: Automaton) -> Member:
    return Member(LoadedModel(model, AutomatonCodec(model), model.name), model)


def draw_world(family: str, questions: int, qualities: Iterable[Quality], seed: int) -> World:
    """Fresh questions of a family, and teachers that differ from the student in states of their own."""
    student = draw_family(family, questions, seed)
    teachers = tuple(
        student.teacher(q.tilt, q.noise, q.share, seed=hash((seed, i)) % 2**32, name=f"t{i}") for i, q in enumerate(qualities)
    )
    return World(student, teachers)


def score_world(world: World, config: RunConfig, budget: Budget) -> list[QuestionResult]:
    """Every question of the world, scored by the pipeline."""
    questions = world.student.questions()
    return score_questions(list(enumerate(questions)), world.cast(), config, Spending(budget, len(questions)), Silent(), {})


def sampled_tokens(result: QuestionResult) -> int:
    """Tokens of base and targeted rollouts."""
    return sum(len(r.completion.tokens) for r in [*result.rollouts, *result.targeted])


def spread_over_cores(work: Callable[[Any], dict], jobs: list[Any], what: str) -> list[dict]:
    """Do the jobs in two processes, with a progress bar."""
    with ProcessPoolExecutor(os.cpu_count(), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        return list(
            track(pool.map(work, jobs, chunksize=max(1, len(jobs) // 200)), description=what, total=len(jobs), console=console)
        )


def report(name: str, title: str, columns: list[str], rows: list[list[str]], found: dict) -> None:
    """Print a table; at full size also store it with the numbers behind it and the machine's description."""
    table = Table(title=title)
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    if SMALL:
        return
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(
        json.dumps({"title": title, "machine": machine(), **_finite(found)}, indent=1, allow_nan=False) + "\n"
    )


def _finite(value: Any) -> Any:
    """With null for what was not reached: JSON knows no infinity."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
