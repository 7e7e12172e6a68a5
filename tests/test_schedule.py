"""Windows, inclusion probabilities and candidates, against what they promise."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradalign.schedule import (
    choose_candidates,
    choose_nodes,
    depth_window,
    inclusion_probabilities,
    nodes_per_window,
    sampling_size,
    systematic_sample,
)


def test_windows_double():
    assert depth_window(np.arange(10)).tolist() == [0, 1, 2, 2, 3, 3, 3, 3, 4, 4]
    assert depth_window(np.array([2**20 - 1, 2**20])).tolist() == [20, 21]


@given(st.lists(st.integers(1, 50), min_size=1, max_size=8), st.integers(1, 200))
def test_windows_share_the_budget(counts, budget):
    per_window = nodes_per_window(np.array(counts), budget)
    assert np.minimum(counts, per_window).sum() <= budget
    assert per_window == max(counts) or np.minimum(counts, per_window + 1).sum() > budget


@given(st.lists(st.floats(0.001, 1000), min_size=1, max_size=30), st.integers(1, 30))
def test_inclusion_probabilities_sum_to_the_count_and_follow_size(sizes, count):
    size = np.array(sizes)
    probability = inclusion_probabilities(size, count)
    assert np.isclose(probability.sum(), min(count, len(size)))
    assert ((probability > 0) & (probability <= 1 + 1e-12)).all()
    free = probability < 1
    if free.any():
        np.testing.assert_allclose(probability[free] / size[free], (probability[free] / size[free])[0])


def test_systematic_sample_includes_each_node_with_its_probability():
    rng = np.random.default_rng(0)
    probability = inclusion_probabilities(rng.random(12) ** 3 + 0.01, 4)
    draws = np.zeros(12)
    repetitions = 20_000
    for _ in range(repetitions):
        chosen = systematic_sample(probability, rng.random(), rng.permutation(12))
        assert len(chosen) == 4
        draws[chosen] += 1
    error = np.sqrt(probability * (1 - probability) / repetitions)
    assert (np.abs(draws / repetitions - probability) <= 4.5 * error + 1e-12).all()


def test_weighted_total_is_unbiased_over_the_choice_of_nodes():
    rng = np.random.default_rng(1)
    window = depth_window(np.repeat(np.arange(8), 6))
    visits = rng.integers(1, 9, len(window))
    value = rng.standard_normal(len(window))
    size = sampling_size(np.abs(value) + rng.random(len(window)), visits)
    totals = []
    for _ in range(4000):
        sample = choose_nodes(window, size, 16, rng)
        totals.append((visits * value / sample.inclusion_N)[sample.chosen].sum())
    assert abs(np.mean(totals) - (visits * value).sum()) < 4 * np.std(totals) / np.sqrt(len(totals))


def test_with_fewer_nodes_than_windows_inclusion_probabilities_still_hold():
    rng = np.random.default_rng(2)
    window, size = np.array([0, 1, 1, 2, 2, 3]), np.array([1.0, 1, 3, 2, 2, 1])
    draws, repetitions = np.zeros(6), 20_000
    for _ in range(repetitions):
        sample = choose_nodes(window, size, 2, rng)
        assert len(sample.chosen) == 2
        draws[sample.chosen] += 1
    expected = sample.inclusion_N
    assert expected.sum() == pytest.approx(2)
    assert (np.abs(draws / repetitions - expected) < 4.5 * np.sqrt(expected * (1 - expected) / repetitions)).all()


def test_top_takes_the_largest_and_has_no_inclusion_probabilities():
    sample = choose_nodes(np.zeros(5, dtype=int), np.array([1.0, 5, 2, 4, 3]), 2, np.random.default_rng(0), "top")
    assert sample.chosen.tolist() == [1, 3]
    assert np.isnan(sample.inclusion_N).all()


def test_candidates_begin_with_sampled_tokens_and_stop_when_enough_is_captured():
    shares = dict.fromkeys(range(6), (0.25, 0.25))
    assert choose_candidates([4], [[0, 1], [2, 3], [4, 5]], shares, 5, 0.9) == [4, 0, 2, 1]
    assert choose_candidates([4], [[0, 1], [2, 3], [4, 5]], shares, 3, 1.0) == [4, 0, 2]
    assert choose_candidates([4], [[4, 1], [4, 3], [4, 5]], dict.fromkeys(range(6), (1.0, 1.0)), 4, 0.9) == [4, 1]


@settings(max_examples=50)
@given(st.integers(0, 2**31))
def test_nothing_chosen_twice_and_every_window_served(seed):
    rng = np.random.default_rng(seed)
    window = depth_window(rng.integers(0, 40, 60))
    sample = choose_nodes(window, rng.random(60) + 0.01, 12, rng)
    assert len(np.unique(sample.chosen)) == len(sample.chosen)
    assert {*window[sample.chosen]} == {*window}


@pytest.mark.parametrize("size", [np.zeros(4), np.array([1e-300, 0, 0, 0])])
def test_sampling_size_is_positive_where_no_gradient_is(size):
    assert (sampling_size(size, np.array([1, 2, 3, 4])) > 0).all()
