"""How clear gradients are at each pass rate, on simulated steps whose signal and noise are known."""

import numpy as np
from scipy.optimize import minimize

from gradalign.pacing import ClarityCurve, clarity_curves, even_bins, fit_exponents


def simulated(rng: np.random.Generator, questions: int) -> tuple[np.ndarray, np.ndarray]:
    """Steps with a common part of squared length p (1 - p) among noise of squared length 2 in every question."""
    p = rng.random(questions)
    common = np.sqrt(p * (1 - p))[:, None] * np.eye(20)[0]
    noise = rng.standard_normal((questions, 20)) * np.sqrt(2 / 20)
    return p, common + noise


def test_the_ratio_is_that_of_what_questions_have_in_common_to_the_rest():
    rng, found = np.random.default_rng(0), []
    for _ in range(60):
        p, steps = simulated(rng, 400)
        found.append(clarity_curves(steps, p, np.linspace(0, 1, 6), np.ones((1, 400)))[0].ratio_B)
    middle = np.array([0.1, 0.3, 0.5, 0.7, 0.9])
    exact = np.array([_mean_in_bin(b) for b in range(5)])
    np.testing.assert_allclose(np.mean(found, 0), exact, atol=0.01)
    assert np.argmax(exact) == 2
    assert middle[np.argmax(np.mean(found, 0))] == 0.5


def _mean_in_bin(b: int) -> float:
    """Squared mean of sqrt(p (1 - p)) over the bin, over noise and what questions of the bin differ in."""
    p = np.linspace(b / 5, (b + 1) / 5, 10_001)
    amplitude = np.sqrt(p * (1 - p))
    signal = amplitude.mean() ** 2
    return float(signal / (2 + (amplitude**2).mean() - signal))


def test_bins_hold_about_equally_many_questions():
    p = np.random.default_rng(0).beta(5, 2, 300)
    assert np.histogram(p, even_bins(p, 6))[0].tolist() == [50] * 6
    assert len(even_bins(np.full(9, 0.5), 4)) == 1


def test_copies_of_a_question_are_no_pairs():
    """Four questions with nothing in common, each twice: no signal."""
    steps = np.eye(4)
    curve = clarity_curves(steps, np.full(4, 0.5), np.linspace(0, 1, 6), np.full((1, 4), 2.0))[0]
    assert curve.ratio_B[2] == 0
    assert curve.count_B[2] == 8
    assert np.isnan(curve.ratio_B[[0, 1, 3, 4]]).all()


def test_exponents_of_a_curve_are_found():
    p = np.array([0.1, 0.3, 0.5, 0.7, 0.9])
    for alpha, beta in ((1.0, 1.0), (2.0, 0.5), (0.0, 3.0)):
        curve = ClarityCurve(p - 0.1, p + 0.1, np.full(5, 9.0), p, 0.03 * p**alpha * (1 - p) ** beta)
        np.testing.assert_allclose(fit_exponents([curve])[0], (alpha, beta), atol=0.01)
    few = ClarityCurve(p, p, np.full(5, 9.0), p, np.where(p < 0.6, 0.1, np.nan))
    assert np.isnan(fit_exponents([few])).all()


def test_exponents_are_those_of_least_squares():
    """Against scipy's search, from many starts, on curves that no exponents fit exactly."""
    rng = np.random.default_rng(5)
    p = np.array([0.15, 0.35, 0.5, 0.62, 0.8, 0.9])
    curves = [ClarityCurve(p, p, rng.integers(4, 30, 6).astype(float), p, rng.exponential(0.1, 6)) for _ in range(20)]
    for curve, found in zip(curves, fit_exponents(curves), strict=True):

        def error(x: np.ndarray, curve: ClarityCurve = curve) -> float:
            shape = p ** x[0] * (1 - p) ** x[1]
            c = (curve.count_B * curve.ratio_B * shape).sum() / (curve.count_B * shape**2).sum()
            return float((curve.count_B * (curve.ratio_B - c * shape) ** 2).sum())

        starts = [(a, b) for a in (0.1, 2, 6) for b in (0.1, 2, 6)]
        best = min(minimize(error, start, bounds=[(0, 8), (0, 8)]).fun for start in starts)
        assert error(found) <= best * (1 + 1e-3) + 1e-12
