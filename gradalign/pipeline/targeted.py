"""Targeted rollouts of a question: which nodes and tokens, the requests for them, and the rollouts that come back."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from gradalign.pipeline.cast import Member
from gradalign.pipeline.config import RunConfig
from gradalign.pipeline.survey import RANKINGS, Survey
from gradalign.questions import grade
from gradalign.schedule import NodeSample, choose_candidates, choose_nodes, depth_window, sampling_size
from gradalign.seeds import seed_of
from gradalign.tree import PrefixTree
from gradalign.types import Completion, CompletionRequest, Grade, Question, StopReason


@dataclass(frozen=True, eq=False)
class Plan:
    """The sample of nodes and the candidate tokens at each chosen one (by place in `sample.chosen`)."""

    sample: NodeSample
    candidates: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, eq=False)
class Branch:
    """A forced token: its node and depth, the generated tokens up to and with it, and how it ends the rollout, if it does."""

    node: int
    depth: int
    path: tuple[int, ...]
    ends: StopReason | None


@dataclass(frozen=True, eq=False)
class TargetedRollout:
    """A rollout forced through a branch: what was sampled after the forced token (nothing where that ends it), and all its tokens."""

    branch: Branch
    replicate: int
    completion: Completion
    tokens: np.ndarray
    grade: Grade


@dataclass(eq=False)
class TargetedSampling:
    """Branches of one question whose rollouts are wanted, and the rollouts as they come back."""

    question: Question
    prompt: tuple[int, ...]
    branches: list[Branch]
    rollouts: list[TargetedRollout] = field(default_factory=list)


def plan(question: Question, tree: PrefixTree, survey: Survey, config: RunConfig) -> Plan:
    """Choose nodes and candidates within the question's budget. Looks at no reward."""
    visits = tree.visits()[survey.nodes]
    rng = np.random.default_rng(seed_of(config.seed, question.id, "nodes"))
    budget = config.budget // (config.candidates * config.replicates)
    size = sampling_size(survey.priority_N, visits)
    sample = choose_nodes(depth_window(tree.depth[survey.nodes]), size, budget, rng, config.node_selection)
    return Plan(sample, tuple(tuple(_candidates(survey, int(row), config)) for row in sample.chosen))


def _candidates(survey: Survey, row: int, config: RunConfig) -> list[int]:
    kept = survey.kept_NK[row]
    split = len(kept) - RANKINGS * survey.ranked
    sampled = [int(token) for token in kept[:split] if token >= 0]
    ranked = [[int(token) for token in ranking] for ranking in np.split(kept[split:], RANKINGS)]
    norm2 = survey.direction_norm2_CON[:, :, row].reshape(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        captured = np.where(
            norm2[:, None] > 0, survey.direction_CONK[:, :, row].reshape(len(norm2), -1) ** 2 / norm2[:, None], 1.0
        )
    shares = {int(token): (survey.student_probs_NK[row, k], *captured[:, k]) for k, token in enumerate(kept) if token >= 0}
    return choose_candidates(sampled, ranked, shares, config.candidates, config.candidate_mass)


def branches(tree: PrefixTree, survey: Survey, chosen: Plan, stop_ids: frozenset[int], max_tokens: int) -> list[Branch]:
    """The forced tokens of a plan."""
    found = []
    for row, tokens in zip(chosen.sample.chosen, chosen.candidates, strict=True):
        node = int(survey.nodes[row])
        prefix = tree.prefix(node)
        depth = int(tree.depth[node])
        for token in tokens:
            ends = "stop" if token in stop_ids else "length" if depth + 1 >= max_tokens else None
            found.append(Branch(node, depth, (*prefix, token), ends))
    return found


def sample_targeted(
    samplings: Sequence[TargetedSampling], student: Member, config: RunConfig, advance: Callable[[int], None]
) -> None:
    """Fill `rollouts` of every sampling, all questions' requests together, in the order of branches and replicates.

    `advance` is told of each rollout.
    """
    open_branches = [(sampling, branch) for sampling in samplings for branch in sampling.branches if branch.ends is None]
    requests = [
        CompletionRequest(
            sampling.prompt + branch.path,
            tuple(
                seed_of(config.seed, sampling.question.id, "targeted", ",".join(map(str, branch.path)), i)
                for i in range(config.replicates)
            ),
            config.longest - branch.depth - 1,
        )
        for sampling, branch in open_branches
    ]
    for completion in student.engine.complete(requests):
        sampling, branch = open_branches[completion.request]
        _keep(sampling, branch, completion.replicate, completion, student)
        advance(1)
    for sampling in samplings:
        for branch in sampling.branches:
            if branch.ends is not None:
                _keep(sampling, branch, 0, Completion(0, 0, np.array([], dtype=np.int64), np.array([]), branch.ends), student)
        sampling.rollouts.sort(key=lambda rollout: (rollout.branch.node, rollout.branch.path, rollout.replicate))


def _keep(sampling: TargetedSampling, branch: Branch, replicate: int, completion: Completion, student: Member) -> None:
    tokens = np.concatenate([branch.path, completion.tokens]).astype(np.int64)
    graded = grade(sampling.question, student.model.codec.text(tokens))
    sampling.rollouts.append(TargetedRollout(branch, replicate, completion, tokens, graded))
