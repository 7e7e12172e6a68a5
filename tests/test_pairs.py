"""Preference pairs against enumeration: weights, directions and steps from rollouts converge to the exact ones of PBSD."""

import numpy as np
import pytest
import torch
from test_returns import extend, rollouts, sample
from test_sequence_objectives import SEQUENCES, V, conditional, node_logprobs, sequence_logprobs

from gradalign.alignment import estimate_ideal_direction
from gradalign.objectives import NodeSignals, parse_objective
from gradalign.returns import (
    OnSupport,
    align_pairs,
    branch_returns,
    effective_share,
    pair_returns,
    pair_weights,
    return_coefficients,
)
from gradalign.success import branch_success
from gradalign.testbed import TabularModel
from gradalign.totals import passage
from gradalign.tree import build_tree

BETA = 0.7


@pytest.fixture(scope="module")
def models() -> tuple[TabularModel, TabularModel]:
    student, other = TabularModel.random(V, 3, 0), TabularModel.random(V, 3, 100)
    return student, TabularModel({p: other.logits_NV[r].numpy() for p, r in other.prefixes.items()}, student.rewards, 3)


@pytest.fixture(scope="module")
def exact(models) -> dict[str, np.ndarray]:
    """W-, W+, the log-ratio of every prefix, and the direction at every node."""
    student, teacher = models
    log_pi, log_tau = (sequence_logprobs(m, m.logits_NV) for m in models)
    weight = torch.sigmoid(-BETA * ((log_pi - log_tau)[:, None] - (log_pi - log_tau)[None, :]))
    minus = conditional(student, (log_tau.exp()[:, None] * weight).sum(0))
    plus = conditional(teacher, (log_pi.exp()[None, :] * weight).sum(1))
    ratio = torch.tensor([np.log(teacher.visitation(p) / student.visitation(p)) for p in student.prefixes], dtype=torch.float64)
    signals = NodeSignals(
        node_logprobs(student),
        node_logprobs(teacher),
        student_pair_weight=minus,
        teacher_pair_weight=plus,
        log_prefix_ratio=ratio,
    )
    found = {"minus": minus, "plus": plus, "ratio": ratio, "d": parse_objective(f"pbsd:{BETA}").direction(signals)}
    return {name: value.numpy() for name, value in found.items()}


def read(student: TabularModel, teacher: TabularModel, paths: list[tuple[int, ...]]) -> np.ndarray:
    """log tau - log pi of every step of a teacher's rollouts."""
    ratio = (node_logprobs(teacher) - node_logprobs(student)).numpy()
    return np.array([[ratio[student.prefixes[p[:t]], p[t]] for t in range(3)] for p in paths])


def after(ratio: np.ndarray) -> np.ndarray:
    return ratio.sum(1, keepdims=True) - np.cumsum(ratio, 1)


def test_weights_of_pairs_are_those_of_the_loss(models):
    """Every rollout once, in pairs with every other: against the definition, pair by pair."""
    rng = np.random.default_rng(0)
    mine, theirs, base = rng.standard_normal(5), rng.standard_normal(3), np.array([True, True, True, False, False])
    found = pair_weights(mine, base, theirs, BETA)

    def w(plus: float, minus: float) -> float:
        rho_plus, rho_minus = -plus, -minus
        return 1 / (1 + np.exp(BETA * (rho_plus - rho_minus)))

    for r in range(5):
        assert found.student_R[r] == pytest.approx(np.mean([w(p, mine[r]) for p in theirs]))
        others = [w(mine[r], mine[i]) for i in range(3) if i != r]
        assert found.as_teacher_R[r] == pytest.approx(np.mean(others))
    for p in range(3):
        assert found.teacher_P[p] == pytest.approx(np.mean([w(theirs[p], mine[i]) for i in range(3)]))
    even = np.array([[w(p, mine[i]) for i in range(3)] for p in theirs])
    assert found.information == pytest.approx((4 * even * (1 - even)).mean())


