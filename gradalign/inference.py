"""Statistics over questions, which are independent where nodes of one question are not. Pure numpy."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import norm
from scipy.stats import t as student_t

LEAST_UNITS = 4  # questions that say how much questions differ
_FLIPS = 500  # sign flips at once
_AT_ONCE = 100  # resamples


def bootstrap_counts(questions: int, draws: int, seed: int) -> Int[np.ndarray, "B Q"]:
    """How often each question is drawn in each of `draws` resamples of whole questions (the cluster bootstrap)."""
    return Resamples(questions, draws, seed).counts_BQ.astype(np.int64)


class Resamples:
    """Resamples of whole questions (the cluster bootstrap), kept small: how often each question is in each, `counts_BQ`."""

    def __init__(self, questions: int, draws: int, seed: int):
        self.draws, rng = draws, np.random.default_rng(seed)
        self.counts_BQ = np.empty((draws, questions), dtype=np.uint16)
        for start in range(0, draws, _AT_ONCE):
            some = self.counts_BQ[start : start + _AT_ONCE]
            some[:] = rng.multinomial(questions, np.full(questions, 1 / questions), size=len(some))

    def means(self, values_MQ: Float[np.ndarray, "M Q"]) -> Float[np.ndarray, "B M"]:
        """The mean over questions in each resample."""
        at_once = [self.counts_BQ[start : start + _AT_ONCE] for start in range(0, self.draws, _AT_ONCE)]
        return np.concatenate([some @ values_MQ.T for some in at_once]) / self.counts_BQ.shape[1]


def percentile_interval(
    draws: Float[np.ndarray, "B ..."], units: int | Int[np.ndarray, "..."], level: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile bootstrap interval along the first axis; NaN draws (an undefined resample) are left out.

    A resample of `units` (the questions that have a value, one number or one for each column) varies less than a sample does, and its
    percentiles are those of a normal law where t would be due: they are taken so much farther out that a mean's interval is as wide as t's
    (expanded percentiles; Hesterberg, 2015). NaN for fewer than `LEAST_UNITS`.
    """
    low, high = np.full(draws.shape[1:], np.nan), np.full(draws.shape[1:], np.nan)
    counts = np.broadcast_to(np.asarray(units), draws.shape[1:])
    for n in np.unique(counts[counts >= LEAST_UNITS]):
        at = (counts == n) & ~np.isnan(draws).all(axis=0)
        if at.any():
            tail = 100 * float(norm.sf(np.sqrt(n / (n - 1)) * student_t.isf((1 - level) / 2, n - 1)))
            low[at], high[at] = np.nanpercentile(draws[:, at], [tail, 100 - tail], axis=0)
    return low, high


@dataclass(frozen=True, eq=False)
class BestOf:
    """Of M alternatives: paired difference to the best with its interval, probability of being best, not told from it."""

    best: int
    difference_M: Float[np.ndarray, " M"]
    low_M: Float[np.ndarray, " M"]
    high_M: Float[np.ndarray, " M"]
    probability_M: Float[np.ndarray, " M"]
    tied_M: np.ndarray


def compare_with_best(
    score_M: Float[np.ndarray, " M"],
    best: int,
    influence_MQ: Float[np.ndarray, "M Q"] | None,
    draws_BM: Float[np.ndarray, "B M"],
    units_M: Int[np.ndarray, " M"] | None = None,
) -> BestOf:
    """Compare alternatives scored on the same questions with the best of them, by paired differences.

    `influence_MQ` is each question's influence on each difference to the best, `draws_BM` the scores on shared resamples of questions;
    intervals come from the influences where there are any, else from the draws, with the `units_M` questions that each rests on.
    """
    if influence_MQ is None:
        assert units_M is not None
        low, high = percentile_interval(draws_BM - draws_BM[:, [best]], np.minimum(units_M, units_M[best]))
    else:
        low, high = influence_interval(score_M - score_M[best], influence_MQ)
    filled = np.where(np.isnan(draws_BM), -np.inf, draws_BM)
    winners = filled == filled.max(axis=1, keepdims=True)
    defined = np.isfinite(draws_BM).any(axis=1)
    shares = winners / winners.sum(axis=1, keepdims=True)
    probability = shares[defined].mean(axis=0) if defined.any() else np.full(len(score_M), np.nan)
    tied = ~(high < 0) & ~np.isnan(score_M)
    tied[best] = True
    return BestOf(best, score_M - score_M[best], low, high, probability, tied)


