"""Sums over on-policy nodes, and values carried up the tree, against the exact ones of the enumerated model."""

import numpy as np
import pytest
import torch

from gradalign.objectives import NodeSignals, parse_objective
from gradalign.testbed import TabularModel
from gradalign.totals import Design, Functionals, estimate_totals, ideal_coefficients, passage, stratified_values
from gradalign.tree import build_tree

REPETITIONS = 500
BASE = 6


@pytest.fixture(scope="module")
def teacher(tabular) -> TabularModel:
    return tabular.tilted(1.5, "teacher")


def lifts(tabular: TabularModel, teacher: TabularModel, prefix: tuple[int, ...]) -> np.ndarray:
    """lift of reverse_kl and tau/pi - 1 of the advantage at every token: (2, V)."""
    pi, tau = (torch.tensor(m.probabilities(prefix)).log()[None] for m in (tabular, teacher))
    d = parse_objective("reverse_kl").direction(NodeSignals(pi, tau))[0].numpy()
    p = pi.exp()[0].numpy()
    return np.stack([d - p @ d, tau.exp()[0].numpy() / p - 1])


def truth(tabular: TabularModel, teacher: TabularModel) -> np.ndarray:
    """The two sums by enumeration."""
    total = np.zeros(2)
    for prefix in tabular.prefixes:
        pi, success = tabular.probabilities(prefix), tabular.success(prefix)
        total += tabular.visitation(prefix) * (lifts(tabular, teacher, prefix) * pi * success).sum(1)
    return total


def sample(tabular: TabularModel, rng: np.random.Generator, prefix: tuple[int, ...]) -> tuple[int, ...]:
    while len(prefix) < tabular.length:
        prefix = (*prefix, int(rng.choice(4, p=tabular.probabilities(prefix))))
    return prefix


def estimate(tabular, teacher, rng, adaptive: bool, chance: float):
    """Base rollouts, a random choice of nodes, two or more rollouts for two of their tokens; the sums and the value of the root."""
    base = [sample(tabular, rng, ()) for _ in range(BASE)]
    visited = sorted({path[:t] for path in base for t in range(tabular.length)})
    chosen, forced = [], []
    for prefix in visited:
        inclusion = min(1.0, chance * (1 + len(prefix)))
        chosen.append((inclusion, rng.random() < inclusion))
        if chosen[-1][1]:
            tokens = np.argsort(-np.abs(lifts(tabular, teacher, prefix)[0] * tabular.probabilities(prefix)))[:2]
            pilot = [[sample(tabular, rng, (*prefix, int(k))) for _ in range(2)] for k in tokens]
            for k, paths, others in zip(tokens, pilot, reversed(pilot), strict=True):
                if (
                    adaptive and len({tabular.rewards[p] for p in others}) > 1
                ):  # the other token's outcomes decide, never its own
                    paths += [sample(tabular, rng, (*prefix, int(k))) for _ in range(3)]
                forced += [(len(prefix), path) for path in paths]
    paths = base + [path for _, path in forced]
    tree = build_tree([np.array(path) for path in paths])
    flow = passage(tree, np.array([-1] * BASE + [depth for depth, _ in forced]))
    reward = np.array([tabular.rewards[path] for path in paths])
    by_prefix = {tree.prefix(n): n for n in range(len(tree))}
    nodes = np.array([by_prefix[prefix] for prefix in visited])
    place = np.array([[by_prefix.get((*prefix, k), -1) for k in range(4)] for prefix in visited])
    probability = np.full(len(tree), np.nan)
    probs = np.stack([tabular.probabilities(prefix) for prefix in visited])
    probability[place[place >= 0]] = probs[place >= 0]
    lift = np.stack([lifts(tabular, teacher, prefix) for prefix in visited], axis=1)
    functionals = Functionals(probs, lift, (probs * lift**2).sum(-1))
    inclusion, taken = (np.array(column) for column in zip(*chosen, strict=True))
    design = Design(inclusion.astype(float), taken.astype(bool), np.full(len(visited), 4.0))
    arguments = (flow, reward, probability, place, nodes, functionals, design)
    return arguments, estimate_totals(*arguments), stratified_values(flow, reward, probability)[0]


