"""From counts and directions to scores: success at the kept tokens of the chosen nodes, both supports, every teacher and objective."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.special import logsumexp

from gradalign.alignment import IdealDirection, NodeAlignment, align, estimate_ideal_direction
from gradalign.models import Batches, LanguageModel
from gradalign.objectives import NodeSignals, Objective
from gradalign.pipeline.survey import Survey
from gradalign.pipeline.targeted import Plan, TargetedRollout
from gradalign.returns import OnSupport, OutcomeAlignment
from gradalign.success import SuccessEstimates, branch_success, shrink
from gradalign.totals import Functionals, Passage, estimate_totals, ideal_coefficients, passage, stratified_values
from gradalign.tree import PrefixTree, build_tree
from gradalign.types import Rollout

_CELLS = 1 << 22  # numbers of a (nodes, vocabulary) array held at once
_LARGEST = 30.0  # nats; a ratio of probabilities beyond e^30 is taken for that


@dataclass(frozen=True, eq=False)
class Evidence:
    """Success at the kept tokens of M nodes: `present` marks kept tokens (each once), `tried` those in the support."""

    rows: Int[np.ndarray, " M"]
    tokens_MK: Int[np.ndarray, "M K"]
    present_MK: Bool[np.ndarray, "M K"]
    tried_MK: Bool[np.ndarray, "M K"]
    success: SuccessEstimates
    shrunken_MK: Float[np.ndarray, "M K"]


@dataclass(frozen=True, eq=False)
class Brought:
    """What rollouts bring to a direction: how the whole of it aligns at the chosen nodes, and what it adds to the step over all nodes,
    for each token weighting (None where it cannot be told).

    Where it is `sampled` the direction is that of the base rollouts themselves, and this tells its expectation.
    """

    aligned: Callable[[OnSupport], OutcomeAlignment]
    sampled: bool
    steps_W: Sequence["Step | None"]


@dataclass(frozen=True, eq=False)
class SupportScores:
    """On one support: the ideal direction, and for each teacher and objective alignment (C lists of O) and |d|^2.

    `dot_added` and `norm2_added` are what rollouts bring to <g, d> and |d|^2 beyond what the two models tell.
    """

    probs_MK: Float[np.ndarray, "M K"]
    ideal: IdealDirection
    alignment: list[list[NodeAlignment]]
    direction_norm2_COM: Float[np.ndarray, "C O M"]
    dot_added_COM: Float[np.ndarray, "C O M"]
    norm2_added_COM: Float[np.ndarray, "C O M"]


@dataclass(frozen=True, eq=False)
class Gathered:
    """Every rollout of a question in one tree. `nodes_N` numbers the survey's nodes in it; `place_NK` the child by each kept token."""

    targeted: Sequence[TargetedRollout]
    flow: Passage
    reward_R: Float[np.ndarray, " R"]
    terminal_W: Bool[np.ndarray, " W"]
    nodes_N: Int[np.ndarray, " N"]
    present_NK: Bool[np.ndarray, "N K"]
    place_NK: Int[np.ndarray, "N K"]


def gather(
    tree: PrefixTree,
    base: Sequence[Rollout],
    targeted: Sequence[TargetedRollout],
    survey: Survey,
    stop_ids: frozenset[int],
    max_tokens: int,
) -> Gathered:
    """One tree of base and targeted rollouts, over which every valid step is counted.

    A stored rollout forced through a token that the survey no longer keeps (another machine's rounding) is left out: its pi is unknown.
    """
    kept = {int(node): row for node, row in zip(survey.nodes, survey.kept_NK, strict=True)}
    targeted = [r for r in targeted if r.branch.path[-1] in kept[r.branch.node]]
    whole = build_tree([rollout.completion.tokens for rollout in base] + [rollout.tokens for rollout in targeted])
    reward = np.array([r.grade.reward for r in base] + [r.grade.reward for r in targeted])
    flow = passage(whole, np.array([-1] * len(base) + [r.branch.depth for r in targeted]))
    terminal = np.isin(whole.token, list(stop_ids)) | (whole.depth >= max_tokens)
    nodes = _same_nodes(tree, whole, len(base))[survey.nodes]
    place = whole.child(np.broadcast_to(nodes[:, None], survey.kept_NK.shape), survey.kept_NK)
    present = _first_of_each(survey.kept_NK)
    return Gathered(targeted, flow, reward, terminal, nodes, present, np.where(present, place, -1))


def gather_evidence(gathered: Gathered, survey: Survey, chosen: Int[np.ndarray, " M"], min_visits: int) -> Evidence:
    """Count every valid rollout at every kept token of the chosen nodes."""
    flow = gathered.flow
    success = branch_success(flow.tree, gathered.reward_R, flow.forced_R, gathered.terminal_W, gathered.place_NK[chosen])
    tried = (success.n >= min_visits) | success.exact
    return Evidence(
        chosen,
        survey.kept_NK[chosen],
        gathered.present_NK[chosen],
        tried,
        success,
        _shrunken(success, survey.student_probs_NK[chosen]),
    )