def test_effective_share_of_ratios():
    there = np.array([[True, True], [True, False]])
    assert effective_share(np.zeros((2, 2)), there) == pytest.approx(1.0)
    ratios = np.log(np.array([[1.0, 3.0], [2.0, 99.0]]))
    assert effective_share(ratios + 400.0, there) == pytest.approx(36 / (3 * 14))


def estimate(models, rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """From `count` rollouts of each model: W- and W+ at the root, and the step over all nodes of visitation times direction."""
    student, teacher = models
    mine, theirs = sample(student, rng, count), sample(teacher, rng, count)
    flow, reward, ratio = rollouts(student, teacher, mine)
    tree, ratio_P = flow.tree, read(student, teacher, theirs)
    weights = pair_weights(ratio.sum(1), np.ones(count, dtype=bool), ratio_P.sum(1), BETA)
    nodes = np.flatnonzero(tree.visits() > 0)
    place = tree.child(np.repeat(nodes[:, None], V, 1), np.repeat(np.arange(V)[None], len(nodes), 0))
    nothing = np.zeros(place.shape, dtype=bool)
    path = tree.follow([np.array(p) for p in theirs])
    seen = pair_returns(flow, reward, weights, after(ratio), path, after(ratio_P), nothing, place)
    lost = np.broadcast_to(weights.student_R[:, None], ratio.shape)
    c = return_coefficients(flow, lost, branch_returns(flow, reward, lost, nothing, place).mean, place, nodes)
    pi = node_logprobs(student).exp().numpy()
    rows = [student.prefixes[tree.prefix(int(n))] for n in nodes]
    step = -(c - c.sum(1, keepdims=True) * pi[rows]).sum(0)
    for w, path_of in zip(weights.teacher_P / count, theirs, strict=True):
        for t, token in enumerate(path_of):
            step += w * (np.eye(V)[token] - pi[student.prefixes[path_of[:t]]])
    return seen.minus.mean[0], seen.plus.mean[0], BETA * step


def test_monte_carlo_pbsd_converges_at_the_usual_rate(models, exact):
    """W-, W+ and the step: sixteen times the rollouts, a quarter of the error; W- and the step without bias at any number."""
    student, _ = models
    visits = np.array([student.visitation(p) for p in student.prefixes])
    truth = (exact["minus"][0], exact["plus"][0], (visits[:, None] * exact["d"]).sum(0))
    rng, errors = np.random.default_rng(3), []
    for count in (40, 640):
        found = [estimate(models, rng, count) for _ in range(100)]
        parts = [np.stack(part) for part in zip(*found, strict=True)]
        errors.append([np.sqrt(((part - t) ** 2).sum(1).mean()) for part, t in zip(parts, truth, strict=True)])
        for part, t in ((parts[0], truth[0]), (parts[2], truth[2])):
            assert np.abs((part.mean(0) - t) / (part.std(0) / 10)).max() < 4
    ratio = np.array(errors[0]) / np.array(errors[1])
    assert ((ratio > 3.0) & (ratio < 5.3)).all()


def test_products_at_a_node_are_free_of_the_noise_they_share(models, exact):
    """At a node of depth one, 40 rollouts a token and as many of the teacher's: means of <g, d> and |d|^2 over many draws."""
    student, teacher = models
    node = (1,)
    row = student.prefixes[node]
    pi, tau, success = student.probabilities(node), teacher.probabilities(node), student.success(node)
    g, d = pi * (success - pi @ success), exact["d"][row]
    known = BETA / 2 * (tau - pi)
    rng, found = np.random.default_rng(4), []
    every = sample(student, rng, 1000)  # pairs are made with many, whose noise the products do not correct for
    theirs = sample(teacher, rng, 1000)
    weights_from = (rollouts(student, teacher, every)[2].sum(1), read(student, teacher, theirs))
    tried = np.ones((1, V), dtype=bool)
    for _ in range(250):
        forced = extend(student, rng, [(*node, k) for k in range(V) for _ in range(40)])
        ratio = rollouts(student, teacher, forced)[2]
        reward = np.array([student.rewards[p] for p in forced])
        flow = passage(build_tree([np.array(p) for p in forced]), np.full(len(forced), 1))
        ratio_R, base_R = np.concatenate([ratio.sum(1), weights_from[0]]), np.arange(len(forced) + len(every)) >= len(forced)
        weights = pair_weights(ratio_R, base_R, weights_from[1].sum(1), BETA)
        weights = type(weights)(weights.student_R[: len(forced)], weights.as_teacher_R[: len(forced)], weights.teacher_P, 0.0)
        at = flow.tree.child(np.zeros(1, dtype=np.int64), np.array([1]))
        place = flow.tree.child(np.repeat(at[:, None], V, 1), np.arange(V)[None])
        nothing = np.zeros((1, V), dtype=bool)
        few = np.flatnonzero([p[:1] == node for p in theirs])[rng.integers(0, 100, 40)]
        path = flow.tree.follow([np.array(theirs[i]) for i in few])
        later = after(weights_from[1][few])
        some = type(weights)(weights.student_R, weights.as_teacher_R, weights.teacher_P[few], 0.0)
        seen = pair_returns(flow, reward, some, after(ratio), path, later, nothing, place)
        estimates = branch_success(flow.tree, reward, flow.forced_R, np.zeros(len(flow.tree), dtype=bool), place)
        ideal = estimate_ideal_direction(pi[None], estimates, tried)
        on = OnSupport(pi[None], tau[None], estimates, tried, ideal, known[None], np.array([known @ known]))
        whole = align_pairs(on, seen, exact["ratio"][[row]], BETA)
        found.append((whole.node.dot_N[0], known @ known + whole.norm2_M[0], g @ known + whole.dot_M[0]))
    mean, spread = np.mean(found, 0), np.std(found, 0) / np.sqrt(len(found))
    assert abs(mean[0] - g @ d) < 4 * spread[0] + 0.01 * abs(g @ d)
    assert abs(mean[1] - d @ d) < 4 * spread[1] + 0.01 * (d @ d)


def test_untried_tokens_take_the_mean_weight(models, exact):
    """With one token left out, the direction still sums to zero over the vocabulary, and the whole of its length is counted."""
    student, teacher = models
    pi, tau, success = student.probabilities(()), teacher.probabilities(()), student.success(())
    tried = np.array([[True, True, False]])
    plus, minus = exact["plus"][0], exact["minus"][0]
    level = (tau[:2] @ plus[:2]) / tau[:2].sum()
    lost = (pi[:2] @ minus[:2]) / pi[:2].sum()
    filled = np.array([*plus[:2], level]), np.array([*minus[:2], lost])
    d = BETA * (tau * filled[0] - pi * (tau @ filled[0]) - pi * (filled[1] - pi @ filled[1]))
    assert abs(d.sum()) < 1e-12
    assert len(SEQUENCES) == V**3
    estimates = _known_success(success)
    ideal = estimate_ideal_direction(pi[None], estimates, tried)
    known = BETA / 2 * (tau - pi)
    on = OnSupport(pi[None], tau[None], estimates, tried, ideal, known[None], np.array([known @ known]))
    certain = _certain(plus, minus)
    whole = align_pairs(on, certain, np.zeros(1), BETA)
    assert known @ known + whole.norm2_M[0] == pytest.approx(d @ d)
    assert whole.node.dot_N[0] == pytest.approx((ideal.g_NK[0] * d).sum())


def _known_success(success: np.ndarray):
    from gradalign.success import SuccessEstimates

    s, n = success[None], np.full((1, V), 50)
    return SuccessEstimates(n, s, s, s, np.zeros((1, V)), np.zeros((1, V)), np.zeros((1, V), dtype=bool))


def _certain(plus: np.ndarray, minus: np.ndarray):
    from gradalign.returns import PairReturns, Returns

    zero = np.zeros((1, V))
    return PairReturns(Returns(minus[None], zero, zero), Returns(plus[None], zero, zero), zero)
