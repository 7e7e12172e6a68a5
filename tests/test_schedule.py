"""Windows, inclusion probabilities and candidates, against what they promise."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradalign.schedule import (
    allocate,
    choose_candidates,
    depth_window,
    inclusion_probabilities,
    nodes_per_window,
    others_variance,
    pilot_branches,
    pilot_rollouts,
    poisson_sample,
    priority,
    top_nodes,
    wanted_rollouts,
)


def test_windows_double():
    assert depth_window(np.arange(10)).tolist() == [0, 1, 2, 2, 3, 3, 3, 3, 4, 4]
    assert depth_window(np.array([2**20 - 1, 2**20])).tolist() == [20, 21]


@given(st.lists(st.integers(1, 50), min_size=1, max_size=8), st.integers(1, 200))
def test_windows_share_the_budget(counts, budget):
    per_window = nodes_per_window(np.array(counts), budget)
    assert np.minimum(counts, per_window).sum() <= budget
    assert per_window == max(counts) or np.minimum(counts, per_window + 1).sum() > budget


def wanted(rng: np.random.Generator, nodes: int, budget: float) -> tuple[np.ndarray, np.ndarray]:
    """Rollouts wanted at random nodes, and what one costs there."""
    window, cost = depth_window(rng.integers(0, 40, nodes)), rng.uniform(1, 40, nodes)
    return wanted_rollouts(rng.random(nodes) ** 4, rng.random(nodes), window, cost, budget), cost


@given(st.integers(0, 2**31), st.floats(1, 1e4))
def test_wanted_rollouts_cost_the_budget(seed, budget):
    rollouts, cost = wanted(np.random.default_rng(seed), 50, budget)
    assert (rollouts * cost).sum() == pytest.approx(budget)
    assert (rollouts >= 0).all()


def test_where_no_node_has_a_size_nothing_is_wanted():
    nothing = wanted_rollouts(np.zeros(4), np.ones(4), np.zeros(4, dtype=int), np.ones(4), 10.0)
    assert nothing.tolist() == [0, 0, 0, 0]


@settings(max_examples=50)
@given(st.integers(0, 2**31))
def test_a_larger_budget_only_adds_nodes(seed):
    rng = np.random.default_rng(seed)
    state = rng.bit_generator.state
    chances = []
    for budget in (100.0, 300.0):
        rng.bit_generator.state = state
        chances.append(inclusion_probabilities(wanted(rng, 60, budget)[0], np.full(60, 8.0)))
    draws = np.random.default_rng(seed + 1).random(60)
    assert {*poisson_sample(chances[0], draws)} <= {*poisson_sample(chances[1], draws)}


def test_weighted_total_is_unbiased_over_the_choice_of_nodes():
    rng = np.random.default_rng(1)
    chance = inclusion_probabilities(wanted(rng, 48, 200.0)[0], np.full(48, 8.0))
    value = rng.standard_normal(48)
    totals = []
    for _ in range(4000):
        chosen = poisson_sample(chance, rng.random(48))
        totals.append((value / chance)[chosen].sum())
    assert abs(np.mean(totals) - value.sum()) < 4 * np.std(totals) / np.sqrt(len(totals))


def test_top_takes_the_largest_equally_from_each_window():
    size = np.array([1.0, 5, 2, 4, 3])
    assert top_nodes(np.zeros(5, dtype=int), size, 2).tolist() == [1, 3]
    assert top_nodes(np.array([0, 1, 1, 2, 2]), size, 3).tolist() == [0, 1, 3]
    assert top_nodes(np.array([0, 1, 1, 2, 2]), size, 2).tolist() == [1, 3]


def test_candidates_go_by_turns_and_stop_when_enough_is_captured():
    turns = np.array([[0, 2, 4, 1, 3, 5]] * 3 + [[4, 4, 4, 1, 3, 5]])
    shares = np.full((4, 6, 2), 0.25)
    shares[3] = 1.0
    chosen = choose_candidates(turns, shares, 5, 0.9)
    assert turns[0][chosen[0]].tolist() == [0, 2, 4, 1]
    assert turns[0][choose_candidates(turns, shares, 3, 1.0)[0]].tolist() == [0, 2, 4]
    assert turns[3][chosen[3]].tolist() == [4, 1]


def test_pilot_tries_two_at_least_and_all_that_matter():
    worth = np.array([[1.0, 0.5, 0.2, 0.01], [1.0, 0.001, 0.0005, 0.0]])
    pilot = pilot_branches(worth, np.ones((2, 4), dtype=bool))
    assert pilot.tolist() == [[True, True, True, False], [True, True, False, False]]


def test_a_branch_has_no_say_in_its_own_rollouts():
    success, n = np.array([[0.0, 4.0], [2.0, 2.0]]), np.array([[4, 4], [4, 4]])
    before = others_variance(success, n, 0.5)
    for own in (0.0, 3.0):
        changed = success.copy()
        changed[0, 0] = own
        assert others_variance(changed, n, 0.5)[0, 0] == before[0, 0]
    assert before[0, 0] == pytest.approx((5 / 6) * (1 / 6))


@given(st.integers(0, 2**31), st.floats(1, 500))
def test_allocation_keeps_what_was_had_stays_within_the_limit_and_follows_worth(seed, limit):
    rng = np.random.default_rng(seed)
    worth, cost = rng.random((6, 3)), rng.uniform(1, 9, (6, 3))
    had = pilot_rollouts(rng.random((6, 3)) < 0.5, cost, 4, limit)
    assert (had * cost).sum() <= limit
    n = allocate(worth, cost, had, limit)
    assert (n >= had).all()
    assert (n * cost).sum() <= limit
    more = n > had
    pull = (worth / np.sqrt(cost))[more]
    assert (np.diff(n[more][np.argsort(pull)]) >= 0).all()


@settings(max_examples=50)
@given(st.integers(0, 2**31))
def test_priority_serves_every_compared_sum(seed):
    """A hundred times as long a direction gets no more rollouts: lengths are made comparable."""
    rng = np.random.default_rng(seed)
    coefficient, visits = rng.standard_normal((1, 5, 3)), rng.random(5)
    one = priority(coefficient, np.array([2.0]), visits)
    both = priority(np.concatenate([coefficient, 100 * coefficient]), np.array([2.0, 2e4]), visits)
    np.testing.assert_allclose(both, one)
