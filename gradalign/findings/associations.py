"""What goes with alignment? Weighted rank correlations with numbers of the node, within and across questions. Pure numpy.

Alignment is estimated, so every correlation with it is drawn toward 0; its sign and order are what to read.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from gradalign.inference import percentile_interval

Nodes = Float[np.ndarray, " N"]


@dataclass(frozen=True, eq=False)
class RankCorrelation:
    """A correlation with its 95% interval over questions; NaN where it is undefined."""

    value: float
    low: float
    high: float


def weighted_ranks(x_N: Nodes, weight_N: Nodes, group_N: Int[np.ndarray, " N"]) -> Nodes:
    """Place of each value among those of its group, in (0, 1): the share of weight below it and half of that at it (ties alike)."""
    order = np.lexsort((x_N, group_N))
    x, weight, group = x_N[order], weight_N[order], group_N[order]
    new_group = np.diff(group, prepend=group[:1] - 1) != 0
    new_value = new_group | (np.diff(x, prepend=np.nan) != 0)
    block, part = np.cumsum(new_value) - 1, np.cumsum(new_group) - 1
    of_block, of_part = np.bincount(block, weight), np.bincount(part, weight)
    first = np.flatnonzero(new_value)
    below = np.cumsum(of_block) - of_block - (np.cumsum(of_part) - of_part)[part[first]]
    ranks = np.empty(len(x))
    ranks[order] = ((below + of_block / 2) / of_part[part[first]])[block]
    return ranks


def within_questions(
    x_N: Nodes, y_N: Nodes, weight_N: Nodes, question_N: Int[np.ndarray, " N"], counts_BQ: Float[np.ndarray, "B Q"]
) -> RankCorrelation:
    """Spearman's correlation of nodes ranked within their question, pooled over questions: what differs between questions is out of it."""
    x, y = (weighted_ranks(values, weight_N, question_N) - 0.5 for values in (x_N, y_N))
    return _bootstrapped(x, y, weight_N, question_N, counts_BQ, centred=True)


def over_nodes(
    x_N: Nodes, y_N: Nodes, weight_N: Nodes, question_N: Int[np.ndarray, " N"], counts_BQ: Float[np.ndarray, "B Q"]
) -> RankCorrelation:
    """Spearman's correlation over all nodes together, whole questions resampled (ranks stay as they are)."""
    one = np.zeros(len(x_N), dtype=np.int64)
    x, y = (weighted_ranks(values, weight_N, one) for values in (x_N, y_N))
    return _bootstrapped(x, y, weight_N, question_N, counts_BQ)


def across_questions(
    x_N: Nodes, y_N: Nodes, weight_N: Nodes, question_N: Int[np.ndarray, " N"], counts_BQ: Float[np.ndarray, "B Q"]
) -> RankCorrelation:
    """Spearman's correlation of the questions' means."""
    held = np.bincount(question_N, weight_N, counts_BQ.shape[1])
    known = np.flatnonzero(held > 0)
    one, zero = np.ones(len(known)), np.zeros(len(known), dtype=np.int64)
    x, y = (
        weighted_ranks(np.bincount(question_N, weight_N * values, counts_BQ.shape[1])[known] / held[known], one, zero)
        for values in (x_N, y_N)
    )
    return _bootstrapped(x, y, one, known, counts_BQ)


def _bootstrapped(
    x_N: Nodes, y_N: Nodes, weight_N: Nodes, question_N: np.ndarray, counts_BQ: np.ndarray, centred: bool = False
) -> RankCorrelation:
    """Pearson's correlation of ranks from sums by question; `centred` ranks have mean 0 in every question."""
    terms = (x_N**2, y_N**2, x_N * y_N) if centred else (np.ones(len(x_N)), x_N, y_N, x_N**2, y_N**2, x_N * y_N)
    sums_QS = np.stack([np.bincount(question_N, weight_N * term, counts_BQ.shape[1]) for term in terms], -1)
    value = float(_correlation(sums_QS.sum(0)))
    low, high = percentile_interval(_correlation(counts_BQ @ sums_QS), int((sums_QS[:, 0] > 0).sum()))
    return RankCorrelation(value, float(low), float(high))


def _correlation(sums: np.ndarray) -> np.ndarray:
    if sums.shape[-1] == 3:
        xx, yy, xy = np.moveaxis(sums, -1, 0)
    else:
        n, x, y, xx, yy, xy = np.moveaxis(sums, -1, 0)
        with np.errstate(invalid="ignore", divide="ignore"):
            xx, yy, xy = xx - x**2 / n, yy - y**2 / n, xy - x * y / n
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where((xx > 1e-12) & (yy > 1e-12), xy / np.sqrt(xx * yy), np.nan)
