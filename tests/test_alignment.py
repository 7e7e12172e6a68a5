"""Scores against their definitions, and estimators against the exactly known tabular model."""

import numpy as np
import pytest
import torch

from gradalign.alignment import (
    SCORES,
    ScoreSums,
    align,
    cosine,
    drive,
    estimate_ideal_direction,
    gain,
    mean_cosine,
    pooled_cosine,
    pooled_scores,
    teacher_advantage,
    weighted_cosine,
)
from gradalign.objectives import NodeSignals, ideal_direction, parse_objective
from gradalign.success import SuccessEstimates, estimate_success
from gradalign.testbed import TabularModel

REPETITIONS = 1000


def test_values_and_ideal_direction_equal_enumeration(tabular: TabularModel):
    """Success is the expected reward over all sequences; its gradient at the root's logits is g."""
    table = tabular.logits_NV.clone().requires_grad_()
    logprobs = torch.log_softmax(table, -1)
    total = torch.zeros((), dtype=torch.float64)
    for sequence, reward in tabular.rewards.items():
        steps = [logprobs[tabular.prefixes[sequence[:t]], token] for t, token in enumerate(sequence)]
        total = total + reward * torch.stack(steps).sum().exp()
    assert abs(total.item() - tabular.value(())) < 1e-12
    total.backward()
    assert table.grad is not None
    for prefix, row in tabular.prefixes.items():
        local = ideal_direction(logprobs[[row]].detach(), torch.tensor(tabular.success(prefix))[None])[0]
        np.testing.assert_allclose(table.grad[row].numpy(), tabular.visitation(prefix) * local.numpy(), atol=1e-10)


def sample_estimates(rng: np.random.Generator, success: np.ndarray, n: int, repetitions: int) -> SuccessEstimates:
    total = rng.binomial(n, success, size=(repetitions, len(success))).astype(float)
    return estimate_success(np.full(total.shape, n), total, total, np.zeros(total.shape, dtype=bool))


@pytest.mark.parametrize("prefix", [(), (1,), (2, 0)])
@pytest.mark.parametrize("tried", [[True, True, True, True], [True, False, True, True]])
def test_inner_product_is_unbiased_corrected_norm_is_unbiased_and_intervals_cover(tabular: TabularModel, prefix, tried):
    rng = np.random.default_rng(5)
    pi, success = tabular.probabilities(prefix), tabular.success(prefix)
    tau = tabular.tilted(2.0, "teacher").probabilities(prefix)
    support = np.tile(np.array(tried), (REPETITIONS, 1))
    d = parse_objective("reverse_kl").direction(NodeSignals(*(torch.tensor(p)[None].log() for p in (pi, tau))))[0].numpy()
    g = ideal_direction(torch.tensor(pi)[None].log(), torch.tensor(success)[None], torch.tensor(tried)[None])[0].numpy()
    estimates = sample_estimates(rng, success, 16, REPETITIONS)
    probs, directions = np.tile(pi, (REPETITIONS, 1)), np.tile(d, (REPETITIONS, 1))
    ideal = estimate_ideal_direction(probs, estimates, support)
    found = align(probs, estimates, support, ideal, directions, (directions**2).sum(1))
    for drawn, truth in ((found.dot_N, g @ d), (ideal.corrected_norm2_N, g @ g)):
        assert abs(drawn.mean() - truth) < 3.3 * drawn.std() / np.sqrt(REPETITIONS)
    assert ideal.norm2_N.mean() > g @ g
    covered = np.abs(found.dot_N - g @ d) <= 1.96 * found.dot_se_N
    assert 0.93 <= covered.mean() <= 0.97


def test_corrected_norm_by_its_definition(tabular: TabularModel):
    """The correction is the trace of A Var(S) A^T, term by term."""
    pi = tabular.probabilities(())
    estimates = sample_estimates(np.random.default_rng(0), tabular.success(()), 8, 1)
    ideal = estimate_ideal_direction(pi[None], estimates, np.ones((1, 4), dtype=bool))
    noise = sum(
        (pi[j] * ((j == k) - pi[k])) ** 2 * estimates.variance[0, k] for j in range(4) for k in range(4)
    )  # fmt: skip
    assert abs(ideal.corrected_norm2_N[0] - (ideal.norm2_N[0] - noise)) < 1e-14


