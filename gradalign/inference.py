"""Statistics over questions, which are independent where nodes of one question are not. Pure numpy."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int


def bootstrap_counts(questions: int, draws: int, seed: int) -> Int[np.ndarray, "B Q"]:
    """How often each question is drawn in each of `draws` resamples of whole questions (the cluster bootstrap)."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(questions, np.full(questions, 1 / questions), size=draws)


def percentile_interval(draws: Float[np.ndarray, "B ..."], level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Percentile bootstrap interval along the first axis; NaN draws (an undefined resample) are left out."""
    tail = 100 * (1 - level) / 2
    defined = ~np.isnan(draws).all(axis=0)
    low, high = np.full(draws.shape[1:], np.nan), np.full(draws.shape[1:], np.nan)
    if defined.any():
        low[defined], high[defined] = np.nanpercentile(draws[:, defined], [tail, 100 - tail], axis=0)
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


def compare_with_best(score_M: Float[np.ndarray, " M"], draws_BM: Float[np.ndarray, "B M"]) -> BestOf:
    """Compare alternatives scored on the same questions: `draws_BM` are their scores on shared resamples of questions."""
    best = int(np.nanargmax(score_M))
    difference = draws_BM - draws_BM[:, [best]]
    low, high = percentile_interval(difference)
    filled = np.where(np.isnan(draws_BM), -np.inf, draws_BM)
    winners = filled == filled.max(axis=1, keepdims=True)
    defined = np.isfinite(draws_BM).any(axis=1)
    shares = winners / winners.sum(axis=1, keepdims=True)
    probability = shares[defined].mean(axis=0) if defined.any() else np.full(len(score_M), np.nan)
    tied = ~(high < 0)
    tied[best] = True
    return BestOf(best, score_M - score_M[best], low, high, probability, tied)
