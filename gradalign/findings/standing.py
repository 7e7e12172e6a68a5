"""Where teachers and objectives stand on the linear scores, from the `scores` rows alone: what a run under way can afford to ask often."""

# pandas types its results too widely for these rules.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false, reportAssignmentType=false

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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


_SUMS = ("length", "dot", "dot_se", "d_norm2", "advantage")


class Tally:
    """`scores` rows as a run brings them, part by part, kept as numbers: a long run's standing is soon made and takes little memory."""

    def __init__(self, teachers: Sequence[str], objectives: Sequence[str]):
        self.teachers = (*teachers, REWARDS)
        self.keys = tuple((teacher, objective) for teacher in self.teachers for objective in objectives)
        self.parts: dict[int, tuple[tuple[str, ...], np.ndarray]] = {}

    def put(self, part: int, rows: Iterable[Mapping[str, Any]]) -> None:
        """Take the rows of a part, in place of those it had."""
        kept = list(rows)
        questions = {question: q for q, question in enumerate(dict.fromkeys(row["question"] for row in kept))}
        place = {key: m for m, key in enumerate(self.keys)}
        sums = np.full((1 + len(_SUMS), len(self.keys), len(questions)), np.nan)
        for row in kept:
            at = (place[row["teacher"], row["objective"]], questions[row["question"]])
            sums[0][at] = 1.0
            for s, name in enumerate(_SUMS, start=1):
                sums[s][at] = np.nan if row[name] is None else row[name]
        self.parts[part] = (tuple(questions), sums)

    def standing(self, parts: Iterable[int] | None = None) -> Standing:
        """Where teachers and objectives stand on all parts, or on some of them.

        Teachers with no rows are left out, and questions that not all the others share.
        """
        chosen = sorted(self.parts if parts is None else self.parts.keys() & {*parts})
        empty = ((), np.zeros((1 + len(_SUMS), len(self.keys), 0)))
        questions, sums = zip(*(self.parts[part] for part in chosen), strict=True) if chosen else ((empty[0],), (empty[1],))
        names, sums_SMQ = np.array([name for part in questions for name in part], dtype=object), np.concatenate(sums, axis=2)
        there_MQ = ~np.isnan(sums_SMQ[0])
        found = there_MQ.any(1)
        of_teacher = {teacher: np.array([key[0] == teacher for key in self.keys]) & found for teacher in self.teachers}
        shared = np.ones(len(names), dtype=bool)
        for mine in of_teacher.values():
            shared &= there_MQ[mine].any(0) if mine.any() else True
        order = np.flatnonzero(shared)[np.argsort(names[shared])] if found.any() else np.zeros(0, dtype=int)
        keys = tuple(key for key, there in zip(self.keys, found, strict=True) if there)
        return Standing(keys, tuple(names[order]), *sums_SMQ[1:, found][:, :, order])


def standing_of(scores: pd.DataFrame, teachers: Sequence[str], objectives: Sequence[str]) -> Standing:
    """Arrange `scores` rows of any number of questions; teachers with no rows are left out, questions that not all others share too."""
    tally = Tally(teachers, objectives)
    wanted = scores[scores["teacher"].isin(tally.teachers) & scores["objective"].isin(objectives)]
    columns = [*KEYS, "question", *_SUMS]
    tally.put(0, (dict(zip(columns, row, strict=True)) for row in wanted[columns].itertuples(index=False)))
    return tally.standing()
