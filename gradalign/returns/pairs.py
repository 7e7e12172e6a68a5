"""Pairs of a teacher's and a student's rollout (PBSD, arXiv 2605.05040): their weights, and the direction these make at a node. Pure numpy.

PBSD's loss is -log sigma(beta [rho(y+) - rho(y-)]) with rho = log pi - log tau, y+ from the teacher, y- from the student. Its gradient
weighs both rollouts of a pair by w = sigma(-beta [rho(y+) - rho(y-)]), and at a node u, per unit of student visitation, it moves the
logits by beta { r (tau_j W+_j - pi_j sum_k tau_k W+_k) - pi_j (W-_j - sum_k pi_k W-_k) }, with W-_k and W+_k the mean weight of student's
and of teacher's rollouts through (u, k), and r = tau(u) / pi(u). This form per node is this project's own derivation.

Ratios of probabilities are kept as logarithms throughout: l = log tau - log pi, so that rho = -l.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import expit

from gradalign.alignment import NodeAlignment
from gradalign.returns.paths import OnSupport, OutcomeAlignment, Returns, branch_returns
from gradalign.totals import Passage

_LARGEST = 30.0  # nats; a ratio of prefixes beyond e^30 is taken for that


@dataclass(frozen=True, eq=False)
class PairWeights:
    """Mean weights over pairs: of R student's rollouts as y- (`student_R`) and as if they were y+ (`as_teacher_R`), of P teacher's as y+.

    `information` is the mean of 4 w (1 - w): 1 where all pairs are even, near 0 where the loss has nothing left to tell them apart by.
    """

    student_R: Float[np.ndarray, " R"]
    as_teacher_R: Float[np.ndarray, " R"]
    teacher_P: Float[np.ndarray, " P"]
    information: float


def pair_weights(
    log_ratio_R: Float[np.ndarray, " R"], base_R: Bool[np.ndarray, " R"], log_ratio_P: Float[np.ndarray, " P"], beta: float
) -> PairWeights:
    """Weights from log tau - log pi of whole rollouts; only `base_R` rollouts were sampled from the prompt on and stand as y- in pairs."""
    w_PR = expit(beta * (log_ratio_P[:, None] - log_ratio_R[None, :]))
    among_RB = expit(beta * (log_ratio_R[:, None] - log_ratio_R[None, base_R]))
    own_R = np.where(base_R, 0.5, 0.0)  # a rollout makes no pair with itself
    others_R = base_R.sum() - base_R
    with np.errstate(invalid="ignore"):
        as_teacher = np.where(others_R > 0, (among_RB.sum(1) - own_R) / others_R, 0.5)
    even = w_PR[:, base_R]
    return PairWeights(w_PR.mean(0), as_teacher, even.mean(1), float((4 * even * (1 - even)).mean()))


def effective_share(prefix_RT: Float[np.ndarray, "R T"], there_RT: Bool[np.ndarray, "R T"]) -> float:
    """Effective sample size of the ratios r = exp(log tau(u) - log pi(u)) over the steps of base rollouts, as a share of their number."""
    log_r = prefix_RT[there_RT]
    r = np.exp(log_r - log_r.max())
    return float(r.sum() ** 2 / (len(r) * (r**2).sum()))


@dataclass(frozen=True, eq=False)
class PairReturns:
    """W- and W+ at branches, each with its noise, and the covariance of the two; NaN where unknown."""

    minus: Returns
    plus: Returns
    shared: Float[np.ndarray, "*B"]


def pair_returns(
    flow: Passage,
    reward_R: Float[np.ndarray, " R"],
    weights: PairWeights,
    later_RT: Float[np.ndarray, "R T"],
    teacher_path_PT: Int[np.ndarray, "P T2"],
    teacher_later_PT: Float[np.ndarray, "P T2"],
    exact: Bool[np.ndarray, "*B"],
    child: Int[np.ndarray, "*B"],
) -> PairReturns:
    """Means at branches, named by the `child` that they lead to (-1: none); `exact` ones end the rollout.

    W- is a mean over the student's rollouts that are valid there. W+ is one over both models' rollouts, each weighed by how much likelier
    the teacher is to go on so than the mixture of the two they come from (balance heuristic; Veach and Guibas, 1995), weights
    normalised. `later` is log tau - log pi of what follows each step, `teacher_path` the node each step of a teacher's rollout leads to, -1
    where the tree has none.
    """
    tree, there = flow.tree, child >= 0
    valid_RT = (tree.path_RT >= 0) & (np.arange(tree.path_RT.shape[1]) >= flow.forced_R[:, None])
    minus_RT = np.broadcast_to(weights.student_R[:, None], valid_RT.shape)
    minus = branch_returns(flow, reward_R, minus_RT, exact, child)
    known_PT = teacher_path_PT >= 0
    to = np.concatenate([tree.path_RT[valid_RT], teacher_path_PT[known_PT]])
    mine = np.concatenate([np.ones(valid_RT.sum()), np.zeros(known_PT.sum())])
    later = np.concatenate([later_RT[valid_RT], teacher_later_PT[known_PT]])
    value = np.concatenate(
        [
            np.broadcast_to(weights.as_teacher_R[:, None], valid_RT.shape)[valid_RT],
            np.broadcast_to(weights.teacher_P[:, None], known_PT.shape)[known_PT],
        ]
    )
    reward = np.concatenate([np.broadcast_to(reward_R[:, None], valid_RT.shape)[valid_RT], np.zeros(known_PT.sum())])
    lost = np.concatenate([minus_RT[valid_RT], np.zeros(known_PT.sum())])

    def total(weight: np.ndarray) -> np.ndarray:
        return np.bincount(to, weights=weight, minlength=len(tree))

    students, teachers = total(mine), total(1 - mine)
    with np.errstate(divide="ignore", invalid="ignore"):
        log_a = -np.logaddexp(np.log(teachers)[to], np.log(students)[to] - later)
        highest = np.full(len(tree), -np.inf)
        np.maximum.at(highest, to, log_a)
        a = np.exp(log_a - highest[to])
        share = a / total(a)[to]
        mean = total(share * value)
        off = share * (value - mean[to])
        count, n = students + teachers, students
        spread, per = count / (count - 1), 1 / (n - 1)
        variance = total(off**2) * spread
        covariance = total(off * mine * (reward - (total(mine * reward) / n)[to])) * per
        shared = total(off * mine * (lost - (total(mine * lost) / n)[to])) * per
    sure = np.where(exact, 0.0, np.nan)
    plus = Returns(
        np.where(there & (count > 0)[child], mean[child], np.nan),
        np.where(there & (count > 1)[child], variance[child], sure),
        np.where(there & (n > 1)[child], covariance[child], sure),
    )
    return PairReturns(minus, plus, np.where(there & (n > 1)[child], shared[child], sure))


def align_pairs(
    on: OnSupport, pairs: PairReturns, log_prefix_ratio_M: Float[np.ndarray, " M"], beta: float
) -> OutcomeAlignment:
    """Align g with PBSD's direction; untried tokens take the mean W of the tried ones, W+ by tau and W- by pi.

    What is known beforehand is beta / 2 (tau - pi): the direction where every pair is even and the prefix as likely under both. Products
    are free of the noise that the node's own rollouts bring to both factors; that of the pairs, which all nodes share, stays.
    """
    pi, tau = on.at_tried(on.probs_MK), on.at_tried(on.teacher_probs_MK)
    share, lean = (part / np.where(part.sum(1) > 0, part.sum(1), 1.0)[:, None] for part in (pi, tau))
    r = beta * np.exp(np.minimum(log_prefix_ratio_M, _LARGEST))[:, None]
    plus, minus = on.at_tried(pairs.plus.mean), on.at_tried(pairs.minus.mean)
    level = (lean * plus).sum(1, keepdims=True)
    d = r * (tau * plus - pi * level) - beta * pi * (minus - (share * minus).sum(1, keepdims=True))
    away = np.maximum(on.known_norm2_M * (2 / beta) ** 2 - ((tau - pi) ** 2).sum(1), 0.0)
    eye = np.eye(pi.shape[1])
    to_g = pi[:, :, None] * (eye - share[:, None, :])  # g = to_g S, d = to_plus W+ - beta to_g W-
    to_plus = r[:, :, None] * (tau[:, :, None] * eye - pi[:, :, None] * lean[:, None, :])

    def noise(left: np.ndarray, right: np.ndarray, covariance_MK: np.ndarray) -> np.ndarray:
        return (np.einsum("mjk,mjk->mk", left, right) * on.at_tried(covariance_MK)).sum(1)

    with_g = noise(to_g, to_plus, pairs.plus.covariance) - beta * noise(to_g, to_g, pairs.minus.covariance)
    own = noise(to_plus, to_plus, pairs.plus.variance) + beta**2 * noise(to_g, to_g, pairs.minus.variance)
    own = own - 2 * beta * noise(to_plus, to_g, pairs.shared)
    own = own + away * ((r * lean) ** 2 * on.at_tried(pairs.plus.variance)).sum(1)
    norm2 = (d**2).sum(1) + (r * level)[:, 0] ** 2 * away
    raw = on.aligned(d, norm2)
    known = (on.ideal.g_NK * on.at_tried(on.known_MK)).sum(1)
    node = NodeAlignment(raw.cosine_N, raw.dot_N - with_g, raw.dot_se_N)
    return OutcomeAlignment(node, node.dot_N - known, norm2 - own - on.known_norm2_M)
