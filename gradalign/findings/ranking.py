"""Rank teachers x objectives from the stored rows, with intervals over questions. Knows no torch and no model."""

# pandas types its results too widely for these rules.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false, reportAssignmentType=false

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from gradalign.alignment import ScoreSums
from gradalign.findings.accuracy import accuracy_of_teachers
from gradalign.findings.assessed import RANKABLE, Scored, assess, tabulate
from gradalign.findings.foretold import Horizon, foretold_of
from gradalign.findings.notes import absent, disagreements, outcome_notes, unforetold
from gradalign.findings.rows import require_sampled, scored_rows, weigh
from gradalign.findings.standing import KEYS, Standing, standing_of
from gradalign.findings.steps import steps_of
from gradalign.findings.wording import SCORE_HEADS, TIES, other_scores, placed, remarks, score_formats, score_interval
from gradalign.inference import influence_interval, percentile_interval
from gradalign.sheets import Head, Remark, Sheet, Shown, number
from gradalign.store import Run
from gradalign.transfer import LEAST
from gradalign.types import REWARDS, GradalignError


@dataclass(frozen=True, eq=False)
class Ranking(Shown):
    """The ranking as a frame, one row a teacher and objective, best first, and what it rests on.

    Columns: teacher, objective; each score with `_low` and `_high` (95% interval over questions); of drive and gain also `_noise`,
    the standard error for these very questions, which more rollouts can remove where more questions cannot; `transfer_drive_sketch`, the
    standard error that sketching the steps adds; `first_step_share`, gain for a unit of the first step over the best one's; `difference`
    to the best by the ordering score, paired over questions, with its interval; `p_best`, the share of resamples in which it is best;
    `tied`, not told from the best. `warnings` say where local scores and what a step does to others disagree.
    """

    frame: pd.DataFrame
    by: str
    questions: int
    left_out: int
    notes: tuple[str, ...]
    warnings: tuple[str, ...]

    def sheets(self) -> list[Sheet]:
        """Best first: scores, the interval of the ordering score, the paired difference to the best, and what it rests on."""
        by, frame = self.by, self.frame
        others = other_scores(frame, by)
        heads = [Head(""), Head("teacher", number=False), Head("objective", number=False),
                 Head(SCORE_HEADS[by], strong=True), Head("95% interval"), Head("less the best"), Head("P(best)", spare=True),
                 *(Head(SCORE_HEADS[name], spare=True) for name in others)]  # fmt: skip
        show = score_formats(frame, (by, *others))
        rows = [
            (placed(place, row["tied"]), row["teacher"], row["objective"], show[by](row[by]), score_interval(row, by, show[by]),
             "best" if place == 1 else score_interval(row, "difference", show[by]), number(row["p_best"], ".2f"),
             *(show[name](row[name]) for name in others))
            for place, row in enumerate(frame.to_dict("records"), start=1)
        ]  # fmt: skip
        left = f"{self.left_out} questions are left out: not every teacher could be scored on them."
        said = [Remark(TIES)] if frame["tied"].sum() > 1 else []
        said += [Remark(left)] if self.left_out else []
        title = f"Ranking by {by} over {self.questions} questions"
        return [Sheet(title, tuple(heads), tuple(rows), (*said, *remarks(self.warnings, self.notes, self.by)))]


def rank(
    run: Run,
    by: str | None = None,
    support: str = "visited",
    draws: int = 2000,
    seed: int = 0,
    objectives: Sequence[str] | None = None,
    horizon: Horizon | None = None,
) -> Ranking:
    """Rank every teacher and objective of a run by a pooled score, on the questions that all its teachers share.

    Only `objectives` are compared, if given.

    By default by `foretold`, or `first_step`, where `gradalign foretell` has found the first steps of all teachers; else by
    `transfer_drive`, or by `drive` where fewer than four questions are shared. `horizon` is the training that `foretold` speaks of.
    `support` is that of the cosines (`visited` or `full`); the other scores always speak of the whole vocabulary. Intervals come from
    each question's influence; those of the cosines and of `foretold` are percentile intervals of a bootstrap over whole questions.
    """
    if by is not None and by not in RANKABLE:
        raise GradalignError(f"cannot rank by {by!r}; choose from {', '.join(RANKABLE)}")
    require_sampled(run)
    found = _scored(run, support, draws, seed, objectives, horizon)
    frame, by = tabulate(found, by)
    shared = len(found.standing.questions)
    notes = (*found.notes, *unforetold(frame, _pair_name), *outcome_notes(run))
    left_out = run.frame("questions", ["question"]).shape[0] - shared
    return Ranking(frame, by, shared, left_out, notes, tuple(disagreements(frame, accuracy_of_teachers(run), _pair_name)))