def influence_interval(
    estimate: Float[np.ndarray, " M"], influence: Float[np.ndarray, "M Q"], tail: float = 0.025
) -> tuple[Float[np.ndarray, " M"], Float[np.ndarray, " M"]]:
    """Interval with `tail` probability on either side from each question's influence on the estimate; NaN for one question.

    Questions are independent, and often skewed: a few matter much. Each end is the farther out of Student's t and of t with
    Hall's correction for skewness (1992), both with `effective_freedom`. On 32 questions 95% intervals of a gain cover 93.8 to 95.3%,
    those of paired differences 94.6 to 96.9% (`benchmarks/estimators.py`); plain t covers 91 to 94% for a gain.
    """
    questions = influence.shape[1]
    if questions < 2:
        return np.full(len(estimate), np.nan), np.full(len(estimate), np.nan)
    error, quantile = standard_error(influence), student_t.ppf(1 - tail, effective_freedom(influence))
    with np.errstate(divide="ignore", invalid="ignore"):
        skew = np.nan_to_num((influence**3).mean(1) / influence.std(axis=1) ** 3) / np.sqrt(questions)
    low = np.minimum(-quantile, -_unskewed(quantile, skew))
    high = np.maximum(quantile, -_unskewed(-quantile, skew))
    return estimate + low * error, estimate + high * error


def _unskewed(quantile: np.ndarray, skew: np.ndarray) -> np.ndarray:
    """The quantile of a studentised mean whose parts have this skewness over sqrt(Q): inverse of Hall's cubic transformation."""
    a = np.where(np.abs(skew) < 1e-6, 1e-6, skew)
    return 3 / a * (np.cbrt(1 + a * (quantile - a / 6)) - 1)


def upper_bound(estimate: Float[np.ndarray, " M"], influence: Float[np.ndarray, "M Q"], tail: float) -> Float[np.ndarray, " M"]:
    """One-sided bound by Student's t with Q - 1 degrees of freedom.

    For decisions at levels far out, where the allowances of `influence_interval` would cost most of the power; what it errs is
    measured by `benchmarks/deciding.py`.
    """
    return estimate + student_t.ppf(1 - tail, influence.shape[1] - 1) * standard_error(influence)


def standard_error(influence: Float[np.ndarray, "M Q"]) -> Float[np.ndarray, " M"]:
    """Standard error of an estimate from each question's influence on it."""
    return influence.std(axis=1, ddof=1) / np.sqrt(influence.shape[1])


def effective_freedom(influence: Float[np.ndarray, "M Q"]) -> Float[np.ndarray, " M"]:
    """How many degrees of freedom the variance over Q questions is worth: 2 / its squared relative error, from the kurtosis; at most Q - 1.

    A few questions that matter much more than the others leave the variance less sure than Q - 1 normal ones would (Satterthwaite, 1946).
    """
    questions = influence.shape[1]
    most = np.full(len(influence), questions - 1.0)
    if questions < 4:
        return most
    centred = influence - influence.mean(1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        biased = (centred**4).mean(1) / (centred**2).mean(1) ** 2 - 3
    excess = np.nan_to_num((questions - 1) / ((questions - 2) * (questions - 3)) * ((questions + 1) * biased + 6))
    spread = excess + 3 - (questions - 3) / (questions - 1)  # Q times the squared relative error
    return np.where(spread > 2 * questions / most, 2 * questions / spread, most)


def sign_flip_p(difference_MQ: Float[np.ndarray, "M Q"], draws: int = 10_000, seed: int = 0) -> Float[np.ndarray, " M"]:
    """Two-sided p that M means over questions are 0, from random signs of each question's paired difference; NaN from fewer than two.

    Valid where each difference is as likely as its opposite. NaN differences are left out. All M rows meet the same signs, so memory does
    not grow with `draws` x M x Q.
    """
    known = np.isfinite(difference_MQ)
    filled = np.where(known, difference_MQ, 0.0)
    observed = np.abs(filled.sum(1))
    rng, reached = np.random.default_rng(seed), np.zeros(len(filled))
    for start in range(0, draws, _FLIPS):
        signs = rng.integers(0, 2, (min(_FLIPS, draws - start), filled.shape[1])) * 2.0 - 1.0
        reached += (np.abs(signs @ filled.T) >= observed * (1 - 1e-9)).sum(0)
    return np.where(known.sum(1) >= 2, (1 + reached) / (1 + draws), np.nan)