def _shrunken(success: SuccessEstimates, probs_MK: np.ndarray) -> np.ndarray:
    """Means drawn to their node's value, as strongly as this question's branches are alike."""
    known = success.n > 0
    weight = np.where(known, probs_MK, 0.0)
    mean = np.where(known, success.mean, 0.0)
    held = weight.sum(1, keepdims=True)
    centre = np.divide((weight * mean).sum(1, keepdims=True), held, out=np.full(held.shape, np.nan), where=held > 0)
    return shrink(success, np.broadcast_to(centre, mean.shape))


@dataclass(frozen=True, eq=False)
class TotalScores:
    """A question's sums over its on-policy nodes, with standard errors, and V of each of the survey's nodes."""

    dot_CO: Float[np.ndarray, "C O"]
    dot_se_CO: Float[np.ndarray, "C O"]
    advantage_C: Float[np.ndarray, " C"]
    advantage_se_C: Float[np.ndarray, " C"]
    value_N: Float[np.ndarray, " N"]
    ideal_NK: Float[np.ndarray, "N K"] | None


def total_scores(survey: Survey, gathered: Gathered, chosen: Plan) -> TotalScores:
    """Sums of <g, d> and of the advantage, and the coefficients of the ideal step; missing where nodes were taken outright."""
    shape = survey.lift_CONK.shape[:2]
    probability = np.full(len(gathered.flow.tree), np.nan)
    there = gathered.place_NK >= 0
    probability[gathered.place_NK[there]] = survey.student_probs_NK[there]
    value_N = stratified_values(gathered.flow, gathered.reward_R, probability)[gathered.nodes_N]
    split = shape[0] * shape[1]
    total = se = np.full(split + shape[0], np.nan)
    ideal_NK = None
    if not np.isnan(chosen.inclusion_N).any():
        functionals = _functionals(survey, gathered.present_NK)
        evidence = (gathered.flow, gathered.reward_R, probability, gathered.place_NK, gathered.nodes_N)
        totals = estimate_totals(*evidence, functionals, chosen.design)
        total, se = totals.sum_M, totals.se_M
        ideal_NK = ideal_coefficients(*evidence, functionals, chosen.design)
    return TotalScores(total[:split].reshape(shape), se[:split].reshape(shape), total[split:], se[split:], value_N, ideal_NK)


@dataclass(frozen=True, eq=False)
class Step:
    """A question's step: in the output layer, sum_u visits_u d_u h_u^T, and in the logits, sum_u visits_u d_u; both as they are kept."""

    head_L: Float[np.ndarray, " L"]
    logits_F: Float[np.ndarray, " F"]

    def __add__(self, other: "Step") -> "Step":
        return Step(self.head_L + other.head_L, self.logits_F + other.logits_F)

    def times(self, factor: float) -> "Step":
        """A step `factor` times as long."""
        return Step(factor * self.head_L, factor * self.logits_F)


def steps_of(survey: Survey, coefficients_NK: Float[np.ndarray, "N K"], student: LanguageModel) -> list[Step]:
    """The step of directions sum_k c_uk (e_k - pi_u) over the survey's nodes, under each of its token weightings."""
    return [
        step_along(survey, survey.student_states, survey.kept_NK, factor_N[:, None] * coefficients_NK, student)
        for factor_N in survey.factor_WN
    ]


