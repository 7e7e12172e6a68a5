"""Intervals from influences of questions: their ends, their freedom, and that they cover where plain t does not."""

import numpy as np
import pytest
from scipy.stats import t as student_t

from gradalign.inference import (
    Resamples,
    _unskewed,
    bootstrap_counts,
    effective_freedom,
    influence_interval,
    standard_error,
    upper_bound,
)


def test_even_influences_give_students_interval():
    """Where nothing is skewed and tails are thin, both ends are plain t with Q - 1 degrees of freedom."""
    influence = np.tile([-1.0, 1.0], 10)[None]
    assert effective_freedom(influence) == 19
    low, high = influence_interval(np.array([2.0]), influence)
    half = student_t.ppf(0.975, 19) * influence.std(ddof=1) / np.sqrt(20)
    assert low[0] == pytest.approx(2 - half, rel=1e-4)
    assert high[0] == pytest.approx(2 + half, rel=1e-4)
    assert upper_bound(np.array([2.0]), influence, 0.025)[0] == pytest.approx(2 + half)


def test_freedom_is_what_the_spread_of_variances_says():
    """2 / (relative error of the variance)^2, over many samples of a law with heavy tails."""
    rng = np.random.default_rng(0)
    draws = rng.standard_t(12, size=(20_000, 200))
    variances = draws.var(axis=1, ddof=1)
    truth = 2 * variances.mean() ** 2 / variances.var()
    assert np.median(effective_freedom(draws[:2000])) == pytest.approx(truth, rel=0.25)
    assert truth < 150


def test_the_correction_inverts_halls_transformation():
    for skew in (-0.4, -0.01, 0.01, 0.3):
        for quantile in (-2.5, -0.3, 0.0, 1.96):
            t = _unskewed(np.array([quantile]), np.array([skew]))[0]
            assert t + skew * t**2 / 3 + skew**2 * t**3 / 27 + skew / 6 == pytest.approx(quantile, abs=1e-9)


def test_means_of_skewed_questions_are_covered():
    rng = np.random.default_rng(1)
    draws = rng.gamma(0.6, 1 / 0.6, (4000, 32))
    mean, influence = draws.mean(1), draws - draws.mean(1, keepdims=True)
    low, high = influence_interval(mean, influence)
    half = student_t.ppf(0.975, 31) * standard_error(influence)
    plain = (np.abs(mean - 1) <= half).mean()
    assert plain < 0.925
    assert 0.93 <= ((low <= 1) & (high >= 1)).mean() <= 0.97


def test_one_question_and_no_spread():
    assert np.isnan(influence_interval(np.ones(1), np.zeros((1, 1)))).all()
    low, high = influence_interval(np.ones(1), np.zeros((1, 8)))
    assert low == high == 1


def test_resamples_draw_whole_questions_with_replacement():
    values = np.random.default_rng(0).standard_normal((3, 37))
    counts = np.random.default_rng(5).multinomial(37, np.full(37, 1 / 37), size=250)
    np.testing.assert_array_equal(bootstrap_counts(37, 250, 5), counts)
    np.testing.assert_allclose(Resamples(37, 250, 5).means(values), counts @ values.T / 37, rtol=1e-12, atol=1e-15)
