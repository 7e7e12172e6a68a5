"""How clear a question's gradient is at its pass rate, and the question weights that follow (PACED, arXiv 2603.11178). Pure numpy."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.optimize import curve_fit

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


def fit_exponents(curve: ClarityCurve) -> tuple[float, float]:
    """alpha and beta of c p^alpha (1 - p)^beta nearest to the curve, bins weighed by their questions; NaN from fewer than four bins.

    Exponents lie between 0 and 8.
    """
    known = np.isfinite(curve.ratio_B)
    if known.sum() < 4 or not (curve.ratio_B[known] > 0).any():
        return np.nan, np.nan
    p, ratio = np.clip(curve.pass_rate_B[known], 0.005, 0.995), curve.ratio_B[known]
    scale = float(ratio.max())

    def shape(p: np.ndarray, c: float, alpha: float, beta: float) -> np.ndarray:
        return c * p**alpha * (1 - p) ** beta

    try:
        found, _ = curve_fit(
            shape, p, ratio / scale, p0=(4.0, 1.0, 1.0), sigma=1 / np.sqrt(curve.count_B[known]),
            bounds=([0.0, 0.0, 0.0], [np.inf, _MOST, _MOST]), maxfev=2000,
        )  # fmt: skip
    except RuntimeError:  # it found no minimum
        return np.nan, np.nan
    return float(found[1]), float(found[2])