@pytest.mark.parametrize(("adaptive", "chance"), [(False, 0.2), (True, 0.2), (True, 1.0)])
def test_sums_and_values_are_unbiased_and_their_standard_errors_honest(tabular, teacher, adaptive, chance):
    rng = np.random.default_rng(7)
    found = [estimate(tabular, teacher, rng, adaptive, chance) for _ in range(REPETITIONS)]
    sums, errors = (np.stack([getattr(totals, name) for _, totals, _ in found]) for name in ("sum_M", "se_M"))
    values = np.array([value for _, _, value in found])
    exact = truth(tabular, teacher)
    for m in range(2):
        spread = sums[:, m].std() / np.sqrt(REPETITIONS)
        assert abs(sums[:, m].mean() - exact[m]) < 3.5 * spread
        assert 0.85 < np.sqrt((errors[:, m] ** 2).mean()) / sums[:, m].std() < 1.25
    assert abs(values.mean() - tabular.value(())) < 3.5 * values.std() / np.sqrt(REPETITIONS)


def test_the_ideal_step_is_the_same_estimate_before_it_meets_a_direction(tabular, teacher):
    """With a single functional the mixture is the same, so the product of step and direction is the estimated sum."""
    rng = np.random.default_rng(3)
    for _ in range(20):
        (flow, reward, probability, place, nodes, functionals, design), _, _ = estimate(tabular, teacher, rng, True, 0.4)
        one = Functionals(functionals.probs_NK, functionals.lift_MNK[:1], functionals.lift2_MN[:1])
        total = estimate_totals(flow, reward, probability, place, nodes, one, design).sum_M[0]
        c = ideal_coefficients(flow, reward, probability, place, nodes, one, design)
        assert (c * one.lift_MNK[0]).sum() == pytest.approx(total, abs=1e-12)


def test_the_ideal_step_is_unbiased_token_by_token(tabular, teacher):
    """Sum of c (e - pi) over all nodes, against sum of visitation g by enumeration."""
    rng = np.random.default_rng(5)
    found = []
    for _ in range(REPETITIONS):
        arguments, _, _ = estimate(tabular, teacher, rng, False, 0.3)
        c, probs = ideal_coefficients(*arguments), arguments[5].probs_NK
        found.append((c - c.sum(1, keepdims=True) * probs).sum(0))
    exact = np.zeros(4)
    for prefix in tabular.prefixes:
        pi, success = tabular.probabilities(prefix), tabular.success(prefix)
        exact += tabular.visitation(prefix) * pi * (success - pi @ success)
    mean, spread = np.mean(found, 0), np.std(found, 0) / np.sqrt(REPETITIONS)
    assert (np.abs(mean - exact) < 3.5 * spread).all()


def test_without_forced_rollouts_values_are_plain_means(tabular):
    rng = np.random.default_rng(0)
    paths = [sample(tabular, rng, ()) for _ in range(20)]
    tree = build_tree([np.array(path) for path in paths])
    reward = np.array([tabular.rewards[path] for path in paths])
    values = stratified_values(passage(tree, np.full(20, -1)), reward, np.full(len(tree), np.nan))
    for node in range(len(tree)):
        prefix = tree.prefix(node)
        assert values[node] == pytest.approx(
            np.mean([r for p, r in zip(paths, reward, strict=True) if p[: len(prefix)] == prefix])
        )


def test_stratified_value_by_hand():
    """Root: token 0 was forced twice (rewards 1, 0); of two base rollouts one took 0 (reward 1), one took 1 (reward 0)."""
    tree = build_tree([np.array([0, 5]), np.array([1, 5]), np.array([0, 6]), np.array([0, 7])])
    flow = passage(tree, np.array([-1, -1, 0, 0]))
    probability = np.full(len(tree), np.nan)
    probability[tree.child(np.array([0]), np.array([0]))[0]] = 0.8
    value = stratified_values(flow, np.array([1.0, 0.0, 1.0, 0.0]), probability)
    assert value[0] == pytest.approx(0.8 * 2 / 3 + 0.5 * 0.0)
