"""Rank teachers x objectives from the stored rows, with intervals over questions. Knows no torch and no model."""

# pandas types its results too widely for these rules.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false, reportAssignmentType=false

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from gradalign.alignment import SCORES, ScoreSums, pooled_scores
from gradalign.findings.standing import KEYS, LINEAR, Standing, standing_of
from gradalign.findings.steps import steps_of
from gradalign.inference import bootstrap_counts, compare_with_best, influence_interval, percentile_interval
from gradalign.store import Run
from gradalign.transfer import Transfer, pair_influence
from gradalign.types import GradalignError

CAVEAT = (
    "Scores are first-order: evidence about a training run, not a proof. transfer_drive and transfer ask what a step on some questions "
    "does to others, in the output layer; all other scores are local to each node and cannot see guidance that does not transfer."
)
TRANSFER = ("transfer_drive", "transfer")
RANKABLE = (*TRANSFER, *SCORES)
LEAST_FOR_TRANSFER = 4
_THIN = 0.1  # below this effective share of tokens, local scores of preference pairs are said to rest on few


@dataclass(frozen=True, eq=False)
class Ranking:
    """The ranking as a frame, one row a teacher and objective, best first, and what it rests on.

    Columns: teacher, objective; each score with `_low` and `_high` (95% interval over questions); of drive and gain also `_noise`,
    the standard error for these very questions, which more rollouts can remove where more questions cannot; `transfer_drive_sketch`, the
    standard error that sketching the steps adds; `difference` to the best by the ordering score, paired over questions, with its
    interval; `p_best`, the share of resamples in which it is best; `tied`, not told from the best. `warnings` say where local
    scores and transfer disagree.
    """

    frame: pd.DataFrame
    by: str
    questions: int
    left_out: int
    notes: tuple[str, ...]
    warnings: tuple[str, ...]


def rank(run: Run, by: str | None = None, support: str = "visited", draws: int = 2000, seed: int = 0) -> Ranking:
    """Rank every teacher and objective of a run by a pooled score, on the questions that all its teachers share.

    By default by `transfer_drive`, or by `drive` where fewer than four questions are shared. `support` is that of the cosines (`visited` or
    `full`); the other scores always speak of the whole vocabulary. Their intervals come from each question's influence, those of the
    cosines are percentile intervals of a bootstrap over whole questions.
    """
    if by is not None and by not in RANKABLE:
        raise GradalignError(f"cannot rank by {by!r}; choose from {', '.join(RANKABLE)}")
    if support not in ("visited", "full"):
        raise GradalignError(f"no support {support!r}; choose visited or full")
    if run.identity.get("node_selection") == "top":
        raise GradalignError("this run took the top nodes, for looking; score again with --node-selection pps to rank")
    found = _scored(run, support, draws, seed)
    frame, by = tabulate(found, by)
    shared = len(found.standing.questions)
    notes = (*found.notes, *outcome_notes(run))
    left_out = run.frame("questions", ["question"]).shape[0] - shared
    return Ranking(frame, by, shared, left_out, notes, tuple(disagreements(frame, _pair_name)))


def tabulate(found: "Scored", by: str | None, eligible: np.ndarray | None = None) -> tuple[pd.DataFrame, str]:
    """The ranking as a frame, best first, and the score that orders it; only what is `eligible` (all unless given) can be the best."""
    by = by or ("drive" if np.isnan(found.score["transfer_drive"]).all() else "transfer_drive")
    frame = pd.DataFrame(found.keys, columns=KEYS)
    for name in RANKABLE:
        frame[name], frame[f"{name}_low"], frame[f"{name}_high"] = found.score[name], found.low[name], found.high[name]
    for name in ("drive", "gain"):
        frame[f"{name}_noise"] = found.over_stages(found.standing.noise(name))
    frame["transfer_drive_sketch"] = found.over_stages(found.sketch_error)
    if np.isnan(found.score[by]).all():
        reason = "fewer than four questions are shared" if by in TRANSFER else "no node is informative"
        raise GradalignError(f"no teacher has a {by} in this run: {reason}; score more questions or a larger --budget")
    rivals = np.ones(len(frame), dtype=bool) if eligible is None or np.isnan(found.score[by][eligible]).all() else eligible
    best = int(np.nanargmax(np.where(rivals, found.score[by], np.nan)))
    draws = np.where(rivals, found.draws[by], np.nan)
    compared = compare_with_best(found.score[by], best, found.influence(by, best), draws)
    frame["difference"], frame["difference_low"], frame["difference_high"] = (
        compared.difference_M,
        compared.low_M,
        compared.high_M,
    )
    frame["p_best"], frame["tied"] = compared.probability_M, compared.tied_M & rivals
    return frame.sort_values(by, ascending=False, kind="stable", ignore_index=True), by


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
    low, high = percentile_interval(found.draws[by][:, i] - found.draws[by][:, j])
    return float(difference), float(low), float(high)


