"""What a rollout brings after a token, other than its reward: returns along paths, and directions estimated from them. Pure numpy.

Some objectives move the logits by d + s pi_j (X_j - sum_k pi_k X_k), where d is known from the two models and X_k is an expectation
over the student's continuations after k: of later log-ratios for MiniLLM, of the reward itself for a reward-reweighted target. X and
success then come from the same rollouts, and products of the two are corrected for the noise that they share.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from gradalign.alignment import IdealDirection, NodeAlignment, align, influence
from gradalign.success import SuccessEstimates
from gradalign.totals import Passage


def future_returns(
    ratio_RT: Float[np.ndarray, "R T"], there_RT: Bool[np.ndarray, "R T"], gamma: float, normalised: bool = False
) -> Float[np.ndarray, "R T"]:
    """For each step, the sum over later steps of gamma^(steps ahead) ratio; `normalised` by their number (MiniLLM, arXiv 2306.08543)."""
    future, later = np.zeros(ratio_RT.shape), np.zeros(ratio_RT.shape)
    for t in range(ratio_RT.shape[1] - 2, -1, -1):
        goes_on = there_RT[:, t + 1]
        future[:, t] = np.where(goes_on, gamma * (ratio_RT[:, t + 1] + future[:, t + 1]), 0.0)
        later[:, t] = np.where(goes_on, 1 + later[:, t + 1], 0.0)
    return future / np.maximum(later, 1) if normalised else future


@dataclass(frozen=True, eq=False)
class Returns:
    """X at branches (any shape, here "B"): its mean, the variance of that, and its covariance with the mean reward; NaN where unknown."""

    mean: Float[np.ndarray, "*B"]
    variance: Float[np.ndarray, "*B"]
    covariance: Float[np.ndarray, "*B"]


def success_as_returns(success: SuccessEstimates) -> Returns:
    """Where X is success itself."""
    return Returns(success.mean, success.variance, success.variance)


def branch_returns(
    flow: Passage,
    reward_R: Float[np.ndarray, " R"],
    return_RT: Float[np.ndarray, "R T"],
    exact: Bool[np.ndarray, "*B"],
    child: Int[np.ndarray, "*B"],
) -> Returns:
    """Means over the rollouts that are valid at each branch, named by the `child` it leads to (-1: none); `exact` ones end the rollout."""
    tree, there = flow.tree, child >= 0
    steps = np.arange(tree.path_RT.shape[1])
    valid_RT = (tree.path_RT >= 0) & (steps >= flow.forced_R[:, None])
    to, reward_RT = tree.path_RT[valid_RT], np.broadcast_to(reward_R[:, None], tree.path_RT.shape)

    def total(weight_RT: np.ndarray) -> np.ndarray:
        return np.where(there, np.bincount(to, weights=weight_RT[valid_RT], minlength=len(tree))[child], 0.0)

    n, x, r = total(np.ones(tree.path_RT.shape)), total(return_RT), total(reward_RT)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = np.where(n > 0, x / n, np.nan)
        variance = (total(return_RT**2) / n - mean**2) / (n - 1)
        covariance = (total(return_RT * reward_RT) / n - mean * r / n) / (n - 1)
    known = np.where(exact, 0.0, np.nan)
    return Returns(mean, np.where(n >= 2, variance, known), np.where(n >= 2, covariance, known))


def return_coefficients(
    flow: Passage,
    return_RT: Float[np.ndarray, "R T"],
    mean_BK: Float[np.ndarray, "B K"],
    place_BK: Int[np.ndarray, "B K"],
    node_B: Int[np.ndarray, " B"],
) -> Float[np.ndarray, "B K"]:
    """c such that sum_u sum_k c_uk (e_k - pi_u) estimates sum_u visits_u pi (X - mean X) without bias, from the base rollouts' steps.

    A step counts with the mean of all returns at its branch, less the mean at that depth of the other base rollouts.
    """
    tree, base = flow.tree, flow.forced_R < 0
    there_RT = (tree.path_RT >= 0) & base[:, None]
    alive_T, total_T = there_RT.sum(0), (return_RT * there_RT).sum(0)
    baseline_RT = np.where(there_RT, (total_T - return_RT) / np.maximum(alive_T - 1, 1) * (alive_T > 1), 0.0)
    to = tree.path_RT[there_RT]
    taken_N = np.bincount(to, minlength=len(tree))
    compared_N = np.bincount(to, weights=baseline_RT[there_RT], minlength=len(tree))
    child = np.maximum(place_BK, 0)
    taken_BK = np.where(place_BK >= 0, taken_N[child], 0)
    compared_BK = np.where(place_BK >= 0, compared_N[child], 0.0)
    return (taken_BK * np.where(taken_BK > 0, mean_BK, 0.0) - compared_BK) / base.sum()


@dataclass(frozen=True, eq=False)
class OnSupport:
    """M nodes on one support: pi, success and g at K tokens, which of them were tried, and the direction that the two models tell.

    `known_norm2_M` is the squared length of that direction over the whole vocabulary.
    """

    probs_MK: Float[np.ndarray, "M K"]
    teacher_probs_MK: Float[np.ndarray, "M K"]
    success: SuccessEstimates
    tried_MK: Bool[np.ndarray, "M K"]
    ideal: IdealDirection
    known_MK: Float[np.ndarray, "M K"]
    known_norm2_M: Float[np.ndarray, " M"]

    def at_tried(self, values_MK: Float[np.ndarray, "M K"]) -> Float[np.ndarray, "M K"]:
        """The values at tried tokens, 0 elsewhere."""
        return np.where(self.tried_MK, values_MK, 0.0)

    def aligned(self, direction_MK: Float[np.ndarray, "M K"], norm2_M: Float[np.ndarray, " M"]) -> NodeAlignment:
        """g with a direction that is given at these tokens."""
        return align(self.probs_MK, self.success, self.tried_MK, self.ideal, direction_MK, norm2_M)


@dataclass(frozen=True, eq=False)
class OutcomeAlignment:
    """At M nodes: alignment of the whole direction, and what its estimated part adds to <g, d> and to |d|^2 (both corrected for noise)."""

    node: NodeAlignment
    dot_M: Float[np.ndarray, " M"]
    norm2_M: Float[np.ndarray, " M"]


def align_outcome(on: OnSupport, returns: Returns, scale: float) -> OutcomeAlignment:
    """Align g with d = known + scale pi (X - mean X), X at the tried tokens and at its mean elsewhere, as success is on this support.

    The cosine is that of the two directions as estimated; <g, d> and |d|^2 are free of the noise that S and X share.
    """
    pi, x = on.at_tried(on.probs_MK), on.at_tried(returns.mean)
    held = pi.sum(1, keepdims=True)
    mean = np.divide((pi * x).sum(1, keepdims=True), held, out=np.zeros_like(held), where=held > 0)
    moved = scale * pi * (x - mean)
    trace_MK = np.einsum("mkk->mk", influence(pi))
    shared = scale * (trace_MK * on.at_tried(returns.covariance)).sum(1)
    own = scale**2 * (trace_MK * on.at_tried(returns.variance)).sum(1)
    known = on.at_tried(on.known_MK)
    added = 2 * (known * moved).sum(1) + (moved**2).sum(1)
    raw = on.aligned(known + moved, on.known_norm2_M + added)
    extra = (on.ideal.g_NK * moved).sum(1) - shared
    return OutcomeAlignment(NodeAlignment(raw.cosine_N, raw.dot_N - shared, raw.dot_se_N), extra, added - own)
