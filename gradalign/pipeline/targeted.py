"""Targeted rollouts of a question: its design, the rounds of requests, and the rollouts that come back."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float, Int

from gradalign.pipeline.cast import Member
from gradalign.pipeline.config import RunConfig
from gradalign.pipeline.survey import RANKINGS, Survey
from gradalign.questions import grade
from gradalign.schedule import (
    allocate,
    choose_candidates,
    depth_window,
    inclusion_probabilities,
    others_variance,
    pilot_branches,
    pilot_rollouts,
    poisson_sample,
    priority,
    top_nodes,
    wanted_rollouts,
)
from gradalign.seeds import seed_of, uniforms
from gradalign.totals import Design
from gradalign.tree import PrefixTree
from gradalign.types import Completion, CompletionRequest, Grade, Question, StopReason

_NOTHING = 1e-12  # share of all priorities below which a node's is rounding error


@dataclass(frozen=True, eq=False)
class Branch:
    """A forced token: its node and depth, the generated tokens up to and with it, and how it ends the rollout, if it does."""

    node: int
    depth: int
    path: tuple[int, ...]
    ends: StopReason | None


@dataclass(frozen=True, eq=False)
class Forced:
    """A targeted rollout as stored: the node and the token that was forced there, and what came after."""

    node: int
    token: int
    completion: Completion
    grade: Grade


@dataclass(frozen=True, eq=False)
class TargetedRollout:
    """A rollout forced through a branch: what was sampled after the forced token (nothing where that ends it), and all its tokens."""

    branch: Branch
    replicate: int
    completion: Completion
    tokens: np.ndarray
    grade: Grade


@dataclass(frozen=True)
class Allowance:
    """What a question's targeted rollouts may cost in all: a number of rollouts, or of tokens still to sample."""

    limit: float
    in_tokens: bool = False


@dataclass(frozen=True, eq=False)
class Plan:
    """The M chosen nodes (`rows` of the survey), up to K candidates at each (-1 pads), and what a rollout is worth and costs there."""

    rows: Int[np.ndarray, " M"]
    design: Design
    tokens_MK: Int[np.ndarray, "M K"]
    open_MK: Bool[np.ndarray, "M K"]
    pilot_MK: Bool[np.ndarray, "M K"]
    priority_MK: Float[np.ndarray, "M K"]
    cost_MK: Float[np.ndarray, "M K"]
    allowance: Allowance

    @property
    def inclusion_N(self) -> Float[np.ndarray, " N"]:
        """Every node's chance of being chosen; missing where nodes were taken outright."""
        return self.design.inclusion_N


@dataclass(eq=False)
class Targeting:
    """One question's targeted rollouts, gathered over rounds: `counts_MK` asked for so far, `rollouts` as they came back."""

    question: Question
    prompt: tuple[int, ...]
    plan: Plan
    branches: dict[tuple[int, int], Branch]
    pass_rate: float
    rollouts: list[TargetedRollout] = field(default_factory=list)

    def counts(self) -> tuple[np.ndarray, np.ndarray]:
        """Rollouts and successes of every candidate so far: (M, K) each."""
        n, total = np.zeros(self.plan.tokens_MK.shape, dtype=np.int64), np.zeros(self.plan.tokens_MK.shape)
        places = {(branch.node, branch.path[-1]): place for place, branch in self.branches.items()}
        for rollout in self.rollouts:
            place = places.get((rollout.branch.node, rollout.branch.path[-1]))
            if place is not None:
                n[place] += 1
                total[place] += rollout.grade.reward
        return n, total

    def restore(self, stored: Sequence[Forced], tree: PrefixTree) -> None:
        """Take in rollouts sampled under another budget; one outside the design still counts where it passed."""
        by_token = {(branch.node, branch.path[-1]): branch for branch in self.branches.values()}
        seen: dict[tuple[int, int], int] = {}
        for forced in stored:
            key = (forced.node, forced.token)
            path = (*tree.prefix(forced.node), forced.token)
            branch = by_token.get(key) or Branch(forced.node, int(tree.depth[forced.node]), path, None)
            tokens = np.concatenate([branch.path, forced.completion.tokens]).astype(np.int64)
            self.rollouts.append(TargetedRollout(branch, seen.get(key, 0), forced.completion, tokens, forced.grade))
            seen[key] = seen.get(key, 0) + 1


