"""Reward-reweighted targets over beta, from the rows of a run on the tabular model."""

from dataclasses import replace

import numpy as np
import pytest
from test_pipeline_exact import cast_of, config_for, questions

from gradalign.api import run_score
from gradalign.findings import rank, reward_reweighting
from gradalign.pipeline import Budget, Effort
from gradalign.types import GradalignError


@pytest.fixture(scope="module")
def run(tabular, tmp_path_factory):
    config = replace(config_for(60), objectives=("reverse_kl", "pbsd_target:0.5"))
    folder = tmp_path_factory.mktemp("run") / "r"
    return run_score(config, folder, cast=cast_of(tabular), questions=questions(60), effort=Effort(Budget(96)))


def test_with_success_known_it_is_the_objective_that_was_scored(run):
    """The same by another way: the limit of endless samples against `pbsd_target:0.5` of the run itself, whose |d|^2 has the cross
    term from the chosen nodes where this one has it from all rollouts."""
    found = reward_reweighting(run, samples=10**9, betas=(0.5,)).frame
    scored = rank(run).frame.set_index(["teacher", "objective"])
    rows = found[found.teacher == "model:better"].set_index("beta")
    assert rows.gain[0.5] == pytest.approx(scored.loc["model:better", "pbsd_target:0.5"].gain, rel=0.01)
    assert rows.gain[np.inf] == pytest.approx(scored.loc["model:better", "reverse_kl"].gain)


def test_a_harmful_teacher_is_mended_and_noise_takes_from_it(run):
    exact, noisy = (reward_reweighting(run, samples=n) for n in (10**9, 1))
    rows = noisy.frame[(noisy.frame.teacher == "model:worse")].set_index("beta")
    assert rows.gain[np.inf] < 0 < rows.gain[0.01]
    assert rows.better[rows.index <= 1].all()
    assert not rows.better[10.0]
    assert noisy.summary["model:worse"].startswith("improves on plain matching for beta from 0.01 to")
    merged = exact.frame.merge(noisy.frame, on=["teacher", "beta"]).dropna(subset=["gain_x", "gain_y"])
    assert len(merged) > 30
    assert (merged.gain_x.abs() >= merged.gain_y.abs() - 1e-12).all()


def test_a_teacher_tilted_by_success_gains_nothing_that_noise_does_not_take(run):
    """Its direction is nearly the ideal one already: rollouts of one sample can only blur it."""
    found = reward_reweighting(run, samples=1)
    rows = found.frame[(found.frame.teacher == "model:better") & np.isfinite(found.frame.beta)]
    assert not rows.better.any()
    assert rows.worse.any()
    assert "no beta" in found.summary["model:better"]
    assert "worse" in found.summary["model:better"]


def test_what_it_needs_is_named(tabular, tmp_path, run):
    config = replace(config_for(4), objectives=("forward_kl",))
    other = run_score(config, tmp_path / "r", cast=cast_of(tabular), questions=questions(4), effort=Effort(Budget(8)))
    with pytest.raises(GradalignError, match="--objective reverse_kl"):
        reward_reweighting(other)
    with pytest.raises(GradalignError, match="above 0"):
        reward_reweighting(run, betas=(0.0,))
    with pytest.raises(GradalignError, match="at least 1"):
        reward_reweighting(run, samples=0)