def test_nodes_without_difference_are_called_informative_at_the_stated_level():
    rng = np.random.default_rng(2)
    pi = np.tile([0.5, 0.3, 0.15, 0.05], (4000, 1))
    tried = np.ones(pi.shape, dtype=bool)
    alike = estimate_ideal_direction(pi, sample_estimates(rng, np.full(4, 0.4), 16, 4000), tried)
    assert 0.02 < alike.informative_N.mean() < 0.08
    unlike = estimate_ideal_direction(pi, sample_estimates(rng, np.array([0.9, 0.1, 0.1, 0.1]), 16, 4000), tried)
    assert unlike.informative_N.mean() > 0.95
    settled = estimate_ideal_direction(pi[:10], sample_estimates(rng, np.zeros(4), 16, 10), tried[:10])
    assert not settled.informative_N.any()


def test_pooled_scores_from_sums_equal_their_definitions_over_nodes():
    rng = np.random.default_rng(0)
    n = 50
    weight, dot, g2, d2 = rng.random(n), rng.standard_normal(n), rng.random(n), rng.random(n)
    cos, useful, advantage = rng.uniform(-1, 1, n), rng.random(n) < 0.5, rng.standard_normal(n)
    terms = {
        "weight": weight,
        "dot": weight * dot,
        "d_norm2": weight * d2,
        "advantage": weight * advantage,
        "cos_dot": weight * dot,
        "cos_g2": weight * g2,
        "cos_d2": weight * d2,
        "cos_lengths": weight * np.sqrt(g2 * d2),
        "cos": np.where(useful, weight * cos, 0),
        "informative": np.where(useful, weight, 0),
    }
    sums = ScoreSums(**{name: np.array([term.sum()]) for name, term in terms.items()})
    found = pooled_scores(sums)
    expected = {
        "drive": drive(weight, dot),
        "gain": gain(weight, dot, d2),
        "pooled_cosine": pooled_cosine(weight, dot, g2, d2),
        "weighted_cosine": weighted_cosine(weight, dot, g2, d2),
        "mean_cosine": mean_cosine(weight, cos, useful),
        "teacher_advantage": teacher_advantage(weight, advantage),
    }
    assert found.keys() == expected.keys() == {*SCORES}
    for name, value in expected.items():
        assert np.isclose(found[name][0], value), name


def test_scores_of_parallel_directions():
    """Where every d is a positive multiple of g, each cosine is 1, and gain and drive follow from lengths."""
    rng = np.random.default_rng(1)
    g = rng.standard_normal((40, 6))
    d, weight = g * rng.random((40, 1)), rng.random(40)
    dot, g2, d2 = (g * d).sum(1), (g**2).sum(1), (d**2).sum(1)
    np.testing.assert_allclose(cosine(g, d), 1)
    np.testing.assert_allclose(cosine(g, -d), -1)
    assert np.isnan(cosine(g, 0 * d)).all()
    assert weighted_cosine(weight, dot, g2, d2) == pytest.approx(1)
    assert mean_cosine(weight, cosine(g, d), np.ones(40, dtype=bool)) == pytest.approx(1)
    assert pooled_cosine(weight, (g * g).sum(1), g2, g2) == pytest.approx(1)
    assert gain(weight, (g * g).sum(1), g2) == pytest.approx(np.sqrt((weight * g2).sum()))
    assert drive(weight, dot) == pytest.approx(np.average(dot, weights=weight))


def test_scores_without_evidence_are_missing():
    zero = np.zeros(3)
    found = pooled_scores(ScoreSums(zero, zero, zero, zero, zero, zero, zero, zero, zero, zero))
    assert all(np.isnan(score).all() for score in found.values())