@dataclass(frozen=True, eq=False)
class Scored:
    """Every score of every pair of teacher and objective: value, interval, and values on resamples of the questions (B, M).

    What is ranked has one stage or several, each an entry of `standing` and of `transfer`, by its places in `stages`; its scores are the
    means of theirs.
    """

    keys: tuple[tuple[str, str], ...]
    stages: tuple[tuple[int, ...], ...]
    standing: Standing
    score: dict[str, np.ndarray]
    low: dict[str, np.ndarray]
    high: dict[str, np.ndarray]
    draws: dict[str, np.ndarray]
    notes: list[str]
    transfer: Transfer | None
    sketch_error: np.ndarray

    def over_stages(self, values: np.ndarray) -> np.ndarray:
        """Means of what is given for every stage along the first axis."""
        return np.stack([values[list(at)].mean(0) for at in self.stages])

    def influence(self, by: str, other: int | None = None) -> np.ndarray | None:
        """Each question's influence on every score, less that of pair `other` if given: (M, Q); None where only resamples tell."""
        if by in LINEAR:
            influence = self.over_stages(self.standing.influence(by))
            return influence if other is None else influence - influence[other]
        if by not in TRANSFER:
            return None
        if self.transfer is None:
            return np.full((len(self.keys), len(self.standing.questions)), np.nan)
        pairs = self.over_stages(self.transfer.drive_MQQ if by == "transfer_drive" else self.transfer.unit_MQQ)
        return pair_influence(pairs if other is None else pairs - pairs[other])


def _scored(run: Run, support: str, draws: int, seed: int) -> Scored:
    scores, teachers = run.frame("scores"), run.identity["teachers"]
    if scores.empty:
        raise GradalignError(f"no question could be scored under any teacher ({'; '.join(outcome_notes(run))})")
    standing = standing_of(scores, teachers, run.identity["objectives"])
    if not standing.questions:
        raise GradalignError("the teachers share no question; the run's `skipped` table says why: rank fewer teachers together")
    sums = _question_sums(scored_rows(run, support), standing)
    present = {teacher for teacher, _ in standing.keys}
    notes = [_absent(teacher, run) for teacher in teachers if teacher not in present]
    steps = steps_of(run, standing.keys, standing.questions) if len(standing.questions) >= LEAST_FOR_TRANSFER else None
    error = np.full(len(standing.keys), np.nan) if steps is None else steps.sketch_error()
    return assess(standing, sums, None if steps is None else steps.transfer(), error, notes, draws, seed)


def assess(
    standing: Standing,
    sums: ScoreSums,
    moved: Transfer | None,
    sketch_error: np.ndarray,
    notes: list[str],
    draws: int,
    seed: int,
    stages: dict[tuple[str, str], tuple[int, ...]] | None = None,
) -> Scored:
    """Every score with its interval and resamples, from sums (M, Q) over the nodes of each question and transfer between them.

    What is ranked is each of the M, or what `stages` names, with the places of its stages among them.
    """
    stages = {key: (m,) for m, key in enumerate(standing.keys)} if stages is None else stages
    questions = len(standing.questions)
    counts = bootstrap_counts(questions, draws, seed) / questions
    score, drawn = (
        pooled_scores(sums.map(lambda array: array.mean(-1))),
        pooled_scores(sums.map(lambda array: counts @ array.T)),
    )
    if questions == 1:  # one question says nothing of how questions differ
        drawn = {name: np.full_like(values, np.nan) for name, values in drawn.items()}
    nothing = np.full(len(standing.keys), np.nan)
    score["transfer_drive"], score["transfer"] = (nothing, nothing) if moved is None else (moved.drive_M, moved.unit_M)
    found = Scored(tuple(stages), tuple(stages.values()), standing, {}, {}, {}, {}, notes, moved, sketch_error)
    found.score.update({name: found.over_stages(value) for name, value in score.items()})
    found.draws.update({name: found.over_stages(value.T).T for name, value in drawn.items()})
    score, drawn = found.score, found.draws
    for name in RANKABLE:
        influence = found.influence(name)
        if influence is None:
            found.low[name], found.high[name] = percentile_interval(drawn[name])
            continue
        found.low[name], found.high[name] = influence_interval(score[name], influence)
        if name in TRANSFER:  # a mean over pairs, resampled by its influences
            drawn[name] = score[name] + counts @ influence.T
    return found


def disagreements(frame: pd.DataFrame, name: Callable[[dict], str]) -> list[str]:
    """Where what a teacher does to the very questions it teaches and what a step does to others point apart, in plain words.

    `name` says what a row is called.
    """
    found = []
    for row in frame.to_dict("records"):
        if not (row["teacher_advantage_low"] > 0 or row["drive_low"] > 0) or not row["transfer_drive"] <= 0:
            continue
        effect = "would lower other questions" if row["transfer_drive_high"] < 0 else "shows no sign of helping other questions"
        found.append(
            f"{name(row)}: on the questions it teaches this teacher does better than the student, "
            f"yet a step on it {effect}. It may know what the student cannot, such as a leaked answer."
        )
    return found


