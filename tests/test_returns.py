"""Returns along paths against enumeration: unbiased, converging as n^(-1/2), products with success free of shared noise."""

import numpy as np
import pytest
import torch
from test_sequence_objectives import LENGTH, V, future_returns, node_logprobs

from gradalign.alignment import estimate_ideal_direction
from gradalign.objectives import NodeSignals, ideal_direction, parse_objective
from gradalign.returns import OnSupport, align_outcome, branch_returns, return_coefficients, success_as_returns
from gradalign.returns import future_returns as path_returns
from gradalign.success import branch_success
from gradalign.testbed import TabularModel
from gradalign.totals import Passage, passage
from gradalign.tree import build_tree


@pytest.fixture(scope="module")
def models() -> tuple[TabularModel, TabularModel]:
    student, other = TabularModel.random(V, LENGTH, 0), TabularModel.random(V, LENGTH, 100)
    return student, TabularModel({p: other.logits_NV[r].numpy() for p, r in other.prefixes.items()}, student.rewards, LENGTH)


def sample(student: TabularModel, rng: np.random.Generator, count: int) -> list[tuple[int, ...]]:
    return extend(student, rng, [()] * count)


def extend(student: TabularModel, rng: np.random.Generator, paths: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Each path sampled on to its end."""
    reach = node_logprobs(student).exp().cumsum(-1).numpy()[:, :-1]
    while len(paths[0]) < LENGTH:
        rows = [student.prefixes[path] for path in paths]
        tokens = (rng.random(len(paths))[:, None] > reach[rows]).sum(1)
        paths = [(*path, int(token)) for path, token in zip(paths, tokens, strict=True)]
    return paths


def rollouts(
    student: TabularModel, teacher: TabularModel, paths: list[tuple[int, ...]]
) -> tuple[Passage, np.ndarray, np.ndarray]:
    """Base rollouts in a tree: how they run, their rewards, and the log-ratio of every step."""
    flow = passage(build_tree([np.array(p) for p in paths]), np.full(len(paths), -1))
    reward = np.array([student.rewards[p] for p in paths])
    ratio = (node_logprobs(teacher) - node_logprobs(student)).numpy()
    return flow, reward, np.array([[ratio[student.prefixes[p[:t]], p[t]] for t in range(LENGTH)] for p in paths])


@pytest.mark.parametrize(("gamma", "normalised"), [(1.0, False), (0.6, False), (1.0, True)])
def test_returns_of_a_path_are_sums_over_its_later_steps(gamma, normalised):
    rng = np.random.default_rng(0)
    ratio, lengths = rng.standard_normal((5, 6)), np.array([6, 1, 3, 2, 6])
    there = np.arange(6) < lengths[:, None]
    found = path_returns(ratio, there, gamma, normalised)
    for r in range(5):
        for t in range(lengths[r]):
            later = range(t + 1, lengths[r])
            total = sum(gamma ** (j - t) * ratio[r, j] for j in later)
            assert found[r, t] == pytest.approx(total / (max(len(later), 1) if normalised else 1))


@pytest.mark.parametrize(("gamma", "normalised"), [(1.0, False), (0.7, False), (1.0, True)])
def test_monte_carlo_minillm_converges_at_the_usual_rate(models, gamma, normalised):
    """The step over all nodes from n rollouts, against visitation times pi (F - mean F): sixteen times n, a quarter of the error."""
    student, teacher = models
    exact_f = future_returns(student, teacher, gamma, normalised).numpy()
    pi = node_logprobs(student).exp().numpy()
    exact = np.zeros(V)
    for prefix, row in student.prefixes.items():
        exact += student.visitation(prefix) * pi[row] * (exact_f[row] - pi[row] @ exact_f[row])
    rng, errors = np.random.default_rng(1), []
    for count in (40, 640):
        squares, means = [], []
        for _ in range(100):
            flow, reward, ratio = rollouts(student, teacher, sample(student, rng, count))
            tree = flow.tree
            nodes = np.flatnonzero(tree.visits() > 0)
            place = tree.child(np.repeat(nodes[:, None], V, 1), np.repeat(np.arange(V)[None], len(nodes), 0))
            future = path_returns(ratio, tree.path_RT >= 0, gamma, normalised)
            mean = branch_returns(flow, reward, future, np.zeros(place.shape, dtype=bool), place).mean
            c = return_coefficients(flow, future, mean, place, nodes)
            rows = [student.prefixes[tree.prefix(int(n))] for n in nodes]
            step = (c - c.sum(1, keepdims=True) * pi[rows]).sum(0)
            squares.append(((step - exact) ** 2).sum())
            means.append(step)
        errors.append(np.sqrt(np.mean(squares)))
        z = (np.mean(means, 0) - exact) / (np.std(means, 0) / 10)
        assert np.abs(z).max() < 4
    assert 3.0 < errors[0] / errors[1] < 5.3


@pytest.mark.parametrize("objective", ["success", "dr_grpo"])
def test_monte_carlo_rewards_converge_at_the_usual_rate(models, objective):
    """The step of n rollouts by their rewards, against visitation times the ideal direction (of which Dr. GRPO's group mean takes 1/n)."""
    student, teacher = models
    pi = node_logprobs(student)
    success = torch.tensor(np.stack([student.success(prefix) for prefix in student.prefixes]))
    visits = torch.tensor([student.visitation(prefix) for prefix in student.prefixes])[:, None]
    exact = (visits * ideal_direction(pi, success)).sum(0).numpy()
    rng, errors = np.random.default_rng(5), []
    for count in (40, 640):
        steps = [_reward_step(objective, student, rollouts(student, teacher, sample(student, rng, count))) for _ in range(100)]
        errors.append(np.sqrt(((np.stack(steps) - exact) ** 2).sum(1).mean()))
        due = exact * (1 - 1 / count) if objective == "dr_grpo" else exact
        z = (np.mean(steps, 0) - due) / (np.std(steps, 0) / 10)
        assert np.abs(z).max() < 4
    assert 3.0 < errors[0] / errors[1] < 5.3


def _reward_step(objective: str, student: TabularModel, found: tuple[Passage, np.ndarray, np.ndarray]) -> np.ndarray:
    """The sum over nodes of visits per rollout times the objective's direction, from rollouts alone."""
    flow, reward, _ = found
    tree = flow.tree
    nodes = np.flatnonzero(tree.visits() > 0)
    place = tree.child(np.repeat(nodes[:, None], V, 1), np.repeat(np.arange(V)[None], len(nodes), 0))
    pi = node_logprobs(student)[[student.prefixes[tree.prefix(int(n))] for n in nodes]]
    if objective == "dr_grpo":
        passed = tree.visits()[nodes][:, None]
        taken = np.where(place >= 0, tree.branch_sums(tree.path_RT >= 0, reward - reward.mean())[place], 0.0)
        d = parse_objective(objective).direction(NodeSignals(pi, pi, sample_advantage=torch.tensor(taken / passed)))
        return (d.numpy() * passed / len(reward)).sum(0)
    won = np.broadcast_to(reward[:, None], tree.path_RT.shape)
    mean = branch_returns(flow, reward, won, np.zeros(place.shape, dtype=bool), place).mean
    c = return_coefficients(flow, won, mean, place, nodes)
    return (c - c.sum(1, keepdims=True) * pi.exp().numpy()).sum(0)


@pytest.mark.parametrize("kind", ["success", "future_return"])
def test_products_with_success_are_free_of_the_noise_they_share(models, kind):
    """At the root, from eight rollouts a token: mean of <g, d> and of |d|^2 over many draws, against the exact ones."""
    student, teacher = models
    pi = student.probabilities(())
    success = student.success(())
    exact_x = success if kind == "success" else future_returns(student, teacher, 1.0)[student.prefixes[()]].numpy()
    known = np.array([0.02, -0.05, 0.03])
    g, d = pi * (success - pi @ success), known + 0.5 * pi * (exact_x - pi @ exact_x)
    rng, found = np.random.default_rng(2), []
    tried = np.ones((1, V), dtype=bool)
    for _ in range(600):
        paths = [(k, *p[1:]) for k in range(V) for p in extend(student, rng, [(k,)] * 8)]
        flow, reward, ratio = rollouts(student, teacher, paths)
        place = flow.tree.child(np.zeros((1, V), dtype=np.int64), np.arange(V)[None])
        estimates = branch_success(flow.tree, reward, flow.forced_R, np.zeros(len(flow.tree), dtype=bool), place)
        returns = success_as_returns(estimates)
        if kind == "future_return":
            future = path_returns(ratio, flow.tree.path_RT >= 0, 1.0)
            returns = branch_returns(flow, reward, future, np.zeros((1, V), dtype=bool), place)
        ideal = estimate_ideal_direction(pi[None], estimates, tried)
        whole = align_outcome(
            OnSupport(pi[None], pi[None], estimates, tried, ideal, known[None], np.array([known @ known])), returns, 0.5
        )
        found.append((whole.node.dot_N[0], known @ known + whole.norm2_M[0]))
    mean, spread = np.mean(found, 0), np.std(found, 0) / np.sqrt(600)
    assert abs(mean[0] - g @ d) < 3.5 * spread[0]
    assert abs(mean[1] - d @ d) < 3.5 * spread[1]


def test_a_rollout_counts_from_its_forced_token_on():
    """Two base rollouts and one forced at depth 0 through token 1: returns of the branch (root, 1) are those of the two that took it."""
    tree = build_tree([np.array([0, 1]), np.array([1, 1]), np.array([1, 0])])
    flow = passage(tree, np.array([-1, -1, 0]))
    place = tree.child(np.zeros((1, 2), dtype=np.int64), np.arange(2)[None])
    future = np.array([[5.0, 0.0], [1.0, 0.0], [3.0, 0.0]])
    found = branch_returns(flow, np.array([0.0, 1.0, 0.0]), future, np.zeros((1, 2), dtype=bool), place)
    assert found.mean.tolist() == [[5.0, 2.0]]
    assert np.isnan(found.variance[0, 0])
    assert found.variance[0, 1] == pytest.approx(1.0)
    assert found.covariance[0, 1] == pytest.approx(-0.5)
