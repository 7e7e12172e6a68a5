"""What first steps foretell of training: the stored slopes of `gradalign foretell` and the teachers' own success, by question."""

# pandas types its results too widely for these rules.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow.compute as pc
from jaxtyping import Float

from gradalign.horizon import DEFAULT_TIME, change, ends, shares, speed
from gradalign.store import FirstSteps, Run, read_first_steps
from gradalign.types import GradalignError

FORETOLD = ("foretold", "first_step")


@dataclass(frozen=True)
class Horizon:
    """How long training is to be: so many steps of Adam at a learning rate. Neither: as long as the best teacher takes to be learned."""

    steps: int | None = None
    learning_rate: float | None = None

    def __post_init__(self) -> None:
        if (self.steps is None) != (self.learning_rate is None):
            raise GradalignError("a horizon is a number of steps and a learning rate; give both, or neither")
        if self.steps is not None and not (self.steps > 0 and 0 < (self.learning_rate or 0) < np.inf):
            raise GradalignError(f"{self.steps} steps at learning rate {self.learning_rate} are none; both must be above 0")

    def time(self, speed: float) -> float:
        """Training done, in units of the time that the best teacher takes to be learned."""
        return DEFAULT_TIME if self.steps is None or self.learning_rate is None else speed * self.steps * self.learning_rate


@dataclass(frozen=True, eq=False)
class Foretold:
    """First steps of M stages of configurations on Q questions; NaN where they are not known.

    Slopes along Adam's step and along the plain gradient, the squared length of this one, and how far the teacher is above the student.
    """

    adam_MQ: Float[np.ndarray, "M Q"]
    plain_MQ: Float[np.ndarray, "M Q"]
    norm2_M: Float[np.ndarray, " M"]
    lift_MQ: Float[np.ndarray, "M Q"]

    def over(self, stages: Sequence[Sequence[int]]) -> "Foretold":
        """Of what has several stages, the means over these; each is a unit step of its own."""

        def mean(values: np.ndarray) -> np.ndarray:
            return np.stack([values[list(at)].mean(0) for at in stages])

        return Foretold(mean(self.adam_MQ), mean(self._unit_MQ), np.ones(len(stages)), mean(self.lift_MQ))

    @property
    def _unit_MQ(self) -> np.ndarray:
        """Gain of each question for a unit of step."""
        length = np.sqrt(np.clip(self.norm2_M, 0, None))[:, None]
        return np.divide(self.plain_MQ, length, out=np.zeros_like(self.plain_MQ), where=length > 0)

    @property
    def unit_M(self) -> np.ndarray:
        """Mean gain for a unit of step along the plain gradient."""
        return self._unit_MQ.mean(1)

    def change(self, horizon: Horizon, means: Callable[[np.ndarray], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Change of success after training: (M,), and on resamples of questions, whose `means` (B, M) of values (M, Q) are told, (B, M)."""
        values = (self.adam_MQ, self.lift_MQ, self._unit_MQ)
        slope, lift, unit = (each.mean(1) for each in values)
        pace = speed(slope, lift)
        time = horizon.time(pace)
        drawn = [means(each) for each in values]
        return change(slope, ends(slope, lift, unit), pace, time), change(drawn[0], ends(*drawn), pace, time)


def foretold_of(
    run: Run, keys: Sequence[tuple[str, str]], questions: Sequence[str], weightings: Sequence[tuple[str, str]] | None = None
) -> Foretold | None:
    """Read what is known of these pairs of teacher and objective on these questions; None where the run was never asked.

    `weightings` is how each pair weighs questions and tokens, all alike unless given.
    """
    rows = read_first_steps(run.path)
    if rows.empty:
        return None
    weightings = weightings or [("uniform", "all")] * len(keys)
    values = rows.set_index([*FirstSteps.KEYS, "question"])[["adam", "plain", "norm2"]]
    wanted = pd.MultiIndex.from_tuples(
        [(*key, *weighting, question) for key, weighting in zip(keys, weightings, strict=True) for question in questions]
    )
    found = values.reindex(wanted).to_numpy(dtype=np.float64).reshape(len(keys), len(questions), 3)
    lift = _lifts(run, [teacher for teacher, _ in keys], questions)
    return Foretold(found[..., 0], found[..., 1], found[..., 2].mean(1), lift)


def first_step_shares(told: Foretold) -> Float[np.ndarray, " M"]:
    """Gain for a unit of step over the best one's."""
    return shares(told.unit_M)


def _lifts(run: Run, teachers: Sequence[str], questions: Sequence[str]) -> Float[np.ndarray, "M Q"]:
    """How much oftener each teacher is right than the student, by question; NaN where it was not sampled."""
    sampled = run.frame("rollouts", ["question", "source", "reward"], pc.field("purpose") == "teacher")
    rate = run.frame("questions", ["question", "pass_rate"]).set_index("question")["pass_rate"]
    own = sampled.groupby(["source", "question"])["reward"].mean()
    wanted = pd.MultiIndex.from_product([list(dict.fromkeys(teachers)), list(questions)])
    above = own.reindex(wanted).to_numpy(dtype=np.float64).reshape(-1, len(questions)) - rate.loc[list(questions)].to_numpy()
    place = {teacher: i for i, teacher in enumerate(dict.fromkeys(teachers))}
    return above[[place[teacher] for teacher in teachers]]
