"""The prefix tree against a dictionary of prefixes, and what success counts a rollout for."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradalign import tree as tree_module
from gradalign.success import branch_success, estimate_success, jeffreys_interval
from gradalign.tree import PrefixTree, build_tree

sequences = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=6), min_size=1, max_size=12)
with_empty = st.lists(st.lists(st.integers(0, 2), max_size=6), max_size=12)


def defined_tree(raw: list[list[int]]) -> PrefixTree:
    """The tree by its definition: prefixes in the order of depth, parent and token, numbered as they come."""
    number = {(): 0}
    for depth in range(1, 1 + max(map(len, raw), default=0)):
        level = {tuple(s[:depth]) for s in raw if len(s) >= depth}
        for prefix in sorted(level, key=lambda prefix: (number[prefix[:-1]], prefix[-1])):
            number[prefix] = len(number)
    parent = [-1, *(number[prefix[:-1]] for prefix in number if prefix)]
    token = [-1, *(prefix[-1] for prefix in number if prefix)]
    longest = max(map(len, raw), default=0)
    path = [[number[tuple(s[: t + 1])] if t < len(s) else -1 for t in range(longest)] for s in raw]
    return PrefixTree(
        np.array(parent),
        np.array(token),
        np.array([len(prefix) for prefix in number]),
        np.array(path, dtype=int).reshape(len(raw), longest),
    )


def require_as_defined(raw: list[list[int]]) -> None:
    found, defined = build_tree([np.array(s, dtype=np.int64) for s in raw]), defined_tree(raw)
    for name in ("parent", "token", "depth", "path_RT"):
        np.testing.assert_array_equal(getattr(found, name), getattr(defined, name), name)
    origin_RT = np.where(defined.path_RT >= 0, defined.parent[defined.path_RT], -1)
    np.testing.assert_array_equal(found.origin_RT(), origin_RT)
    visits = np.array([(origin_RT == node).sum() for node in range(len(defined))])
    np.testing.assert_array_equal(found.visits(), visits)
    weight_R, valid_RT = np.arange(len(raw)) + 0.5, (defined.path_RT >= 0) & (defined.path_RT % 3 != 1)
    into = [(weight_R[:, None] * (valid_RT & (defined.path_RT == node))).sum() for node in range(len(defined))]
    np.testing.assert_allclose(found.branch_sums(valid_RT, weight_R), into)
    through = [(weight_R[:, None] * (origin_RT == node)).sum() for node in range(len(defined))]
    np.testing.assert_allclose(found.weighted_visits(weight_R), through)
    np.testing.assert_array_equal(found.follow([np.array(s, dtype=np.int64) for s in raw]), defined.path_RT)


@given(with_empty)
def test_tree_is_that_of_its_definition(raw):
    require_as_defined(raw)


@pytest.mark.parametrize("block", [1, 50, 1 << 20])
@pytest.mark.parametrize("vocabulary", [2, 50_000])
def test_tree_is_the_same_whatever_the_blocks(block, vocabulary, monkeypatch):
    monkeypatch.setattr(tree_module, "_BLOCK", block)
    rng = np.random.default_rng(0)
    same = rng.integers(vocabulary, size=9).tolist()
    for raw in (
        [same] * 7,
        [[*same, token] for token in range(7)],
        [rng.integers(vocabulary, size=n).tolist() for n in range(30)],
    ):
        require_as_defined(raw)


@settings(deadline=None)
@given(st.lists(st.lists(st.sampled_from([0, 1, 2**31 - 1]), max_size=4), min_size=1, max_size=8))
def test_tree_holds_tokens_up_to_32_bits(raw):
    require_as_defined(raw)


def test_child_is_right_where_nodes_times_tokens_leave_32_bits():
    rng = np.random.default_rng(0)
    raw = [rng.integers(0, 200_000, 40) for _ in range(1000)]
    tree = build_tree(raw)
    assert len(tree) * 200_000 > 2**32
    np.testing.assert_array_equal(tree.child(tree.parent[1:], tree.token[1:]), np.arange(1, len(tree)))
    np.testing.assert_array_equal(tree.child(tree.parent[1:], tree.token[1:] + 200_000), np.full(len(tree) - 1, -1))
    np.testing.assert_array_equal(tree.follow(raw), tree.path_RT)


def test_more_tokens_than_a_tree_can_number_are_refused():
    long = np.broadcast_to(np.int32(0), 2**30)
    with pytest.raises(ValueError, match="too many for one tree"):
        build_tree([long, long])


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
