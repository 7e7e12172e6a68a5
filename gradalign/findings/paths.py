"""Are incorrect paths better aligned than correct ones? By question, so that nodes of one question are not taken for independent."""

# pandas types its results too widely for these rules.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false, reportAssignmentType=false
# pyright: reportReturnType=false, reportOperatorIssue=false, reportCallIssue=false

import warnings
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow.compute as pc
from scipy.stats import false_discovery_control, mannwhitneyu, ttest_ind

from gradalign.findings.rows import SUMS, cosines, require_sampled, scored_rows, weigh
from gradalign.findings.standing import KEYS
from gradalign.inference import bootstrap_counts, percentile_interval, sign_flip_p
from gradalign.sheets import Head, Remark, Sheet, Shown, interval, number
from gradalign.store import Run
from gradalign.types import GradalignError

PATHS = ("correct", "incorrect")


@dataclass(frozen=True, eq=False)
class PathComparison(Shown):
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

    def sheets(self) -> list[Sheet]:
        """The mean cosine on either kind of path, the paired difference with its test, and the tests over nodes beside it."""
        heads = [Head("teacher", number=False), Head("objective", number=False), Head("correct"), Head("incorrect"),
                 Head("by question [95%]", strong=True), Head("p")]  # fmt: skip
        heads += [Head(text, spare=True) for text in ("p adj.", "effect", "questions", "Welch p*", "rank p*")]
        rows = [
            (row["teacher"], row["objective"], _cosine(row["correct"]), _cosine(row["incorrect"]),
             f"{_cosine(row['paired'])} {interval(row['paired_low'], row['paired_high'], _cosine)}", number(row["p"], ".2g"),
             number(row["p_adjusted"], ".2g"), number(row["effect"], "+.2f"), f"{row['questions']}",
             number(row["welch_p"], ".2g"), number(row["mannwhitney_p"], ".2g"))
            for row in self.frame[self.frame["cosine"] == "mean"].to_dict("records")
        ]  # fmt: skip
        one_kind = f"{self.one_kind} questions have one kind of path only, and say nothing of the difference."
        said = (
            Remark("By question: mean over questions of incorrect less correct; p by flipping signs of whole questions."),
            Remark(
                "Welch and rank tests (*) go node by node, as if nodes of one question were independent, which they are not.",
                "note",
            ),
            *([Remark(one_kind, "note")] if self.one_kind else []),
            Remark(
                "The whole table has weighted and pooled cosines too; p adj. is for the whole table (Benjamini-Hochberg).",
                "note",
            ),
        )
        title = f"Mean cosine on correct and incorrect paths, {self.questions} questions"
        return [Sheet(title, tuple(heads), tuple(rows), said)]


def compare_paths(run: Run, support: str = "visited", draws: int = 2000, flips: int = 10_000, seed: int = 0) -> PathComparison:
    """Compare the two kinds of path; a node on both counts on each by its share of rollouts (arXiv 2605.10889 compares nodes)."""
    require_sampled(run)
    nodes = run.frame("nodes", ["question", "node", "visits", "visits_wrong"], pc.field("scored"))
    rows = scored_rows(run, support).merge(
        nodes.assign(wrong=nodes["visits_wrong"] / nodes["visits"])[["question", "node", "wrong"]], on=["question", "node"]
    )
    if rows.empty:
        raise GradalignError("the run has no scored node; score with a larger --budget")
    rate = run.frame("questions", ["question", "pass_rate"]).set_index("question")["pass_rate"].dropna()
    frame, count = compare_rows(rows, draws, flips, seed)
    return PathComparison(frame, count, int(((rate == 0) | (rate == 1)).sum()))


def compare_rows(rows: pd.DataFrame, draws: int, flips: int, seed: int) -> tuple[pd.DataFrame, int]:
    """The `frame` of a comparison from rows of scored nodes with their share of `wrong` visits, and the number of questions."""
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
    return frame[[*first, *(column for column in frame.columns if column not in first)]], len(questions)


def _compared(rows: pd.DataFrame, questions: list[str], counts: np.ndarray, flips: int, seed: int) -> pd.DataFrame:
    """The three cosines of one teacher and objective."""
    sums = []
    for share in (1 - rows["wrong"], rows["wrong"]):
        summed = weigh(rows, rows["weight"] * share)[list(SUMS)].groupby(rows["question"]).sum()
        sums.append(summed.reindex(questions).fillna(0.0).to_numpy(dtype=np.float64))
    sums_PQS = np.stack(sums)
    whole = cosines(sums_PQS.sum(1))
    drawn = cosines(np.einsum("bq,pqs->pbs", counts, sums_PQS))
    own = cosines(sums_PQS)
    low, high = percentile_interval(drawn[1] - drawn[0], _contributing(sums_PQS))
    apart = own[1] - own[0]
    apart[:, 2] = np.nan  # a question's own pooled cosine is mostly noise
    known = np.isfinite(apart)
    mean_low, mean_high = percentile_interval(_means(counts, apart), known.sum(0))
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


def _contributing(sums_PQS: np.ndarray) -> np.ndarray:
    """Questions that each cosine rests on, on the kind of path where these are fewer: (C,)."""
    under = [sums_PQS[..., SUMS.index(name)] > 0 for name in ("informative", "cos_lengths", "cos_d2")]
    return np.stack(under, -1).sum(1).min(0)


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
    with warnings.catch_warnings():  # cosines may all be 1 but for rounding
        warnings.filterwarnings("ignore", "Precision loss", RuntimeWarning)
        welch = float(ttest_ind(wrong, right, equal_var=False).pvalue) if enough else np.nan
    ranks = float(mannwhitneyu(wrong, right).pvalue) if enough else np.nan
    return {
        "nodes_correct": [len(right)] * 3, "nodes_incorrect": [len(wrong)] * 3, "welch_p": [welch, np.nan, np.nan],
        "mannwhitney_p": [ranks, np.nan, np.nan],
    }  # fmt: skip


def _cosine(value: float) -> str:
    return number(value, "+.3f")
