"""Rank teachers x objectives from the stored rows, with intervals over questions. Knows no torch and no model."""

# pandas types its results too widely for these rules.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false, reportAssignmentType=false

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from gradalign.alignment import SCORES, ScoreSums, pooled_scores
from gradalign.inference import bootstrap_counts, compare_with_best, percentile_interval
from gradalign.store import Run
from gradalign.types import GradalignError

KEYS = ["teacher", "objective"]
CAVEAT = (
    "Scores are first-order and local to the logits of each node: evidence about a training run, not a proof. "
    "They cannot see guidance that does not transfer, such as a leaked answer."
)


@dataclass(frozen=True, eq=False)
class Ranking:
    """The ranking as a frame, one row a teacher and objective, best first, and what it rests on.

    Columns: teacher, objective; each score with `_low` and `_high` (95% cluster-bootstrap interval over questions);
    `difference` to the best by the ordering score, paired over questions, with its interval; `p_best`, the share of resamples
    in which it is best; `tied`, not told from the best.
    """

    frame: pd.DataFrame
    by: str
    questions: int
    left_out: int
    notes: tuple[str, ...]


def rank(run: Run, by: str = "drive", support: str = "visited", draws: int = 2000, seed: int = 0) -> Ranking:
    """Rank every teacher and objective of a run by a pooled score, on the questions that all its teachers share.

    `support` is that of the cosines (`visited` or `full`); gain and drive always speak of the whole vocabulary. Intervals are
    percentile intervals of a bootstrap over whole questions.
    """
    if by not in SCORES:
        raise GradalignError(f"cannot rank by {by!r}; choose from {', '.join(SCORES)}")
    if support not in ("visited", "full"):
        raise GradalignError(f"no support {support!r}; choose visited or full")
    if run.identity.get("node_selection") == "top":
        raise GradalignError("this run took the top nodes, for looking; score again with --node-selection pps to rank")
    rows = _scored_rows(run, support)
    keys, sums, notes = _question_sums(rows, run)
    scores, resampled = _scores(sums, draws, seed)
    frame = pd.DataFrame(keys, columns=KEYS)
    for name in SCORES:
        low, high = percentile_interval(resampled[name])
        frame[name], frame[f"{name}_low"], frame[f"{name}_high"] = scores[name], low, high
    if np.isnan(scores[by]).all():
        raise GradalignError(
            f"no teacher has a {by} in this run: no node is informative; score more questions or a larger --budget"
        )
    compared = compare_with_best(scores[by], resampled[by])
    frame["difference"], frame["difference_low"], frame["difference_high"] = (
        compared.difference_M,
        compared.low_M,
        compared.high_M,
    )
    frame["p_best"], frame["tied"] = compared.probability_M, compared.tied_M
    shared = sums.weight.shape[-1]
    frame = frame.sort_values(by, ascending=False, kind="stable", ignore_index=True)
    return Ranking(frame, by, shared, run.frame("questions", ["question"]).shape[0] - shared, (*notes, *outcome_notes(run)))


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
    keys, sums, _ = _question_sums(_scored_rows(run, support), run)
    for key in (one, other):
        if key not in keys:
            raise GradalignError(f"the run has no teacher and objective {key}; it has {', '.join(map(str, keys))}")
    score, resampled = (scores[by] for scores in _scores(sums, draws, seed))
    i, j = keys.index(one), keys.index(other)
    low, high = percentile_interval(resampled[:, i] - resampled[:, j])
    return float(score[i] - score[j]), float(low), float(high)


