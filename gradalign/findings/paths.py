"""Are incorrect paths better aligned than correct ones? By question, so that nodes of one question are not taken for independent."""

# pandas types its results too widely for these rules.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false, reportAssignmentType=false
# pyright: reportReturnType=false, reportOperatorIssue=false, reportCallIssue=false

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import false_discovery_control, mannwhitneyu, ttest_ind

from gradalign.findings.ranking import scored_rows, weigh
from gradalign.findings.standing import KEYS
from gradalign.inference import bootstrap_counts, percentile_interval, sign_flip_p
from gradalign.store import Run
from gradalign.types import GradalignError

PATHS = ("correct", "incorrect")
_SUMS = ("cos_dot", "cos_g2", "cos_d2", "cos_lengths", "cos", "informative")


@dataclass(frozen=True, eq=False)
class PathComparison:
    """Alignment on correct and on incorrect paths, for every teacher and objective.

    `frame` has a row a teacher, objective and cosine (mean, weighted, pooled): `correct` and `incorrect`, the cosine on each; `difference`
    (incorrect less correct) with `_low` and `_high`, a cluster bootstrap over questions; and of what each question says for itself, for the
    mean and the weighted cosine: `paired`, the mean over `questions` that have both kinds of path, with its interval, `p` of the sign-flip
    test, `p_adjusted` (Benjamini-Hochberg over the table) and `effect`, the mean over the standard deviation. `welch_p` and `mannwhitney_p`
    are tests over `nodes_correct` and `nodes_incorrect`, nodes that lie on one kind of path only: they assume that nodes are independent,
    which those of one question are not. `one_kind` counts questions whose rollouts all went right or all wrong.
    """

    frame: pd.DataFrame
    questions: int
    one_kind: int


def compare_paths(run: Run, support: str = "visited", draws: int = 2000, flips: int = 10_000, seed: int = 0) -> PathComparison:
    """Compare the two kinds of path; a node on both counts on each by its share of rollouts (arXiv 2605.10889 compares nodes)."""
    if support not in ("visited", "full"):
        raise GradalignError(f"no support {support!r}; choose visited or full")
    if run.identity.get("node_selection") == "top":
        raise GradalignError("this run took the top nodes, for looking; score again with --node-selection pps")
    nodes = run.frame("nodes", ["question", "node", "scored", "visits", "visits_wrong"]).query("scored")
    rows = scored_rows(run, support).merge(
        nodes.assign(wrong=nodes["visits_wrong"] / nodes["visits"])[["question", "node", "wrong"]], on=["question", "node"]
    )
    if rows.empty:
        raise GradalignError("the run has no scored node; score with a larger --budget")
    rate = run.frame("questions", ["question", "pass_rate"]).set_index("question")["pass_rate"].dropna()
    questions = sorted(rows["question"].unique())
    counts = bootstrap_counts(len(questions), draws, seed).astype(np.float64)
    found = []
    for (teacher, objective), mine in rows.groupby(KEYS, sort=True):
        found.append(_compared(mine, questions, counts, flips, seed).assign(teacher=teacher, objective=objective))
    frame = pd.concat(found, ignore_index=True)
    tested = frame["p"].notna()
    frame["p_adjusted"] = np.nan
    if tested.any():
        frame.loc[tested, "p_adjusted"] = false_discovery_control(frame.loc[tested, "p"])
    first = [*KEYS, "cosine"]
    frame = frame[[*first, *(column for column in frame.columns if column not in first)]]
    return PathComparison(frame, len(questions), int(((rate == 0) | (rate == 1)).sum()))


def _compared(rows: pd.DataFrame, questions: list[str], counts: np.ndarray, flips: int, seed: int) -> pd.DataFrame:
    """The three cosines of one teacher and objective."""
    sums = []
    for share in (1 - rows["wrong"], rows["wrong"]):
        summed = weigh(rows, rows["weight"] * share)[list(_SUMS)].groupby(rows["question"]).sum()
        sums.append(summed.reindex(questions).fillna(0.0).to_numpy(dtype=np.float64))
    sums_PQS = np.stack(sums)
    whole = _cosines(sums_PQS.sum(1))
    drawn = _cosines(np.einsum("bq,pqs->pbs", counts, sums_PQS))
    own = _cosines(sums_PQS)
    low, high = percentile_interval(drawn[1] - drawn[0])
    apart = own[1] - own[0]
    apart[:, 2] = np.nan  # a question's own pooled cosine is mostly noise
    known = np.isfinite(apart)
    mean_low, mean_high = percentile_interval(_means(counts, apart))
    with np.errstate(invalid="ignore", divide="ignore"):
        paired = np.where(known.any(0), np.where(known, apart, 0.0).sum(0) / known.sum(0), np.nan)
        spread = np.sqrt(np.where(known, (apart - paired) ** 2, 0.0).sum(0) / (known.sum(0) - 1))
        effect = np.where(spread > 0, paired / spread, np.nan)
    return pd.DataFrame({
        "cosine": ["mean", "weighted", "pooled"],
        "correct": whole[0], "incorrect": whole[1], "difference": whole[1] - whole[0], "difference_low": low,
        "difference_high": high, "questions": known.sum(0), "paired": paired, "paired_low": mean_low, "paired_high": mean_high,
        "p": sign_flip_p(apart.T, flips, seed), "effect": effect, **_by_nodes(rows),
    })  # fmt: skip


def _cosines(sums: np.ndarray) -> np.ndarray:
    """Mean, weighted and pooled cosine from sums in the order of `_SUMS` along the last axis; NaN where a denominator is not positive."""
    dot, g2, d2, lengths, cos, informative = np.moveaxis(sums, -1, 0)
    pooled = np.sqrt(np.maximum(g2, 0) * np.maximum(d2, 0))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.stack(
            [np.where(under > 0, over / under, np.nan) for over, under in ((cos, informative), (dot, lengths), (dot, pooled))],
            -1,
        )


def _means(counts: np.ndarray, apart_QC: np.ndarray) -> np.ndarray:
    """Means of the questions' differences on resamples of questions, those without one left out: (B, C)."""
    known = np.isfinite(apart_QC)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (counts @ np.where(known, apart_QC, 0.0)) / (counts @ known)


def _by_nodes(rows: pd.DataFrame) -> dict[str, list[int] | list[float]]:
    """Tests over nodes of one kind of path, for the mean cosine only."""
    useful = rows[rows["informative"].astype(bool) & rows["cos"].notna()]
    right, wrong = (useful.loc[useful["wrong"] == kind, "cos"].to_numpy() for kind in (0, 1))
    enough = min(len(right), len(wrong)) >= 2
    welch = float(ttest_ind(wrong, right, equal_var=False).pvalue) if enough else np.nan
    ranks = float(mannwhitneyu(wrong, right).pvalue) if enough else np.nan
    return {
        "nodes_correct": [len(right)] * 3, "nodes_incorrect": [len(wrong)] * 3, "welch_p": [welch, np.nan, np.nan],
        "mannwhitney_p": [ranks, np.nan, np.nan],
    }  # fmt: skip