@torch.inference_mode()
def step_along(
    survey: Survey,
    states_NH: Float[torch.Tensor, "N H"],
    tokens_NK: Int[np.ndarray, "N K"],
    coefficients_NK: Float[np.ndarray, "N K"],
    student: LanguageModel,
) -> Step:
    """The step of directions sum_k c_nk (e_k - pi_n) at nodes of one's own, given by the student's hidden states there."""
    batches = Batches(max(1, _CELLS // student.vocabulary_size), "steps in the output layer")

    def work(start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        states = states_NH[start:stop].to(survey.device)
        probs = student.logprobs(states).exp()
        c = torch.from_numpy(coefficients_NK[start:stop]).to(probs)
        kept = torch.from_numpy(tokens_NK[start:stop]).to(probs.device).clamp_min(0)
        direction = (-c.sum(1, keepdim=True) * probs).scatter_add_(1, kept, c)
        ones = torch.ones(len(direction), 1).to(direction)
        return survey.sketch.sum(direction, states).cpu().numpy(), survey.flat.sum(direction, ones).cpu().numpy()

    total = Step(np.zeros(survey.sketch.length), np.zeros(survey.flat.length))
    for part in batches.over(len(states_NH), work):
        total = total + Step(*part)
    return total


def _functionals(survey: Survey, present_NK: np.ndarray) -> Functionals:
    nodes, kept = survey.kept_NK.shape
    with np.errstate(invalid="ignore"):
        ratio = np.nan_to_num(np.exp(np.minimum(survey.teacher_logprobs_CNK - survey.student_logprobs_NK, _LARGEST)) - 1)
    lift = np.concatenate([survey.lift_CONK.reshape(-1, nodes, kept), ratio.astype(survey.lift_CONK.dtype)])
    lift2 = np.concatenate([survey.lift2_CON.reshape(-1, nodes), survey.ratio2_CN])
    return Functionals(survey.student_probs_NK, np.where(present_NK, lift, 0.0), lift2)


def _first_of_each(kept_NK: np.ndarray) -> np.ndarray:
    """Mark the first occurrence of each token in a row; padding has none."""
    order = np.argsort(kept_NK, axis=1, kind="stable")
    ordered = np.take_along_axis(kept_NK, order, 1)
    repeated = np.zeros(kept_NK.shape, dtype=bool)
    np.put_along_axis(repeated, order[:, 1:], ordered[:, 1:] == ordered[:, :-1], 1)
    return (kept_NK >= 0) & ~repeated


def _same_nodes(tree: PrefixTree, whole: PrefixTree, rollouts: int) -> np.ndarray:
    """For each node of the base tree, its number in the whole tree (both hold the base rollouts first)."""
    numbers = np.zeros(len(tree), dtype=np.int64)
    steps = tree.path_RT.shape[1]
    passed = tree.path_RT >= 0
    numbers[tree.path_RT[passed]] = whole.path_RT[:rollouts, :steps][passed]
    return numbers


def score_full(survey: Survey, evidence: Evidence, brought: Mapping[tuple[int, int], Brought]) -> SupportScores:
    """Over the whole vocabulary: untried tokens take the mean success of the tried ones, d is as the survey found it."""
    probs = survey.student_probs_NK[evidence.rows]
    d_COMK = survey.direction_CONK[:, :, evidence.rows].astype(np.float64)
    tau_CMK = np.exp(survey.teacher_logprobs_CNK[:, evidence.rows])
    return _on_support(probs, tau_CMK, evidence, d_COMK, survey.direction_norm2_CON[:, :, evidence.rows], brought)


def score_visited(
    survey: Survey,
    evidence: Evidence,
    objectives: Sequence[Objective],
    taken_MK: Float[np.ndarray, "M K"],
    advantage_MK: Float[np.ndarray, "M K"],
    brought: Mapping[tuple[int, int], Brought],
) -> SupportScores:
    """On the tried tokens alone, pi and tau renormalised there, both directions computed there (arXiv 2605.10889).

    `taken` base rollouts took each token, `advantage` is the sum of theirs.
    """
    tried = evidence.tried_MK
    log_pi = _renormalised(survey.student_logprobs_NK[evidence.rows], tried)
    taken = np.where(tried, taken_MK, 0.0)
    passed = np.maximum(taken.sum(1, keepdims=True), 1.0)
    frequency, advantage = torch.from_numpy(taken / passed), torch.from_numpy(np.where(tried, advantage_MK, 0.0) / passed)

    def direction(objective: Objective, log_tau: np.ndarray) -> np.ndarray:
        signals = NodeSignals(torch.from_numpy(log_pi), torch.from_numpy(log_tau), frequency, sample_advantage=advantage)
        return objective.known_direction(signals).numpy()

    log_taus = [_renormalised(tau[evidence.rows], tried) for tau in survey.teacher_logprobs_CNK]
    d_COMK = np.array([[direction(objective, log_tau) for objective in objectives] for log_tau in log_taus])
    return _on_support(np.exp(log_pi), np.exp(log_taus), evidence, d_COMK, (d_COMK**2).sum(-1), brought)


def _on_support(
    probs_MK: np.ndarray,
    tau_CMK: np.ndarray,
    evidence: Evidence,
    d_COMK: np.ndarray,
    norm2_COM: np.ndarray,
    brought: Mapping[tuple[int, int], Brought],
) -> SupportScores:
    success, tried = evidence.success, evidence.tried_MK
    ideal = estimate_ideal_direction(probs_MK, success, tried)
    dot, norm2 = np.zeros(norm2_COM.shape), np.zeros(norm2_COM.shape)
    aligned: list[list[NodeAlignment]] = []
    for c in range(len(d_COMK)):
        aligned.append([])
        for o in range(d_COMK.shape[1]):
            found = align(probs_MK, success, tried, ideal, d_COMK[c, o], norm2_COM[c, o])
            more = brought.get((c, o))
            if more is not None:
                d_known = np.zeros(d_COMK[c, o].shape) if more.sampled else d_COMK[c, o]
                on = OnSupport(probs_MK, tau_CMK[c], success, tried, ideal, d_known, norm2_COM[c, o])
                whole = more.aligned(on)
                dot[c, o] = whole.dot_M
                if more.sampled:
                    found = NodeAlignment(found.cosine_N, whole.node.dot_N, found.dot_se_N)
                else:
                    found, norm2[c, o] = whole.node, whole.norm2_M
            aligned[-1].append(found)
    return SupportScores(probs_MK, ideal, aligned, norm2_COM + norm2, dot, norm2)


def _renormalised(logprobs_MK: np.ndarray, tried_MK: np.ndarray) -> np.ndarray:
    """Log-probabilities on the support, -inf off it."""
    kept = np.where(tried_MK, logprobs_MK, -np.inf)
    held = logsumexp(kept, axis=1, keepdims=True)
    return kept - np.where(np.isfinite(held), held, 0.0)
