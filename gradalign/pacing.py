"""How clear a question's gradient is at its pass rate, and the question weights that follow (PACED, arXiv 2603.11178). Pure numpy."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

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


def clarity_curve(
    among_QQ: Float[np.ndarray, "Q Q"],
    pass_rate_Q: Float[np.ndarray, " Q"],
    edges: Float[np.ndarray, " E"],
    count_Q: Float[np.ndarray, " Q"] | None = None,
) -> ClarityCurve:
    """The curve from inner products of steps, in the E - 1 bins between ascending `edges` (the last one closed).

    `count_Q` says how often each question stands in a resample (once unless given).

    A resample's pairs of copies of one question are no pairs of different questions, and left out.
    """
    count = np.ones(len(pass_rate_Q)) if count_Q is None else count_Q
    bins = len(edges) - 1
    place = np.clip(np.searchsorted(edges, pass_rate_Q, side="right") - 1, 0, bins - 1)
    own = np.einsum("qq->q", among_QQ)
    held, rate, ratio = np.zeros(bins), np.full(bins, np.nan), np.full(bins, np.nan)
    for b in range(bins):
        at = (place == b) & (count > 0)
        w = count[at]
        held[b] = w.sum()
        if at.sum() < 4:
            continue
        rate[b] = (w * pass_rate_Q[at]).sum() / w.sum()
        pairs = w @ among_QQ[np.ix_(at, at)] @ w - (w**2 * own[at]).sum()
        signal = pairs / (w.sum() ** 2 - (w**2).sum())
        noise = (w * own[at]).sum() / w.sum() - signal
        ratio[b] = max(signal, 0.0) / noise if noise > 0 else np.nan
    return ClarityCurve(edges[:-1], edges[1:], held, rate, ratio)


def fit_exponents(curves: Sequence[ClarityCurve]) -> Float[np.ndarray, "M 2"]:
    """alpha and beta of c p^alpha (1 - p)^beta nearest to each curve, bins weighed by their questions; NaN from fewer than four bins.

    For given exponents the nearest c is known, so only these are searched for: on a grid over 0 to 8, then on finer ones about the best.
    """
    ratio = np.stack([curve.ratio_B for curve in curves])
    known = np.isfinite(ratio)
    p = np.clip(np.where(known, np.stack([curve.pass_rate_B for curve in curves]), 0.5), 0.005, 0.995)
    weight = np.where(known, np.stack([curve.count_B for curve in curves]), 0.0)
    target = np.where(known, ratio, 0.0)
    best, width = np.full((len(ratio), 2), _MOST / 2), _MOST / 2
    for _ in range(_ZOOMS):
        steps = np.linspace(-width, width, _STEPS)
        tried = np.clip(best[:, :, None] + steps, 0.0, _MOST)
        grid = np.stack(np.broadcast_arrays(tried[:, 0, :, None], tried[:, 1, None, :]), -1).reshape(len(ratio), -1, 2)
        shape = np.exp(grid[:, :, :1] * np.log(p)[:, None] + grid[:, :, 1:] * np.log1p(-p)[:, None])
        over, under = (weight * target)[:, None] * shape, weight[:, None] * shape**2
        told = over.sum(-1) ** 2 / np.maximum(under.sum(-1), np.finfo(float).tiny)
        best = np.take_along_axis(grid, told.argmax(1)[:, None, None], 1)[:, 0]
        width /= (_STEPS - 1) / 4
    found = (known.sum(1) >= 4) & (target > 0).any(1)
    return np.where(found[:, None], best, np.nan)
