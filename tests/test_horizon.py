"""From a first step to later ones: the course between slope and end, and what end a teacher has."""

import numpy as np
import pytest

from gradalign.findings.foretold import Foretold, Horizon
from gradalign.findings.validated import validated
from gradalign.horizon import change, ends, shares, speed

SLOPE = np.array([200.0, 150.0, 40.0, -100.0, 0.0])
LIFT = np.array([0.4, 0.1, 0.5, -0.1, 0.0])
UNIT = np.array([2.0, 1.6, 0.4, -1.5, 0.0])


def test_the_course_sets_out_with_the_slope_and_ends_where_it_ends():
    pace, end = speed(SLOPE, LIFT), ends(SLOPE, LIFT, UNIT)
    for time in (1e-6, 1e-4):
        np.testing.assert_allclose(change(SLOPE, end, pace, time), SLOPE / pace * time, rtol=2 * time, atol=1e-15)
    np.testing.assert_allclose(change(SLOPE, end, pace, 60.0), end, atol=1e-12)


def test_the_end_hardly_counts_at_first():
    """With the third power of time: two of one slope stay together until much is learned."""
    gap = [float(np.ptp(change(np.array([1.0, 1.0]), np.array([0.0, 1.0]), 1.0, time))) for time in (0.01, 0.02)]
    assert gap[1] / gap[0] == pytest.approx(8, rel=0.05)


def test_the_speed_is_that_of_those_who_set_out_best():
    assert speed(SLOPE, LIFT) == pytest.approx(np.median([200 / 0.4, 150 / 0.1]))
    assert speed(2 * SLOPE, LIFT) == pytest.approx(2 * speed(SLOPE, LIFT))
    assert np.isnan(speed(-SLOPE[:1], LIFT[:1]))
    assert np.isnan(speed(SLOPE, -np.abs(LIFT)))


def test_ends_are_the_lift_as_far_as_it_carries_over():
    end = ends(SLOPE, LIFT, UNIT)
    np.testing.assert_allclose(end, [0.4, 0.1 * 0.64, 0.5 * 0.04, -0.1, 0.0])
    assert ends(np.array([-1.0]), np.array([0.3]), np.array([-1.0]))[0] == -0.3  # better by what leads away
    assert ends(np.array([1.0]), np.array([-0.3]), np.array([1.0]))[0] == -0.3  # a worse teacher, whatever its first step
    assert np.isnan(ends(SLOPE, LIFT * np.nan, UNIT)[0])


def test_shares_are_of_the_best():
    np.testing.assert_allclose(shares(UNIT), [1.0, 0.8, 0.2, -0.75, 0.0])
    assert np.isnan(shares(-np.abs(UNIT))).all()
    both = shares(np.stack([UNIT, 3 * UNIT]))
    np.testing.assert_allclose(both[0], both[1])


def test_resamples_of_all_questions_alike_give_the_value():
    rng = np.random.default_rng(0)
    adam, plain, lift = (rng.normal(mean, 0.1, (3, 10)) for mean in (1.0, 1.0, 0.3))
    told = Foretold(adam, plain, np.array([4.0, 1.0, 9.0]), lift)
    value, drawn = told.change(Horizon(), lambda values_MQ: np.full((2, 10), 0.1) @ values_MQ.T)
    np.testing.assert_allclose(drawn, np.tile(value, (2, 1)))
    np.testing.assert_allclose(told.unit_M, plain.mean(1) / [2, 1, 3])


def test_stages_share_the_training_equally():
    rng = np.random.default_rng(1)
    adam, plain, lift = rng.normal(size=(3, 3, 5))
    told = Foretold(adam, plain, np.array([4.0, 1.0, -2.0]), lift).over([(0,), (0, 1), (2,)])
    np.testing.assert_allclose(told.adam_MQ[1], (adam[0] + adam[1]) / 2)
    np.testing.assert_allclose(told.unit_M[:2], [plain[0].mean() / 2, (plain[0] / 2 + plain[1]).mean() / 2])
    assert told.unit_M[2] == 0  # a length that is all noise is none


def test_how_well_it_came_true_is_said_in_a_sentence():
    said = validated()
    assert "training runs of" in said
    assert "rank correlation" in said
    assert "docs/validation.md" in said
