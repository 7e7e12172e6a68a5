"""From counts and directions to scores: success at the kept tokens of the chosen nodes, both supports, every teacher and objective."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.special import logsumexp

from gradalign.alignment import IdealDirection, NodeAlignment, align, estimate_ideal_direction
from gradalign.objectives import NodeSignals, Objective
from gradalign.pipeline.survey import Survey
from gradalign.pipeline.targeted import TargetedRollout
from gradalign.success import SuccessEstimates, branch_success, take
from gradalign.tree import PrefixTree, build_tree
from gradalign.types import Rollout


@dataclass(frozen=True, eq=False)
class Evidence:
    """Success at the kept tokens of M nodes: `present` marks kept tokens (each once), `tried` those in the support."""

    rows: Int[np.ndarray, " M"]
    tokens_MK: Int[np.ndarray, "M K"]
    present_MK: Bool[np.ndarray, "M K"]
    tried_MK: Bool[np.ndarray, "M K"]
    success: SuccessEstimates


@dataclass(frozen=True, eq=False)
class SupportScores:
    """On one support: the ideal direction, and for each teacher and objective (C lists of O) alignment and |d|^2 (M,)."""

    probs_MK: Float[np.ndarray, "M K"]
    ideal: IdealDirection
    alignment: list[list[NodeAlignment]]
    direction_norm2_COM: Float[np.ndarray, "C O M"]


def gather_evidence(
    tree: PrefixTree,
    base: Sequence[Rollout],
    targeted: Sequence[TargetedRollout],
    survey: Survey,
    chosen: Int[np.ndarray, " M"],
    stop_ids: frozenset[int],
    limits: tuple[int, int],
) -> Evidence:
    """Count every valid rollout at every kept token of the chosen nodes. `limits` are max_tokens and min_visits."""
    max_tokens, min_visits = limits
    sequences = [rollout.completion.tokens for rollout in base] + [rollout.tokens for rollout in targeted]
    whole = build_tree(sequences)
    reward = np.array([r.grade.reward for r in base] + [r.grade.reward for r in targeted])
    forced = np.array([0] * len(base) + [r.branch.depth for r in targeted])
    terminal = np.isin(whole.token, list(stop_ids)) | (whole.depth >= max_tokens)
    estimates = branch_success(whole, reward, forced, terminal)
    tokens = survey.kept_NK[chosen]
    present = _first_of_each(tokens)
    node = _same_nodes(tree, whole, len(base))[survey.nodes[chosen]]
    child = whole.child(np.broadcast_to(node[:, None], tokens.shape), tokens)
    success = take(estimates, child, present & (child >= 0))
    return Evidence(chosen, tokens, present, (success.n >= min_visits) | success.exact, success)


def _first_of_each(kept_MK: np.ndarray) -> np.ndarray:
    """Mark the first occurrence of each token in a row; padding has none."""
    same = kept_MK[:, :, None] == kept_MK[:, None, :]
    repeated = np.tril(same, -1).any(-1)
    return (kept_MK >= 0) & ~repeated


def _same_nodes(tree: PrefixTree, whole: PrefixTree, rollouts: int) -> np.ndarray:
    """For each node of the base tree, its number in the whole tree (both hold the base rollouts first)."""
    numbers = np.zeros(len(tree), dtype=np.int64)
    steps = tree.path_RT.shape[1]
    passed = tree.path_RT >= 0
    numbers[tree.path_RT[passed]] = whole.path_RT[:rollouts, :steps][passed]
    return numbers


def score_full(survey: Survey, evidence: Evidence) -> SupportScores:
    """Over the whole vocabulary: untried tokens take the mean success of the tried ones, d is as the survey found it."""
    probs = survey.student_probs_NK[evidence.rows]
    ideal = estimate_ideal_direction(probs, evidence.success, evidence.tried_MK)
    d_COMK, norm2_COM = survey.direction_CONK[:, :, evidence.rows], survey.direction_norm2_CON[:, :, evidence.rows]
    return SupportScores(probs, ideal, _aligned(probs, evidence, ideal, d_COMK, norm2_COM), norm2_COM)


def score_visited(
    survey: Survey, evidence: Evidence, objectives: Sequence[Objective], frequency_MK: Float[np.ndarray, "M K"]
) -> SupportScores:
    """On the tried tokens alone, pi and tau renormalised there, both directions computed there (arXiv 2605.10889)."""
    log_pi = _renormalised(survey.student_logprobs_NK[evidence.rows], evidence.tried_MK)
    frequency = _share(np.where(evidence.tried_MK, frequency_MK, 0.0))
    log_taus = [_renormalised(tau[evidence.rows], evidence.tried_MK) for tau in survey.teacher_logprobs_CNK]
    d_COMK = np.array([[_direction(objective, log_pi, log_tau, frequency) for objective in objectives] for log_tau in log_taus])
    probs, norm2_COM = np.exp(log_pi), (d_COMK**2).sum(-1)
    ideal = estimate_ideal_direction(probs, evidence.success, evidence.tried_MK)
    return SupportScores(probs, ideal, _aligned(probs, evidence, ideal, d_COMK, norm2_COM), norm2_COM)


def _aligned(
    probs: np.ndarray, evidence: Evidence, ideal: IdealDirection, d_COMK: np.ndarray, norm2_COM: np.ndarray
) -> list[list[NodeAlignment]]:
    return [
        [align(probs, evidence.success, evidence.tried_MK, ideal, d, norm2) for d, norm2 in zip(row, norms, strict=True)]
        for row, norms in zip(d_COMK, norm2_COM, strict=True)
    ]


def _direction(objective: Objective, log_pi: np.ndarray, log_tau: np.ndarray, frequency: np.ndarray) -> np.ndarray:
    signals = NodeSignals(torch.from_numpy(log_pi), torch.from_numpy(log_tau), torch.from_numpy(frequency))
    return objective.direction(signals).numpy()


def _renormalised(logprobs_MK: np.ndarray, tried_MK: np.ndarray) -> np.ndarray:
    """Log-probabilities on the support, -inf off it."""
    kept = np.where(tried_MK, logprobs_MK, -np.inf)
    return kept - logsumexp(kept, axis=1, keepdims=True)


def _share(weights_MK: np.ndarray) -> np.ndarray:
    total = weights_MK.sum(1, keepdims=True)
    return np.divide(weights_MK, total, out=np.zeros_like(weights_MK), where=total > 0)