def _pair_name(row: dict) -> str:
    return f"{row['teacher']} with {row['objective']}"


def scored_rows(run: Run, support: str) -> pd.DataFrame:
    """Alignment rows of the scored nodes with the node's numbers beside them."""
    suffix = "_visited" if support == "visited" else ""
    nodes = run.frame("nodes", ["question", "node", "scored", "informative", f"g_norm2{suffix}", f"g_norm2{suffix}_raw"])
    nodes = nodes[nodes["scored"]].set_axis(["question", "node", "scored", "informative", "g_norm2", "g_norm2_raw"], axis=1)
    rows = run.frame("alignment").merge(nodes, on=["question", "node"])
    return rows.assign(
        cos_dot=rows[f"dot{suffix}"],
        cos_d2=rows[f"d_norm2{suffix}"],
        cos=rows["alignment" if suffix else "alignment_full"],
    )


def _question_sums(rows: pd.DataFrame, standing: Standing) -> ScoreSums:
    """Sums (M, Q) over the nodes of each shared question: the linear ones over all nodes, those of the cosines over chosen nodes."""
    weighted = weigh(rows, rows["weight"])
    grouped = weighted.groupby([rows["teacher"], rows["objective"], rows["question"]]).sum()
    wanted = pd.MultiIndex.from_tuples(
        [(*key, q) for key in standing.keys for q in standing.questions], names=[*KEYS, "question"]
    )
    shape = standing.dot_MQ.shape
    arrays = {str(name): column.to_numpy().reshape(shape) for name, column in grouped.reindex(wanted).fillna(0.0).items()}
    return ScoreSums(
        weight=standing.length_MQ, dot=standing.dot_MQ, d_norm2=standing.d_norm2_MQ, advantage=standing.advantage_MQ, **arrays
    )


def weigh(rows: pd.DataFrame, weight: pd.Series) -> pd.DataFrame:
    """What the cosines' sums are made of, row by row, each node with its weight."""
    useful = rows["informative"].astype(bool) & rows["cos"].notna()
    return pd.DataFrame({
        "cos_dot": weight * rows["cos_dot"],
        "cos_g2": weight * rows["g_norm2"],
        "cos_d2": weight * rows["cos_d2"],
        "cos_lengths": weight * np.sqrt(rows["g_norm2_raw"] * rows["cos_d2"].clip(lower=0)),
        "cos": (weight * rows["cos"]).where(useful, 0.0),
        "informative": weight.where(useful, 0.0),
    })  # fmt: skip


def _absent(teacher: str, run: Run) -> str:
    reasons = run.frame("skipped").query("teacher == @teacher")["reason"].value_counts()
    why = f": {reasons.index[0]} ({reasons.iloc[0]} questions)" if len(reasons) else ""
    return f"{teacher} could be built for no question{why}"


def _thin_pairs(run: Run) -> list[str]:
    """Where the student's rollouts say little of the prefixes that the teacher would lead to."""
    scores = run.frame("scores", [*KEYS, "effective_share"])
    share = scores.groupby(KEYS, sort=True)["effective_share"].mean()
    return [
        f"{objective} under {teacher}: its local scores rest on {value:.1%} of the tokens, since the teacher would lead elsewhere; "
        "transfer does not"
        for (teacher, objective), value in share.items()
        if value < _THIN
    ]


def outcome_notes(run: Run) -> Sequence[str]:
    """What was counted on the way: questions that say nothing, truncated and ungradable rollouts, what was skipped."""
    questions = run.frame("questions")
    sampled = questions[questions["rollouts"] > 0]
    missing = run.description["provenance"].get("questions", len(questions)) - len(questions)
    stopped = run.outcome.get("stopped")
    left = f"questions were not needed: {stopped}" if stopped else "questions are not scored yet: the run is unfinished"
    counted = {
        left: missing,
        "questions with every base rollout right (they say little)": int((sampled["pass_rate"] == 1).sum()),
        "questions with every base rollout wrong (they say little)": int((sampled["pass_rate"] == 0).sum()),
        "questions whose share of the token budget left no targeted rollout": int(
            ((sampled["nodes"] > 0) & (sampled["targeted_rollouts"] == 0)).sum()
        ),
        "base rollouts in which no answer could be read": int(sampled["ungradable"].sum()),
        "base rollouts cut at the length limit": int(sampled["truncated"].sum()),
    }
    notes = [f"{count} {what}" for what, count in counted.items() if count] + _thin_pairs(run)
    skipped = run.frame("skipped").fillna({"teacher": "every teacher"}).groupby(["teacher", "reason"], sort=True).size()
    return [*notes, *(f"{teacher}: {count} questions skipped, {reason}" for (teacher, reason), count in skipped.items())]