def plan(
    question: Question,
    tree: PrefixTree,
    survey: Survey,
    lengths_R: Int[np.ndarray, " R"],
    stop_ids: frozenset[int],
    config: RunConfig,
    allowance: Allowance,
    meant_CO: Bool[np.ndarray, "C O"],
) -> Plan:
    """Choose nodes and candidates. Looks at no reward; with a larger allowance the chosen nodes stay chosen.

    Rollouts at the chosen nodes go by what they say of the pairs of teacher and objective in `meant_CO`.
    """
    columns_NK = _candidate_columns(survey, config)
    tokens_NK = np.where(columns_NK >= 0, np.take_along_axis(survey.kept_NK, np.maximum(columns_NK, 0), 1), -1)
    visits, depth = tree.visits()[survey.nodes] / len(lengths_R), tree.depth[survey.nodes]
    worth_NK = _worth(survey, np.maximum(columns_NK, 0), visits, np.ones_like(meant_CO)) * (columns_NK >= 0)
    meant_NK = _worth(survey, np.maximum(columns_NK, 0), visits, meant_CO) * (columns_NK >= 0)
    open_NK = (tokens_NK >= 0) & ~np.isin(tokens_NK, list(stop_ids)) & (depth < config.longest - 1)[:, None]
    pilot_NK = pilot_branches(worth_NK, open_NK)
    cost_N = _expected_tokens(lengths_R, depth)
    unit_N = cost_N if allowance.in_tokens else np.ones(len(cost_N))
    window = depth_window(depth)
    if config.node_selection == "top":
        nodes = int(allowance.limit // (config.candidates * config.replicates * unit_N.mean()))
        rows = top_nodes(window, survey.priority_N * visits, max(nodes, 1))
        nothing = np.full(len(depth), np.nan)
        design = Design(nothing, np.isin(np.arange(len(depth)), rows), nothing)
    else:
        dearer_N = np.ones(len(cost_N)) if allowance.in_tokens else np.sqrt(cost_N)
        size_N, distance_N = (worth_NK * open_NK).sum(1) / dearer_N, _distance(survey, columns_NK, open_NK) * visits / dearer_N
        wanted = wanted_rollouts(size_N, distance_N, window, unit_N, allowance.limit)
        least = np.maximum(config.replicates * pilot_NK.sum(1), 1.0)
        matters = worth_NK.sum(1) > _NOTHING * worth_NK.sum()
        closed = ~open_NK.any(1) & matters  # every candidate ends the rollout: known for nothing
        inclusion = np.where(closed, 1.0, inclusion_probabilities(wanted, least))
        seed = np.full(len(depth), seed_of(config.seed, question.id, "nodes"), dtype=np.uint64)
        rows = poisson_sample(inclusion, uniforms(seed, survey.nodes.astype(np.uint64)))
        chosen = np.isin(np.arange(len(depth)), rows)
        design = Design(inclusion, chosen, np.where(closed, np.inf, np.maximum(wanted, least)))
    chance_M = np.where(np.isnan(design.inclusion_N), 1.0, design.inclusion_N)[rows, None]
    return Plan(
        rows, design, tokens_NK[rows], open_NK[rows], pilot_NK[rows] if config.node_selection == "pps" else open_NK[rows],
        meant_NK[rows] / chance_M, np.broadcast_to(cost_N[rows, None], open_NK[rows].shape).copy(), allowance,
    )  # fmt: skip


def _candidate_columns(survey: Survey, config: RunConfig) -> np.ndarray:
    """Columns of `kept_NK` that hold each node's candidates, -1 where it has fewer than the limit."""
    first = survey.kept_NK.shape[1] - RANKINGS * survey.ranked
    turns = first + np.arange(RANKINGS * survey.ranked).reshape(RANKINGS, survey.ranked).T.reshape(-1)
    norm2 = survey.direction_norm2_CON.reshape(-1, len(survey.nodes))
    d2 = survey.direction_CONK.reshape(len(norm2), len(survey.nodes), -1)[:, :, turns] ** 2
    with np.errstate(divide="ignore", invalid="ignore"):
        captured = np.where(norm2[:, :, None] > 0, d2 / norm2[:, :, None], 1.0)
    shares = np.concatenate([survey.student_probs_NK[None, :, turns], captured]).transpose(1, 2, 0)
    mask = choose_candidates(survey.kept_NK[:, turns], shares, config.candidates, config.candidate_mass)
    width = max(config.candidates, 2)
    order = np.argsort(~mask, axis=1, kind="stable")[:, :width]
    return np.where(np.take_along_axis(mask, order, 1), turns[order], -1)


def _worth(survey: Survey, columns_NK: np.ndarray, visits_N: np.ndarray, meant_CO: np.ndarray) -> np.ndarray:
    """Priority of each candidate over the teachers and objectives that rollouts are meant for."""
    lift = np.take_along_axis(survey.lift_CONK[meant_CO], columns_NK[None], 2)
    probs = np.take_along_axis(survey.student_probs_NK, columns_NK, 1)
    length2 = (survey.direction_norm2_CON[meant_CO] * visits_N).sum(1)
    return priority(probs * lift, length2, visits_N)


def _distance(survey: Survey, columns_NK: np.ndarray, open_NK: np.ndarray) -> np.ndarray:
    """Sum of |tau - pi| over the open candidates of each node, the largest over teachers."""
    at = np.maximum(columns_NK, 0)
    probs = np.take_along_axis(survey.student_probs_NK, at, 1)
    tau = np.exp(np.take_along_axis(survey.teacher_logprobs_CNK, at[None], 2))
    return (np.abs(tau - probs) * open_NK).sum(-1).max(0)


def _expected_tokens(lengths_R: np.ndarray, depth_N: np.ndarray) -> np.ndarray:
    """Mean number of tokens that base rollouts longer than each depth had to come after the next one; at least 1."""
    past_ND = np.maximum(lengths_R[None, :] - depth_N[:, None] - 1, 0)
    longer = (lengths_R[None, :] > depth_N[:, None]).sum(1)
    return np.maximum(past_ND.sum(1) / np.maximum(longer, 1), 1.0)


def plan_branches(tree: PrefixTree, survey: Survey, chosen: Plan, stop_ids: frozenset[int]) -> dict[tuple[int, int], Branch]:
    """The forced tokens of a plan, by their place in `tokens_MK`; a closed branch ends its rollout at once."""
    found = {}
    for m, row in enumerate(chosen.rows):
        node = int(survey.nodes[row])
        prefix, depth = tree.prefix(node), int(tree.depth[node])
        for k in np.flatnonzero(chosen.tokens_MK[m] >= 0):
            token = int(chosen.tokens_MK[m, k])
            ends = None if chosen.open_MK[m, k] else "stop" if token in stop_ids else "length"
            found[m, int(k)] = Branch(node, depth, (*prefix, token), ends)
    return found


def sample_targeted(
    targetings: Sequence[Targeting], student: Member, config: RunConfig, advance: Callable[[int], None]
) -> None:
    """Sample the rollouts of every question in two rounds: a pilot, then where the pilot and the coefficients say that they tell most.

    `advance` is told of each rollout. Rollouts that a question already has are kept, and count.
    """
    for targeting in targetings:
        _keep_endings(targeting, student)
    _round([(targeting, _pilot(targeting, config)) for targeting in targetings], student, config, advance)
    if config.node_selection == "pps":
        _round([(targeting, _allocation(targeting, config)) for targeting in targetings], student, config, advance)
    for targeting in targetings:
        targeting.rollouts.sort(key=lambda rollout: (rollout.branch.node, rollout.branch.path, rollout.replicate))


def _pilot(targeting: Targeting, config: RunConfig) -> np.ndarray:
    plan = targeting.plan
    return np.maximum(
        targeting.counts()[0], pilot_rollouts(plan.pilot_MK, _unit_cost(plan), config.replicates, plan.allowance.limit)
    )


def _allocation(targeting: Targeting, config: RunConfig) -> np.ndarray:
    """Neyman allocation by the priorities, and where it may adapt by the variance that a node's other branches tell."""
    plan = targeting.plan
    n, total = targeting.counts()
    worth = plan.priority_MK * plan.open_MK
    if config.allocation == "adaptive":
        worth *= np.sqrt(others_variance(total * plan.open_MK, n * plan.open_MK, targeting.pass_rate))
    if not plan.allowance.in_tokens:
        worth = worth / np.sqrt(plan.cost_MK)
    return allocate(worth, _unit_cost(plan), n * plan.open_MK, plan.allowance.limit)


def _unit_cost(plan: Plan) -> np.ndarray:
    return plan.cost_MK if plan.allowance.in_tokens else np.ones(plan.cost_MK.shape)


def _round(
    wanted: Sequence[tuple[Targeting, np.ndarray]], student: Member, config: RunConfig, advance: Callable[[int], None]
) -> None:
    """Sample up to the wanted numbers, all questions' requests together."""
    asked: list[tuple[Targeting, Branch, int]] = []
    requests: list[CompletionRequest] = []
    for targeting, want_MK in wanted:
        had_MK = targeting.counts()[0]
        for place in zip(*np.nonzero(targeting.plan.open_MK & (want_MK > had_MK)), strict=True):
            branch, had = targeting.branches[int(place[0]), int(place[1])], int(had_MK[place])
            identity = (config.seed, targeting.question.id, "targeted", ",".join(map(str, branch.path)))
            seeds = tuple(seed_of(*identity, i) for i in range(had, int(want_MK[place])))
            asked.append((targeting, branch, had))
            requests.append(CompletionRequest(targeting.prompt + branch.path, seeds, config.longest - branch.depth - 1))
    for completion in student.engine.complete(requests):
        targeting, branch, had = asked[completion.request]
        targeting.rollouts.append(_targeted(targeting.question, branch, had + completion.replicate, completion, student))
        advance(1)


def _keep_endings(targeting: Targeting, student: Member) -> None:
    """A forced token that ends the rollout needs no sampling: one observation says all."""
    known = {rollout.branch.path for rollout in targeting.rollouts}
    for branch in targeting.branches.values():
        if branch.ends is not None and branch.path not in known:
            nothing = Completion(0, 0, np.array([], dtype=np.int64), np.array([]), branch.ends)
            targeting.rollouts.append(_targeted(targeting.question, branch, 0, nothing, student))


def _targeted(question: Question, branch: Branch, replicate: int, completion: Completion, student: Member) -> TargetedRollout:
    tokens = np.concatenate([branch.path, completion.tokens]).astype(np.int64)
    return TargetedRollout(branch, replicate, completion, tokens, grade(question, student.model.codec.text(tokens)))
