"""Rank training configurations from the stored rows of a run: weights of questions and tokens are put on what was scored once."""

# pandas types its results too widely for these rules.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false, reportAssignmentType=false
# pyright: reportReturnType=false, reportOptionalOperand=false

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from gradalign.configurations import Configuration
from gradalign.findings.accuracy import accuracy_of_teachers
from gradalign.findings.assessed import RANKABLE, tabulate
from gradalign.findings.foretold import Horizon
from gradalign.findings.ground import assess_ground, foretold_on, ground_of, steps_on
from gradalign.findings.notes import disagreements, outcome_notes, unforetold
from gradalign.findings.standing import KEYS, Standing
from gradalign.findings.wording import SCORE_HEADS, TIES, placed, remarks, score_formats, score_interval
from gradalign.sheets import Head, Remark, Sheet, Shown, number, percent
from gradalign.store import Run
from gradalign.types import GradalignError

_SURE = 1.96
_UNKNOWN = (
    "A configuration without a {by} weighs tokens in a way that the run kept no steps for: `gradalign score --configs` with it does, and "
    "`--by drive` compares all. An oracle analysis has none."
)


@dataclass(frozen=True, eq=False)
class ConfigurationRanking(Shown):
    """Configurations of a run as a frame, best first, and those that the run cannot tell of, each with its reason.

    Columns: configuration, teacher, objective, questions, tokens, oracle (knows what training would have to find); the scores as in a
    `Ranking`; `helped` and `harmed`, the shares of questions whose own <g, d> is above or below 0 by 1.96 standard errors (missing where
    the direction is itself estimated); `context_tokens`, mean length of the teacher's prompt, and `teacher_tokens`, tokens that the
    teacher reads for one rollout.
    """

    frame: pd.DataFrame
    by: str
    questions: int
    unscored: dict[str, str]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]

    def sheets(self) -> list[Sheet]:
        """Best first: each configuration, the ordering score with its interval, the paired difference to the best, and its cost."""
        by, frame = self.by, self.frame
        others = [name for name in ("drive", "gain", "teacher_advantage") if name != by]
        spare = ("P(best)", *(SCORE_HEADS[name] for name in others), "helps", "harms", "teacher tokens")
        heads = (Head(""), Head("configuration", number=False), Head(SCORE_HEADS[by], strong=True),
                 Head("95% interval"), Head("less the best"), *(Head(text, spare=True) for text in spare))  # fmt: skip
        show = score_formats(frame, SCORE_HEADS)
        rows = [
            (placed(place, row["tied"]), row["configuration"], show[by](row[by]), score_interval(row, by, show[by]),
             "best" if row["difference"] == 0 and row["tied"] else score_interval(row, "difference", show[by]),
             number(row["p_best"], ".2f"), *(show[name](row[name]) for name in others), percent(row["helped"]),
             percent(row["harmed"]), number(row["teacher_tokens"], ",.0f"))
            for place, row in enumerate(frame.to_dict("records"), start=1)
        ]  # fmt: skip
        said = [Remark(TIES)] if frame["tied"].sum() > 1 else []
        said += [Remark(_UNKNOWN.format(by=by))] if frame[by].isna().any() else []
        said += [Remark(reason, "warning") for reason in self.unscored.values()]
        title = f"Ranking by {by} over {self.questions} questions"
        return [Sheet(title, heads, tuple(rows), (*said, *remarks(self.warnings, self.notes, self.by)))]


def rank_configurations(
    run: Run,
    configurations: Sequence[Configuration],
    by: str | None = None,
    support: str = "visited",
    draws: int = 2000,
    seed: int = 0,
    horizon: Horizon | None = None,
) -> ConfigurationRanking:
    """Rank configurations on the questions that all their teachers share.

    Question weights have mean 1 over these questions and multiply what a question's step adds; pass rates are those of the base rollouts.
    Token weights take sums from the chosen nodes over their chance of being chosen; their transfer is known where the run was scored
    with them, and what has no value of the ordering score stands last. An oracle analysis is never the best. Two stages share the
    training equally: scores are the means of theirs, so those for a unit of step take each stage's own step for the unit.
    """
    if by is not None and by not in RANKABLE:
        raise GradalignError(f"cannot rank by {by!r}; choose from {', '.join(RANKABLE)}")
    ground = ground_of(run, configurations, support)
    assessed, found = assess_ground(ground, steps_on(run, ground), None, draws, seed, foretold_on(run, ground), horizon)
    frame, by = tabulate(assessed, by, np.array([c.tokens.kind != "positive_alignment" for c in ground.usable]))
    frame = _described(frame, ground.usable, run, ground.base, found)
    warned = frame[~frame["oracle"].astype(bool)]
    warnings = disagreements(warned, accuracy_of_teachers(run), _name)
    notes = (*unforetold(warned, _name), *outcome_notes(run))
    return ConfigurationRanking(frame, by, len(ground.base.questions), ground.unscored, notes, tuple(warnings))


def _name(row: dict) -> str:
    return str(row["configuration"])


def _described(
    frame: pd.DataFrame, usable: Sequence[Configuration], run: Run, base: Standing, found: Sequence[dict[str, np.ndarray]]
) -> pd.DataFrame:
    """The frame with what each configuration is, whom it helps and what its teacher reads."""
    contexts = run.frame("contexts", ["question", "teacher", "length"])
    length = contexts[contexts["question"].isin(base.questions)].groupby("teacher")["length"].mean()
    described = []
    for c, part in zip(usable, found, strict=True):
        known = ~np.isnan(part["dot_se"]).any()
        read = length.get(c.teacher, np.nan) if c.teacher is not None else 0.0
        rollout = base.length_MQ[0].mean() if c.teacher is not None else 0.0
        described.append({
            KEYS[0]: c.name,
            "of": c.teacher or "",
            "by": " then ".join(c.objectives),
            "questions": str(c.questions),
            "tokens": str(c.tokens),
            "oracle": c.tokens.kind == "positive_alignment",
            "helped": float((part["dot"] > _SURE * part["dot_se"]).mean()) if known else np.nan,
            "harmed": float((part["dot"] < -_SURE * part["dot_se"]).mean()) if known else np.nan,
            "context_tokens": read,
            "teacher_tokens": read + rollout,
        })  # fmt: skip
    whole = frame.drop(columns=KEYS[1]).merge(pd.DataFrame(described), on=KEYS[0], how="left", sort=False)
    whole = whole.rename(columns={KEYS[0]: "configuration", "of": "teacher", "by": "objective"})
    first = ["configuration", "teacher", "objective", "questions", "tokens", "oracle"]
    return whole[[*first, *(column for column in whole.columns if column not in first)]]
