"""The prefix tree against a dictionary of prefixes, and what success counts a rollout for."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradalign.success import branch_success, estimate_success, jeffreys_interval
from gradalign.tree import build_tree

sequences = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=6), min_size=1, max_size=12)


@given(sequences)
def test_tree_holds_every_prefix_once(raw):
    tree = build_tree([np.array(s) for s in raw])
    prefixes = {tuple(s[:depth]) for s in raw for depth in range(len(s) + 1)}
    assert {tree.prefix(node) for node in range(len(tree))} == prefixes
    assert len(tree) == len(prefixes)
    visits = dict(zip((tree.prefix(n) for n in range(len(tree))), tree.visits(), strict=True))
    for prefix in prefixes:
        assert visits[prefix] == sum(tuple(s[: len(prefix)]) == prefix and len(s) > len(prefix) for s in raw)
        assert tree.depth[next(n for n in range(len(tree)) if tree.prefix(n) == prefix)] == len(prefix)


@given(sequences, st.randoms(use_true_random=False))
def test_tree_does_not_depend_on_the_order_of_rollouts(raw, random):
    shuffled = random.sample(raw, len(raw))
    one, other = build_tree([np.array(s) for s in raw]), build_tree([np.array(s) for s in shuffled])
    np.testing.assert_array_equal(one.parent, other.parent)
    np.testing.assert_array_equal(one.token, other.token)


@given(sequences)
def test_child_finds_every_branch_and_no_other(raw):
    tree = build_tree([np.array(s) for s in raw])
    by_prefix = {tree.prefix(n): n for n in range(len(tree))}
    for prefix, node in by_prefix.items():
        found = tree.child(np.full(6, node), np.arange(-1, 5))
        assert found.tolist() == [-1, *(by_prefix.get((*prefix, token), -1) for token in range(5))]


def test_a_targeted_rollout_counts_from_its_forced_token_down_only():
    base, targeted = np.array([1, 2, 3]), np.array([1, 0, 3])
    tree = build_tree([base, targeted])
    ends = np.zeros(len(tree), dtype=bool)
    found = branch_success(tree, np.array([1.0, 0.0]), np.array([-1, 1]), ends, np.arange(-1, len(tree))[1:])
    n = {tree.prefix(node): found.n[node] for node in range(1, len(tree))}
    assert n == {(1,): 1, (1, 2): 1, (1, 0): 1, (1, 2, 3): 1, (1, 0, 3): 1}
    node = next(n for n in range(len(tree)) if tree.prefix(n) == (1,))
    assert found.mean[node] == 1.0


@pytest.mark.parametrize(("n", "right", "low", "high"), [(8, 0, 0.0, 0.262), (8, 8, 0.738, 1.0), (10, 5, 0.224, 0.776)])
def test_jeffreys_interval_is_honest_at_the_ends(n, right, low, high):
    lower, upper = jeffreys_interval(np.array([n]), np.array([float(right)]))
    np.testing.assert_allclose([lower[0], upper[0]], [low, high], atol=1e-3)


def test_no_rollouts_is_missing_and_not_zero():
    found = estimate_success(np.array([0]), np.array([0.0]), np.array([0.0]), np.array([False]))
    assert all(np.isnan(getattr(found, name)[0]) for name in ("mean", "lower", "upper", "variance", "smooth_variance"))


def test_jeffreys_coverage_on_average_over_success():
    rng = np.random.default_rng(0)
    truth = rng.random(20_000)
    n = rng.integers(4, 40, len(truth))
    lower, upper = jeffreys_interval(n, rng.binomial(n, truth).astype(float))
    assert 0.93 <= np.mean((lower <= truth) & (truth <= upper)) <= 0.97


def test_weighted_visits_are_visits_of_rollouts_that_count_differently():
    tree = build_tree([np.array([0, 1]), np.array([0, 2]), np.array([1])])
    assert tree.weighted_visits(np.ones(3)).tolist() == tree.visits().tolist()
    assert tree.weighted_visits(np.array([0.5, 0.0, 2.0]))[0] == 2.5
    assert tree.weighted_visits(np.array([0.5, 0.0, 2.0]))[1] == 0.5
