"""How clear a question's gradient is at its pass rate, and the question weights that follow (PACED, arXiv 2603.11178). Pure numpy."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

_LEAST = 4  # different questions of a bin
_STEPS, _ZOOMS = 33, 4  # of the search for exponents
_MOST = 8.0  # an exponent beyond it weighs next to nothing but one end


def even_bins(pass_rate_Q: Float[np.ndarray, " Q"], bins: int) -> Float[np.ndarray, " E"]:
    """Edges of at most `bins` bins that hold about equally many questions."""
    return np.unique(np.quantile(pass_rate_Q, np.linspace(0, 1, bins + 1)))


@dataclass(frozen=True, eq=False)
class ClarityCurve:
    """Signal-to-noise ratio of the questions' steps in B bins of pass rate; NaN in a bin of fewer than four questions.

    The signal is the mean inner product of the steps of two different questions of the bin, the squared length of what they have in
    common; the noise is what a step's squared length has beyond it.
    """

    low_B: Float[np.ndarray, " B"]
    high_B: Float[np.ndarray, " B"]
    count_B: Float[np.ndarray, " B"]
    pass_rate_B: Float[np.ndarray, " B"]
    ratio_B: Float[np.ndarray, " B"]


def clarity_curves(
    step_QL: Float[np.ndarray, "Q L"],
    pass_rate_Q: Float[np.ndarray, " Q"],
    edges: Float[np.ndarray, " E"],
    count_DQ: Float[np.ndarray, "D Q"],
) -> list[ClarityCurve]:
    """The curves of questions' steps, in the E - 1 bins between ascending `edges` (the last one closed), one for each of D resamples.

    In a resample questions stand as often as `count_DQ` says. Its pairs of copies of one question are no pairs of different questions,
    and left out.
    """
    bins = len(edges) - 1
    place = np.clip(np.searchsorted(edges, pass_rate_Q, side="right") - 1, 0, bins - 1)
    shape = (len(count_DQ), bins)
    held, rate, ratio = np.zeros(shape), np.full(shape, np.nan), np.full(shape, np.nan)
    for b in range(bins):
        at = np.flatnonzero(place == b)
        w_DN, step_NL = count_DQ[:, at], step_QL[at].astype(np.float64)
        among_NN = step_NL @ step_NL.T
        own_N = np.einsum("nn->n", among_NN)
        count = w_DN.sum(1)
        held[:, b] = count
        with np.errstate(invalid="ignore", divide="ignore"):
            pairs = ((w_DN @ among_NN) * w_DN).sum(1) - w_DN**2 @ own_N
            signal = pairs / (count**2 - (w_DN**2).sum(1))
            noise = w_DN @ own_N / count - signal
            enough = (w_DN > 0).sum(1) >= _LEAST
            rate[:, b] = np.where(enough, w_DN @ pass_rate_Q[at] / count, np.nan)
            ratio[:, b] = np.where(enough & (noise > 0), np.maximum(signal, 0.0) / noise, np.nan)
    return [ClarityCurve(edges[:-1], edges[1:], held[d], rate[d], ratio[d]) for d in range(len(count_DQ))]


def fit_exponents(curves: Sequence[ClarityCurve]) -> Float[np.ndarray, "M 2"]:
    """alpha and beta of c p^alpha (1 - p)^beta nearest to each curve, bins weighed by their questions; NaN from fewer than four bins.

    For given exponents the nearest c is known, so only these are searched for: on a grid over 0 to 8, then on finer ones about the best.
    The sums over bins at all points of a grid are a product of two matrices, one for each exponent.
    """
    ratio = np.stack([curve.ratio_B for curve in curves])
    known = np.isfinite(ratio)
    p = np.clip(np.where(known, np.stack([curve.pass_rate_B for curve in curves]), 0.5), 0.005, 0.995)
    weight = np.where(known, np.stack([curve.count_B for curve in curves]), 0.0)
    target = np.where(known, ratio, 0.0)
    best, width = np.full((len(ratio), 2), _MOST / 2), _MOST / 2
    for _ in range(_ZOOMS):
        tried = np.clip(best[:, :, None] + np.linspace(-width, width, _STEPS), 0.0, _MOST)
        rise = np.exp(tried[:, 0, :, None] * np.log(p)[:, None])
        fall = np.exp(tried[:, 1, :, None] * np.log1p(-p)[:, None]).swapaxes(1, 2)
        over, under = (rise * (weight * target)[:, None]) @ fall, (rise**2 * weight[:, None]) @ fall**2
        told = (over**2 / np.maximum(under, np.finfo(float).tiny)).reshape(len(ratio), -1)
        at = np.stack(np.divmod(told.argmax(1), _STEPS), 1)
        best = np.take_along_axis(tried, at[:, :, None], 2)[:, :, 0]
        width /= (_STEPS - 1) / 4
    found = (known.sum(1) >= 4) & (target > 0).any(1)
    return np.where(found[:, None], best, np.nan)
