"""Targeted rollouts of a question: its design, the rounds of requests, and the rollouts that come back."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float, Int

from gradalign.pipeline.cast import Member
from gradalign.pipeline.config import RunConfig
from gradalign.pipeline.survey import RANKINGS, Survey
from gradalign.schedule import (
    Reference,
    allocate,
    choose_candidates,
    depth_window,
    expected_tokens,
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

_NOTHING = 1e-12  # a priority below this is rounding error


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
    """One question's targeted rollouts, gathered over rounds. `prior_MK` is the success that base rollouts past a branch had elsewhere."""

    question: Question
    prompt: tuple[int, ...]
    plan: Plan
    branches: dict[tuple[int, int], Branch]
    prior_MK: Float[np.ndarray, "M K"]
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


@dataclass(frozen=True, eq=False)
class Footing:
    """What a plan stands on: candidates of every node, what a rollout at each is worth, and the question as a reference for others."""

    columns_NK: Int[np.ndarray, "N K"]
    tokens_NK: Int[np.ndarray, "N K"]
    open_NK: Bool[np.ndarray, "N K"]
    worth_NK: Float[np.ndarray, "N K"]
    distance_N: Float[np.ndarray, " N"]
    depth_N: Int[np.ndarray, " N"]
    visits_N: Float[np.ndarray, " N"]
    reference: Reference


def footing(
    tree: PrefixTree, survey: Survey, lengths_R: Int[np.ndarray, " R"], stop_ids: frozenset[int], config: RunConfig
) -> Footing:
    """Candidates and their priorities over all teachers and objectives. Looks at no reward."""
    columns_NK = _candidate_columns(survey, config)
    tokens_NK = np.where(columns_NK >= 0, np.take_along_axis(survey.kept_NK, np.maximum(columns_NK, 0), 1), -1)
    visits, depth = tree.visits()[survey.nodes] / len(lengths_R), tree.depth[survey.nodes]
    open_NK = (tokens_NK >= 0) & ~np.isin(tokens_NK, list(stop_ids)) & (depth < config.longest - 1)[:, None]
    worth_NK = _worth(survey, columns_NK, visits, np.ones(survey.lift2_CON.shape[:2], dtype=bool))
    distance_N = _distance(survey, columns_NK, open_NK) * visits
    sizes = _sizes(worth_NK * open_NK, distance_N, expected_tokens(lengths_R, depth))
    reference = Reference.of(*sizes, depth_window(depth), lengths_R)
    return Footing(columns_NK, tokens_NK, open_NK, worth_NK, distance_N, depth, visits, reference)


