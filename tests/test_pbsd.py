"""Reward-reweighted targets over beta, from the rows of a run on the tabular model."""

from dataclasses import replace

import numpy as np
import pytest
from test_pipeline_exact import cast_of, config_for, questions

from gradalign.api import run_score
from gradalign.findings import rank, reward_reweighting
from gradalign.pipeline import Budget, Cast, Effort
from gradalign.types import GradalignError, TeacherSpec


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


def test_self_teachers_are_compared_with_external_ones(tabular, tmp_path):
    """A helpful model against the student under a context that tells it nothing here: the model leads plainly, and not the other way."""
    cast = cast_of(tabular, ("model:better",))
    cast = Cast(cast.student, (*cast.teachers, TeacherSpec("ctx:none", "none", None)), cast.others)
    config = replace(
        config_for(40, teacher_rollouts=4), teachers=("model:better", "ctx:none"), objectives=("reverse_kl", "pbsd:1")
    )
    run = run_score(config, tmp_path / "r", cast=cast, questions=questions(40), effort=Effort(Budget(64)))
    found = reward_reweighting(run, betas=(0.5, 1.0))
    teachers = found.teachers.set_index("teacher")
    assert teachers.kind.to_dict() == {"model:better": "external", "ctx:none": "self"}
    assert teachers.kl["ctx:none"] == pytest.approx(0, abs=1e-9)
    exact = sum(
        tabular.visitation(p)
        * tabular.probabilities(p)
        @ np.log(tabular.probabilities(p) / cast.others["better"].model.language_model.probabilities(p))
        for p in tabular.prefixes
    )
    assert teachers.kl["model:better"] == pytest.approx(exact, rel=0.1)
    assert teachers.success["model:better"] > teachers.success["ctx:none"]
    assert teachers.pair_information["ctx:none"] == pytest.approx(1)
    plain = found.frame[np.isinf(found.frame.beta)].set_index("teacher").gain
    versus = found.versus.set_index("beta")
    for beta in (0.5, 1.0):
        rows = found.frame[found.frame.beta == beta].set_index("teacher").gain
        assert versus.difference[beta] == pytest.approx(rows["ctx:none"] - rows["model:better"])
    assert np.isnan(plain["ctx:none"]), "a teacher that is the student has no direction"
    assert (versus.leads.loc[[0.5, 1.0]] == "external").all()
    assert "the other model leads for beta from 0.5 to 1" in found.verdicts[0]


def test_what_it_needs_is_named(tabular, tmp_path, run):
    config = replace(config_for(4), objectives=("forward_kl",))
    other = run_score(config, tmp_path / "r", cast=cast_of(tabular), questions=questions(4), effort=Effort(Budget(8)))
    with pytest.raises(GradalignError, match="--objective reverse_kl"):
        reward_reweighting(other)
    with pytest.raises(GradalignError, match="above 0"):
        reward_reweighting(run, betas=(0.0,))
    with pytest.raises(GradalignError, match="at least 1"):
        reward_reweighting(run, samples=0)