def _scores(sums: ScoreSums, draws: int, seed: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Scores (M,) with equal question weights 1/Q, and the same on resamples of the questions (B, M)."""
    questions = sums.weight.shape[-1]
    counts = bootstrap_counts(questions, draws, seed) / questions
    resampled = pooled_scores(sums.map(lambda array: counts @ array.T))
    if questions == 1:  # one question says nothing of how questions differ
        resampled = {name: np.full_like(draws, np.nan) for name, draws in resampled.items()}
    return pooled_scores(sums.map(lambda array: array.mean(-1))), resampled


def _scored_rows(run: Run, support: str) -> pd.DataFrame:
    """Alignment rows with the node's and the teacher's numbers beside them."""
    suffix = "_visited" if support == "visited" else ""
    nodes = run.frame("nodes", ["question", "node", "scored", "informative", f"g_norm2{suffix}", f"g_norm2{suffix}_raw"])
    nodes = nodes[nodes["scored"]].set_axis(["question", "node", "scored", "informative", "g_norm2", "g_norm2_raw"], axis=1)
    teachers = run.frame("teachers", ["question", "node", "teacher", "advantage"]).dropna()
    rows = run.frame("alignment").merge(nodes, on=["question", "node"]).merge(teachers, on=["question", "node", "teacher"])
    return rows.assign(
        cos_dot=rows[f"dot{suffix}"],
        cos_d2=rows[f"d_norm2{suffix}"],
        cos=rows["alignment" if suffix else "alignment_full"],
    )


def _question_sums(rows: pd.DataFrame, run: Run) -> tuple[list[tuple[str, str]], ScoreSums, list[str]]:
    """Sums (M, Q) over the nodes of each shared question, for each of M pairs of teacher and objective."""
    counts = rows.groupby("teacher")["question"].nunique()
    absent = [teacher for teacher in run.identity["teachers"] if teacher not in counts.index]
    if counts.empty:
        raise GradalignError(f"no question could be scored under any teacher ({'; '.join(outcome_notes(run))})")
    shared = set.intersection(*(set(group) for _, group in rows.groupby("teacher")["question"]))
    if not shared:
        raise GradalignError("the teachers share no question; the run's `skipped` table says why: rank fewer teachers together")
    rows = rows[rows["question"].isin(shared)]
    weight = rows["weight"]
    useful = rows["informative"].astype(bool) & rows["cos"].notna()
    weighted = pd.DataFrame({
        "dot": weight * rows["dot"],
        "d_norm2": weight * rows["d_norm2"],
        "advantage": weight * rows["advantage"],
        "cos_dot": weight * rows["cos_dot"],
        "cos_g2": weight * rows["g_norm2"],
        "cos_d2": weight * rows["cos_d2"],
        "cos_lengths": weight * np.sqrt(rows["g_norm2_raw"] * rows["cos_d2"]),
        "cos": (weight * rows["cos"]).where(useful, 0.0),
        "informative": weight.where(useful, 0.0),
    })  # fmt: skip
    grouped = weighted.groupby([rows["teacher"], rows["objective"], rows["question"]]).sum()
    keys = [(t, o) for t in run.identity["teachers"] if t in counts.index for o in run.identity["objectives"]]
    wanted = pd.MultiIndex.from_tuples([(*key, q) for key in keys for q in sorted(shared)], names=[*KEYS, "question"])
    arrays = {name: column.to_numpy().reshape(len(keys), len(shared)) for name, column in grouped.reindex(wanted).items()}
    arrays["weight"] = np.tile(_mean_length(run).loc[sorted(shared)].to_numpy(), (len(keys), 1))
    sums = ScoreSums(**{str(name): array for name, array in arrays.items()})
    return keys, sums, [_absent(teacher, run) for teacher in absent]


def _mean_length(run: Run) -> pd.Series:
    """What the weights of a question's nodes estimate, exactly: steps a base rollout, since every visited node is stored."""
    visits = run.frame("nodes", ["question", "visits"]).groupby("question")["visits"].sum()
    return visits / run.frame("questions", ["question", "rollouts"]).set_index("question")["rollouts"].loc[visits.index]


def _absent(teacher: str, run: Run) -> str:
    reasons = run.frame("skipped").query("teacher == @teacher")["reason"].value_counts()
    why = f": {reasons.index[0]} ({reasons.iloc[0]} questions)" if len(reasons) else ""
    return f"{teacher} could be built for no question{why}"


def outcome_notes(run: Run) -> Sequence[str]:
    """What was counted on the way: questions that say nothing, truncated and ungradable rollouts, what was skipped."""
    questions = run.frame("questions")
    sampled = questions[questions["rollouts"] > 0]
    missing = run.description["provenance"].get("questions", len(questions)) - len(questions)
    counted = {
        "questions are not scored yet: the run is unfinished": missing,
        "questions with every base rollout right (they say little)": int((sampled["pass_rate"] == 1).sum()),
        "questions with every base rollout wrong (they say little)": int((sampled["pass_rate"] == 0).sum()),
        "base rollouts in which no answer could be read": int(sampled["ungradable"].sum()),
        "base rollouts cut at the length limit": int(sampled["truncated"].sum()),
    }
    notes = [f"{count} {what}" for what, count in counted.items() if count]
    skipped = run.frame("skipped").fillna({"teacher": "every teacher"}).groupby(["teacher", "reason"], sort=True).size()
    return [*notes, *(f"{teacher}: {count} questions skipped, {reason}" for (teacher, reason), count in skipped.items())]