def _sizes(worth_NK: np.ndarray, distance_N: np.ndarray, cost_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return worth_NK.sum(1) / np.sqrt(cost_N), distance_N / np.sqrt(cost_N)


def plan(
    question: Question,
    survey: Survey,
    ground: Footing,
    reference: Reference,
    config: RunConfig,
    allowance: Allowance,
    meant_CO: Bool[np.ndarray, "C O"],
) -> Plan:
    """Choose nodes. Looks at no reward; with a larger allowance the chosen nodes stay chosen.

    `reference` is what other questions are like. Rollouts at the chosen nodes go by what they say of the pairs of teacher and
    objective in `meant_CO`.
    """
    depth, open_NK = ground.depth_N, ground.open_NK
    cost_N = expected_tokens(reference.lengths_R, depth)
    if config.node_selection == "top":
        unit = cost_N.mean() if allowance.in_tokens else 1.0
        nodes = int(allowance.limit // (config.candidates * config.replicates * unit))
        rows = top_nodes(depth_window(depth), survey.priority_N * ground.visits_N, max(nodes, 1))
        nothing = np.full(len(depth), np.nan)
        design, pilot_NK = Design(nothing, np.isin(np.arange(len(depth)), rows), nothing), open_NK
    else:
        pilot_NK = pilot_branches(ground.worth_NK, open_NK)
        worth_N, distance_N = _sizes(ground.worth_NK * open_NK, ground.distance_N, cost_N)
        whole = expected_tokens(reference.lengths_R, np.zeros(1, dtype=np.int64))[0]
        rollouts = allowance.limit / (whole / 2 if allowance.in_tokens else 1.0)
        wanted = wanted_rollouts(worth_N, distance_N, depth_window(depth), reference, rollouts)
        least = np.maximum(config.replicates * pilot_NK.sum(1), 1.0)
        closed = ~open_NK.any(1) & (ground.worth_NK.sum(1) > _NOTHING)  # every candidate ends the rollout: known for nothing
        inclusion = np.where(closed, 1.0, inclusion_probabilities(wanted, least))
        seed = np.full(len(depth), seed_of(config.seed, question.id, "nodes"), dtype=np.uint64)
        rows = poisson_sample(inclusion, uniforms(seed, survey.nodes.astype(np.uint64)))
        chosen = np.isin(np.arange(len(depth)), rows)
        design = Design(inclusion, chosen, np.where(closed, np.inf, np.maximum(wanted, least)))
    meant_NK = _worth(survey, ground.columns_NK, ground.visits_N, meant_CO if meant_CO.any() else np.ones_like(meant_CO))
    chance_M = np.where(np.isnan(design.inclusion_N), 1.0, design.inclusion_N)[rows, None]
    cost_MK = np.broadcast_to(cost_N[rows, None], open_NK[rows].shape).copy()
    tokens_MK = ground.tokens_NK[rows]
    return Plan(rows, design, tokens_MK, open_NK[rows], pilot_NK[rows], meant_NK[rows] / chance_M, cost_MK, allowance)


def _candidate_columns(survey: Survey, config: RunConfig) -> np.ndarray:
    """Columns of `kept_NK` that hold each node's candidates, -1 where it has fewer than the limit. Looks at expected directions alone."""
    first = survey.kept_NK.shape[1] - RANKINGS * survey.ranked
    turns = first + np.arange(RANKINGS * survey.ranked).reshape(RANKINGS, survey.ranked).T.reshape(-1)
    norm2 = survey.expected_norm2_CON.reshape(-1, len(survey.nodes))
    d2 = (survey.lift_CONK[:, :, :, turns] + survey.pull_CON[..., None]).reshape(*norm2.shape, len(turns)) ** 2
    with np.errstate(divide="ignore", invalid="ignore"):
        captured = np.where(norm2[:, :, None] > 0, d2 / norm2[:, :, None], 1.0)
    shares = np.concatenate([survey.student_probs_NK[None, :, turns], captured]).transpose(1, 2, 0)
    mask = choose_candidates(survey.kept_NK[:, turns], shares, config.candidates, config.candidate_mass)
    width = max(config.candidates, 2)
    order = np.argsort(~mask, axis=1, kind="stable")[:, :width]
    return np.where(np.take_along_axis(mask, order, 1), turns[order], -1)


def _worth(survey: Survey, columns_NK: np.ndarray, visits_N: np.ndarray, meant_CO: np.ndarray) -> np.ndarray:
    """Priority of each candidate over the teachers and objectives that rollouts are meant for."""
    at = np.maximum(columns_NK, 0)
    lift = np.stack([np.take_along_axis(survey.lift_CONK[c, o], at, 1) for c, o in zip(*np.nonzero(meant_CO), strict=True)])
    return priority(np.take_along_axis(survey.student_probs_NK, at, 1) * lift, visits_N) * (columns_NK >= 0)


def _distance(survey: Survey, columns_NK: np.ndarray, open_NK: np.ndarray) -> np.ndarray:
    """Sum of |tau - pi| over the open candidates of each node, the largest over teachers."""
    at = np.maximum(columns_NK, 0)
    probs = np.take_along_axis(survey.student_probs_NK, at, 1)
    tau = np.exp(np.take_along_axis(survey.teacher_logprobs_CNK, at[None], 2))
    return (np.abs(tau - probs) * open_NK).sum(-1).max(0)


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
    _round(targetings, _pilot(targetings, config), student, config, advance)
    if config.node_selection == "pps":
        _round(targetings, _allocation(targetings, config), student, config, advance)
    for targeting in targetings:
        targeting.rollouts.sort(key=lambda rollout: (rollout.branch.node, rollout.branch.path, rollout.replicate))


def _pilot(targetings: Sequence[Targeting], config: RunConfig) -> list[np.ndarray]:
    """The first rollouts of the branches that matter, all questions within their allowances together."""
    pilot = np.concatenate([t.plan.pilot_MK.ravel() for t in targetings]) if targetings else np.zeros(0, dtype=bool)
    first = _split(pilot_rollouts(pilot, _unit_cost(targetings), config.replicates, _limit(targetings)), targetings)
    return [np.maximum(counts, t.counts()[0]) for t, counts in zip(targetings, first, strict=True)]


def _allocation(targetings: Sequence[Targeting], config: RunConfig) -> list[np.ndarray]:
    """Neyman allocation over all questions by the priorities, and where it may adapt by the variance that a node's other branches tell."""
    if not targetings:
        return []
    worth, deviation, had = [], [], []
    for t in targetings:
        n, total = t.counts()
        worth.append(
            (t.plan.priority_MK * t.plan.open_MK / (1.0 if t.plan.allowance.in_tokens else np.sqrt(t.plan.cost_MK))).ravel()
        )
        adaptive = np.sqrt(others_variance(total * t.plan.open_MK, n * t.plan.open_MK, t.prior_MK)).ravel()
        deviation.append(adaptive if config.allocation == "adaptive" else np.full(n.size, 0.5))
        had.append((n * t.plan.open_MK).ravel())
    worth_B, deviation_B, had_B = (np.concatenate(column) for column in (worth, deviation, had))
    return _split(allocate(worth_B, deviation_B, _unit_cost(targetings), had_B, _limit(targetings)), targetings)


def _split(counts_B: np.ndarray, targetings: Sequence[Targeting]) -> list[np.ndarray]:
    shapes = [t.plan.tokens_MK.shape for t in targetings]
    pieces = np.split(counts_B, np.cumsum([rows * columns for rows, columns in shapes])[:-1]) if shapes else []
    return [piece.reshape(shape) for piece, shape in zip(pieces, shapes, strict=True)]


def _unit_cost(targetings: Sequence[Targeting]) -> np.ndarray:
    costs = [(t.plan.cost_MK if t.plan.allowance.in_tokens else np.ones(t.plan.cost_MK.shape)).ravel() for t in targetings]
    return np.concatenate(costs) if costs else np.zeros(0)


def _limit(targetings: Sequence[Targeting]) -> float:
    return float(sum(t.plan.allowance.limit for t in targetings))


def _round(
    targetings: Sequence[Targeting],
    wanted: Sequence[np.ndarray],
    student: Member,
    config: RunConfig,
    advance: Callable[[int], None],
) -> None:
    """Sample up to the wanted numbers, all questions' requests together."""
    asked: list[tuple[Targeting, Branch, int]] = []
    requests: list[CompletionRequest] = []
    for targeting, want_MK in zip(targetings, wanted, strict=True):
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
    return TargetedRollout(branch, replicate, completion, tokens, student.graded(question, student.model.codec.text(tokens)))
