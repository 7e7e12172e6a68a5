"""Where teachers and objectives stand on the linear scores, from the `scores` rows alone: what a run under way can afford to ask often."""

# pandas types its results too widely for these rules.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false, reportAssignmentType=false

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from gradalign.inference import influence_interval, upper_bound
from gradalign.types import REWARDS

LINEAR = ("drive", "gain", "teacher_advantage")
KEYS = ["teacher", "objective"]


@dataclass(frozen=True, eq=False)
class Standing:
    """Sums (M, Q) of M pairs of teacher and objective over the Q questions that all teachers share."""

    keys: tuple[tuple[str, str], ...]
    questions: tuple[str, ...]
    length_MQ: Float[np.ndarray, "M Q"]
    dot_MQ: Float[np.ndarray, "M Q"]
    noise_MQ: Float[np.ndarray, "M Q"]
    d_norm2_MQ: Float[np.ndarray, "M Q"]
    advantage_MQ: Float[np.ndarray, "M Q"]

    def on(self, questions: Sequence[str]) -> "Standing":
        """The same on some of the questions."""
        at = [self.questions.index(question) for question in questions]
        arrays = (self.length_MQ, self.dot_MQ, self.noise_MQ, self.d_norm2_MQ, self.advantage_MQ)
        return Standing(self.keys, tuple(questions), *(array[:, at] for array in arrays))

    def score(self, by: str) -> Float[np.ndarray, " M"]:
        """The scores by `drive`, `gain` or `teacher_advantage`."""
        numerator, power, denominator = self._parts(by)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(denominator.mean(1) > 0, numerator.mean(1) / denominator.mean(1) ** power, np.nan)

    def influence(self, by: str) -> Float[np.ndarray, "M Q"]:
        """Each question's influence on the score (the ratio linearised about its means); means over questions are 0."""
        numerator, power, denominator = self._parts(by)
        centre, scale = numerator.mean(1, keepdims=True), denominator.mean(1, keepdims=True)
        with np.errstate(divide="ignore", invalid="ignore"):
            relative = np.where(scale > 0, (denominator - scale) / scale, np.nan)
            return (numerator - centre - power * centre * relative) / scale**power

    def noise(self, by: str) -> Float[np.ndarray, " M"]:
        """Standard error of `drive` or `gain` for these very questions: what more rollouts can still remove."""
        _, power, denominator = self._parts(by)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.sqrt((self.noise_MQ**2).mean(1) / len(self.questions)) / denominator.mean(1) ** power

    def interval(self, by: str, tail: float = 0.025) -> tuple[Float[np.ndarray, " M"], Float[np.ndarray, " M"]]:
        """Interval of each score over questions."""
        return influence_interval(self.score(by), self.influence(by), tail)

    def beaten(self, by: str, tail: float) -> Bool[np.ndarray, " M"]:
        """Which pairs are below the leading one, each at one-sided level `tail`."""
        score, influence = self.score(by), self.influence(by)
        if np.isnan(score).all() or len(self.questions) < 2:
            return np.zeros(len(score), dtype=bool)
        lead = int(np.nanargmax(score))
        return upper_bound(score - score[lead], influence - influence[lead], tail) < 0

    def _parts(self, by: str) -> tuple[np.ndarray, float, np.ndarray]:
        if by == "gain":
            return self.dot_MQ, 0.5, self.d_norm2_MQ
        return (self.dot_MQ if by == "drive" else self.advantage_MQ), 1.0, self.length_MQ


def standing_of(scores: pd.DataFrame, teachers: Sequence[str], objectives: Sequence[str]) -> Standing:
    """Arrange `scores` rows of any number of questions; teachers with no rows are left out, questions that not all others share too."""
    present = [teacher for teacher in (*teachers, REWARDS) if (scores["teacher"] == teacher).any()]
    found = {*zip(scores["teacher"], scores["objective"], strict=True)}
    keys = tuple((teacher, objective) for teacher in present for objective in objectives if (teacher, objective) in found)
    groups = [set(scores.loc[scores["teacher"] == teacher, "question"]) for teacher in present]
    shared = tuple(sorted(set.intersection(*groups))) if groups else ()
    wanted = pd.MultiIndex.from_tuples([(*key, q) for key in keys for q in shared], names=[*KEYS, "question"])
    rows = scores.set_index([*KEYS, "question"]).reindex(wanted)

    def column(name: str) -> np.ndarray:
        return rows[name].to_numpy(dtype=np.float64).reshape(len(keys), len(shared))

    return Standing(keys, shared, column("length"), column("dot"), column("dot_se"), column("d_norm2"), column("advantage"))
