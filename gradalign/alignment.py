"""Alignment of a node's distillation direction d with the ideal one g, and the pooled scores over nodes. Pure numpy.

Both supports share these formulas: on `full`, pi is the student's over the whole vocabulary and g is 0 at untried tokens; on
`visited`, pi and tau are renormalised on the tried tokens first (Unmasking On-Policy Distillation, arXiv 2605.10889).
The inner product <g, d> is linear in the success estimates, hence unbiased; |g|^2 is corrected for their variance.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import gamma

from gradalign.success import SuccessEstimates

SCORES = ("drive", "gain", "pooled_cosine", "weighted_cosine", "mean_cosine", "teacher_advantage")
INFORMATIVE_LEVEL = 0.05

Nodes = Float[np.ndarray, " N"]


@dataclass(frozen=True, eq=False)
class IdealDirection:
    """g at the tried tokens of N nodes, its squared length as estimated and corrected, and whether it can be told from 0."""

    g_NK: Float[np.ndarray, "N K"]
    norm2_N: Float[np.ndarray, " N"]
    corrected_norm2_N: Float[np.ndarray, " N"]
    informative_N: Bool[np.ndarray, " N"]
    value_N: Float[np.ndarray, " N"]


@dataclass(frozen=True, eq=False)
class NodeAlignment:
    """cos(g, d), <g, d> and its standard error (Bernoulli noise of the success estimates) for N nodes."""

    cosine_N: Float[np.ndarray, " N"]
    dot_N: Float[np.ndarray, " N"]
    dot_se_N: Float[np.ndarray, " N"]


def estimate_ideal_direction(
    probs_NK: Float[np.ndarray, "N K"], success: SuccessEstimates, tried_NK: Bool[np.ndarray, "N K"]
) -> IdealDirection:
    """g_j = pi_j (S_j - S_K) on the tried tokens, with S_K their pi-weighted mean, from estimates of S of shape (N, K)."""
    pi, mean = np.where(tried_NK, probs_NK, 0.0), np.where(tried_NK, success.mean, 0.0)
    value = _ratio((pi * mean).sum(1), pi.sum(1))
    g = pi * (mean - value[:, None])
    norm2 = (g**2).sum(1)
    influence_NKK = influence(pi)
    noise = np.where(tried_NK, success.variance, 0.0)
    corrected = norm2 - np.einsum("nkk,nk->n", influence_NKK, noise)
    return IdealDirection(g, norm2, corrected, _distinguishable(norm2, influence_NKK, success, tried_NK), value)


def influence(pi: Float[np.ndarray, "N K"]) -> Float[np.ndarray, "N K K"]:
    """A^T A for g = A S, A_jk = pi_j (delta_jk - pi_k / pi_K): E|g|^2 grows by the trace of A^T A diag(Var S)."""
    share = _ratio(pi, pi.sum(1, keepdims=True))
    a_NJK = pi[:, :, None] * (np.eye(pi.shape[1]) - share[:, None, :])
    return np.einsum("njk,njl->nkl", a_NJK, a_NJK)


def _distinguishable(
    norm2_N: np.ndarray, influence_NKK: np.ndarray, success: SuccessEstimates, tried_NK: np.ndarray
) -> Bool[np.ndarray, " N"]:
    """Is |g|^2 larger than noise alone makes it? Gamma approximation to its law where all S are alike (Satterthwaite, 1946)."""
    n = np.where(tried_NK, success.n, 0)
    pooled = (np.where(tried_NK, success.mean, 0.0) * n).sum(1) + 0.5
    pooled /= n.sum(1) + 1.0
    noise_NK = np.where(tried_NK & ~success.exact, (pooled * (1 - pooled))[:, None] / np.maximum(n, 1), 0.0)
    mean = np.einsum("nkk,nk->n", influence_NKK, noise_NK)
    variance = 2 * np.einsum("nkl,nk,nl->n", influence_NKK**2, noise_NK, noise_NK)
    with np.errstate(divide="ignore", invalid="ignore"):
        p_value = gamma.sf(norm2_N, a=mean**2 / variance, scale=variance / mean)
    return np.where(variance > 0, p_value < INFORMATIVE_LEVEL, norm2_N > 0) & (tried_NK.sum(1) >= 2)


def align(
    probs_NK: Float[np.ndarray, "N K"],
    success: SuccessEstimates,
    tried_NK: Bool[np.ndarray, "N K"],
    ideal: IdealDirection,
    direction_NK: Float[np.ndarray, "N K"],
    direction_norm2_N: Float[np.ndarray, " N"],
) -> NodeAlignment:
    """Inner product and cosine of g with a direction known at the tried tokens, of squared length `direction_norm2_N`."""
    pi, d = np.where(tried_NK, probs_NK, 0.0), np.where(tried_NK, direction_NK, 0.0)
    dot = (ideal.g_NK * d).sum(1)
    coefficient = pi * (d - _ratio((pi * d).sum(1, keepdims=True), pi.sum(1, keepdims=True)))
    variance = (coefficient**2 * np.where(tried_NK, success.smooth_variance, 0.0)).sum(1)
    return NodeAlignment(_cosine(dot, ideal.norm2_N, direction_norm2_N), dot, np.sqrt(variance))


def cosine(g: Float[np.ndarray, "*N V"], d: Float[np.ndarray, "*N V"]) -> Float[np.ndarray, "*N"]:
    """cos(g, d) along the last axis, the alignment of two directions, in [-1, 1]; NaN where either has no length."""
    return _cosine((g * d).sum(-1), (g**2).sum(-1), (d**2).sum(-1))


def _cosine(dot: np.ndarray, g_norm2: np.ndarray, d_norm2: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where((g_norm2 > 0) & (d_norm2 > 0), np.clip(dot / np.sqrt(g_norm2 * d_norm2), -1, 1), np.nan)


def drive(weight: Nodes, dot: Nodes) -> float:
    """sum w<g,d> / sum w: first-order gain in success for one unit of learning rate."""
    return float(_ratio((weight * dot).sum(), weight.sum()))


def gain(weight: Nodes, dot: Nodes, d_norm2: Nodes) -> float:
    """sum w<g,d> / sqrt(sum w|d|^2): first-order gain in success for one unit of step (weights of the mean question sum to its length)."""
    return float(_ratio((weight * dot).sum(), np.sqrt((weight * d_norm2).sum())))


def pooled_cosine(weight: Nodes, dot: Nodes, g_norm2: Nodes, d_norm2: Nodes) -> float:
    """sum w<g,d> / sqrt(sum w|g|^2 sum w|d|^2), with |g|^2 corrected for noise; NaN where its sum is not positive."""
    lengths = np.maximum((weight * g_norm2).sum(), 0) * (weight * d_norm2).sum()
    return float(_ratio((weight * dot).sum(), np.sqrt(lengths)))


def weighted_cosine(weight: Nodes, dot: Nodes, g_norm2: Nodes, d_norm2: Nodes) -> float:
    """sum w<g,d> / sum w|g||d|, with |g|^2 as estimated."""
    return float(_ratio((weight * dot).sum(), (weight * np.sqrt(g_norm2 * d_norm2)).sum()))


def mean_cosine(weight: Nodes, cos: Nodes, informative: Bool[np.ndarray, " N"]) -> float:
    """sum w cos / sum w over informative nodes whose cosine is defined."""
    useful = informative & ~np.isnan(cos)
    return float(_ratio((weight * cos)[useful].sum(), weight[useful].sum()))


def teacher_advantage(weight: Nodes, advantage: Nodes) -> float:
    """sum w A / sum w with A = sum_k (tau_k - pi_k) S_k: what the nodes would gain if the student became the teacher there."""
    return float(_ratio((weight * advantage).sum(), weight.sum()))


@dataclass(frozen=True, eq=False)
class ScoreSums:
    """Sums over nodes from which every pooled score follows; each array (..., ) has one entry a question, say.

    `weight` sum of w, or better what it estimates, where that is known;
    `dot` w<g,d> on the full support; `d_norm2` w|d|^2; `advantage` w sum_k (tau_k - pi_k) S_k; and on the
    support chosen for the cosines: `cos_dot` w<g,d>, `cos_g2` w|g|^2 corrected, `cos_d2` w|d|^2, `cos_lengths` w|g||d|,
    `cos` w cos over informative nodes and `informative` their w.
    """

    weight: np.ndarray
    dot: np.ndarray
    d_norm2: np.ndarray
    advantage: np.ndarray
    cos_dot: np.ndarray
    cos_g2: np.ndarray
    cos_d2: np.ndarray
    cos_lengths: np.ndarray
    cos: np.ndarray
    informative: np.ndarray

    def map(self, change: Callable[[np.ndarray], np.ndarray]) -> "ScoreSums":
        """The same sums with `change` applied to each array, such as a resampling of questions."""
        return ScoreSums(**{name: change(array) for name, array in vars(self).items()})


def pooled_scores(sums: ScoreSums) -> dict[str, np.ndarray]:
    """The scores by name, as the functions of those names give them; NaN where a denominator is not positive."""
    return {
        "drive": _ratio(sums.dot, sums.weight),
        "gain": _ratio(sums.dot, np.sqrt(np.maximum(sums.d_norm2, 0))),
        "pooled_cosine": _ratio(sums.cos_dot, np.sqrt(np.maximum(sums.cos_g2, 0) * np.maximum(sums.cos_d2, 0))),
        "weighted_cosine": _ratio(sums.cos_dot, sums.cos_lengths),
        "mean_cosine": _ratio(sums.cos, sums.informative),
        "teacher_advantage": _ratio(sums.advantage, sums.weight),
    }


def _ratio(numerator: np.ndarray | np.floating, denominator: np.ndarray | np.floating) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(denominator > 0, numerator / denominator, np.nan)