def paired_difference(
    run: Run,
    one: tuple[str, str],
    other: tuple[str, str],
    by: str = "drive",
    support: str = "visited",
    draws: int = 2000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Score of one (teacher, objective) less that of another, with its 95% interval, paired over questions."""
    found = _scored(run, support, draws, seed)
    for key in (one, other):
        if key not in found.keys:
            raise GradalignError(f"the run has no teacher and objective {key}; it has {', '.join(map(str, found.keys))}")
    i, j = found.keys.index(one), found.keys.index(other)
    difference = found.score[by][i] - found.score[by][j]
    influence = found.influence(by, j)
    if influence is not None:
        low, high = influence_interval(np.array([difference]), influence[[i]])
        return float(difference), float(low[0]), float(high[0])
    low, high = percentile_interval(found.draws[by][:, i] - found.draws[by][:, j], int(found.units[by][[i, j]].min()))
    return float(difference), float(low), float(high)


def _scored(
    run: Run,
    support: str,
    draws: int,
    seed: int,
    objectives: Sequence[str] | None = None,
    horizon: Horizon | None = None,
) -> Scored:
    scores, teachers = run.frame("scores"), run.identity["teachers"]
    if scores.empty:
        raise GradalignError(f"no question could be scored under any teacher ({'; '.join(outcome_notes(run))})")
    standing = standing_of(scores, teachers, objectives or run.identity["objectives"])
    if not standing.questions:
        raise GradalignError("the teachers share no question; the run's `skipped` table says why: rank fewer teachers together")
    sums = _question_sums(run, support, standing)
    present = {teacher for teacher, _ in standing.keys}
    asked = present != {REWARDS}  # no teacher was where every objective looks at rewards alone
    notes = [absent(teacher, run) for teacher in teachers if asked and teacher not in present]
    keys = [(*key, "all") for key in standing.keys]
    steps = steps_of(run, keys, standing.questions) if len(standing.questions) >= LEAST else None
    error = np.full(len(standing.keys), np.nan) if steps is None else steps.sketch_error()
    moved = None if steps is None else steps.transfer()
    told = foretold_of(run, standing.keys, standing.questions)
    return assess(standing, sums, moved, error, notes, draws, seed, None, told, horizon)


def _question_sums(run: Run, support: str, standing: Standing) -> ScoreSums:
    """Sums (M, Q) over the nodes of each shared question: the linear ones over all nodes, those of the cosines over chosen nodes."""
    found = []
    for piece in run.pieces():
        rows = scored_rows(piece, support)
        found.append(weigh(rows, rows["weight"]).groupby([rows["teacher"], rows["objective"], rows["question"]]).sum())
    grouped = pd.concat(found)
    wanted = pd.MultiIndex.from_tuples(
        [(*key, q) for key in standing.keys for q in standing.questions], names=[*KEYS, "question"]
    )
    shape = standing.dot_MQ.shape
    arrays = {str(name): column.to_numpy().reshape(shape) for name, column in grouped.reindex(wanted).fillna(0.0).items()}
    return ScoreSums(
        weight=standing.length_MQ, dot=standing.dot_MQ, d_norm2=standing.d_norm2_MQ, advantage=standing.advantage_MQ, **arrays
    )


def _pair_name(row: dict) -> str:
    return f"{row['teacher']} with {row['objective']}"
