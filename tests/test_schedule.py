"""Windows, inclusion probabilities and candidates, against what they promise."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradalign.schedule import (
    Reference,
    allocate,
    choose_candidates,
    depth_window,
    expected_tokens,
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


def wanted(rng: np.random.Generator, nodes: int, budget: float) -> np.ndarray:
    """Rollouts wanted at random nodes of a question that is like its reference."""
    window, worth, distance = depth_window(rng.integers(0, 40, nodes)), rng.random(nodes) ** 4, rng.random(nodes)
    return wanted_rollouts(worth, distance, window, Reference.of(worth, distance, window, np.array([9])), budget)


@given(st.integers(0, 2**31), st.floats(1, 1e4))
def test_a_question_like_its_reference_wants_the_budget(seed, budget):
    rollouts = wanted(np.random.default_rng(seed), 50, budget)
    assert rollouts.sum() == pytest.approx(budget)
    assert (rollouts >= 0).all()


def test_a_question_where_more_is_at_stake_than_elsewhere_wants_more():
    ones, window = np.ones(4), np.arange(4)
    reference = Reference.of(ones, ones, window, np.array([9]))
    assert wanted_rollouts(3 * ones, 3 * ones, window, reference, 10.0).sum() == pytest.approx(30)


def test_a_reference_is_the_mean_of_questions_and_knows_how_long_rollouts_are():
    one = Reference.of(np.array([1.0, 2.0]), np.array([1.0, 1.0]), np.array([0, 1]), np.array([4, 4]))
    other = Reference.of(np.array([5.0]), np.array([0.0]), np.array([0]), np.array([2]))
    both = Reference.mean([one, other])
    assert both.worth == 4.0
    assert both.distance == 1.0
    assert both.window_worth_W.tolist() == [3.0, 1.0]
    assert expected_tokens(both.lengths_R, np.array([0, 1, 2, 3, 9])).tolist() == [
        pytest.approx(7 / 3),
        pytest.approx(4 / 3),
        1,
        1,
        1,
    ]


def test_where_nothing_is_at_stake_nothing_is_wanted():
    nothing = Reference.of(np.zeros(4), np.zeros(4), np.zeros(4, dtype=int), np.array([3]))
    assert wanted_rollouts(np.zeros(4), np.zeros(4), np.zeros(4, dtype=int), nothing, 10.0).tolist() == [0, 0, 0, 0]


@settings(max_examples=50)
@given(st.integers(0, 2**31))
def test_a_larger_budget_only_adds_nodes(seed):
    chances = [
        inclusion_probabilities(wanted(np.random.default_rng(seed), 60, budget), np.full(60, 8.0)) for budget in (100.0, 300.0)
    ]
    draws = np.random.default_rng(seed + 1).random(60)
    assert {*poisson_sample(chances[0], draws)} <= {*poisson_sample(chances[1], draws)}


def test_weighted_total_is_unbiased_over_the_choice_of_nodes():
    rng = np.random.default_rng(1)
    chance = inclusion_probabilities(wanted(rng, 48, 200.0), np.full(48, 8.0))
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
    prior, worth, cost = np.full((2, 2), 0.5), np.array([1.0, 2.0, 1.0, 0.5]), np.ones(4)
    before = others_variance(success, n, prior)
    assert before[0, 0] == pytest.approx((5 / 6) * (1 / 6))
    counts = allocate(worth, np.sqrt(before).ravel(), cost, n.ravel(), 60.0)
    for own in (1.0, 3.0):
        changed = success.copy()
        changed[0, 0] = own
        after = others_variance(changed, n, prior)
        assert after[0, 0] == before[0, 0]
        assert allocate(worth, np.sqrt(after).ravel(), cost, n.ravel(), 60.0)[0] == counts[0], "nor by the common limit"


@given(st.integers(0, 2**31), st.floats(1, 500))
def test_allocation_keeps_what_was_had_stays_within_the_limit_and_follows_worth(seed, limit):
    rng = np.random.default_rng(seed)
    worth, cost = rng.random(18), rng.uniform(1, 9, 18)
    had = pilot_rollouts(rng.random(18) < 0.5, cost, 4, limit)
    assert (had * cost).sum() <= limit
    n = allocate(worth, rng.uniform(0.1, 0.5, 18), cost, had, limit)
    assert (n >= had).all()
    assert (n * cost).sum() <= limit
    most = allocate(worth, np.full(18, 0.5), cost, had, limit)
    more = most > had
    pull = (worth / np.sqrt(cost))[more]
    assert (np.diff(most[more][np.argsort(pull)]) >= 0).all()


def test_priority_is_the_root_mean_square_over_what_is_compared():
    coefficient, visits = np.array([[[3.0, 1.0]], [[4.0, 1.0]]]), np.array([2.0])
    np.testing.assert_allclose(priority(coefficient, visits), [[2 * np.sqrt(12.5), 2.0]])
    assert priority(coefficient[:0], visits).tolist() == [[0.0, 0.0]]
