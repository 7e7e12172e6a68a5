"""The paper's findings in runs of one's own: verdicts by their intervals, numbers by hand."""

import numpy as np
import pytest

import gradalign
from gradalign.findings import compare_paths, paired_difference, paper_claims
from gradalign.findings.claims import Estimate, _verdict
from gradalign.types import GradalignError

TEACHERS = ["ctx:correct_demo", "ctx:correct_wrong_demo", "ctx:summary", "model:builtin:large"]


def test_verdicts_go_by_the_interval_of_the_mean():
    def settings(*values: float, half: float = 0.1, sets: str = "abcd") -> list[Estimate]:
        return [Estimate(sets[i % len(sets)], f"s{i}", v, v - half, v + half) for i, v in enumerate(values)]

    assert _verdict(settings(0.3, 0.5), "above 0")["verdict"] == "seen"
    assert _verdict(settings(0.3, 0.5), "below 0")["verdict"] == "not seen"
    found = _verdict(settings(0.3, -0.3), "above 0")
    assert (found["verdict"], found["agree"], found["disagree"]) == ("undecided", 1, 1)
    assert _verdict(settings(0.45, 0.55, half=0.05), "about half")["verdict"] == "seen"
    assert _verdict(settings(0.9, half=0.05), "about half")["verdict"] == "not seen"
    assert _verdict([], "above 0")["verdict"] == "not tested"
    assert _verdict(settings(0.5, -0.2), "above 0", every=True)["verdict"] == "not seen"
    apart, alike = (_verdict(settings(0.2, 0.2, 0.2, 0.2, sets=sets), "above 0") for sets in ("abcd", "a"))
    assert apart["mean_high"] - apart["mean"] == pytest.approx(0.05)  # four independent settings
    assert alike["mean_high"] - alike["mean"] == pytest.approx(0.1)  # the same questions four times tell no more than once


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    place = tmp_path_factory.mktemp("runs")
    return {
        (student, "choice"): gradalign.score(
            "builtin:choice", student=f"builtin:{student}", teachers=TEACHERS, objectives=["reverse_kl"], limit=12, rollouts=16, budget=16,
            teacher_rollouts=4, out=place / student,
        )
        for student in ("small", "medium")
    }  # fmt: skip


def test_findings_are_numbers_of_the_runs(runs):
    found = paper_claims(runs, "small", "medium", draws=200)
    frame, settings = found.frame.set_index("finding"), found.settings
    run = runs["small", "choice"]
    taught = run.rollouts[(run.rollouts.purpose == "teacher") & (run.rollouts.source == "ctx:correct_demo")]
    lift = taught.groupby("question").reward.mean() - run.questions.set_index("question").pass_rate
    stated = run.questions.set_index("question").difficulty
    group = sorted(stated.unique())[0]
    row = settings[(settings.finding == "accuracy") & (settings.setting == f"small on choice, difficulty {group}")].iloc[0]
    assert row.value == pytest.approx(lift[stated == group].mean())
    paths = compare_paths(run).frame
    own = paths[(paths.cosine == "weighted") & (paths.teacher == "ctx:summary")].iloc[0]
    row = settings[(settings.finding == "paths") & (settings.setting == "small on choice, ctx:summary")]
    if np.isfinite([own.paired, own.paired_low, own.paired_high]).all():
        assert row.iloc[0].value == pytest.approx(own.paired)
    one, other = ("ctx:correct_demo", "reverse_kl"), ("model:builtin:large", "reverse_kl")
    expected = paired_difference(runs["medium", "choice"], one, other, by="weighted_cosine")
    row = settings[settings.finding == "self, larger"].iloc[0]
    assert (row.value, row.low, row.high) == pytest.approx(expected)
    assert frame.loc["accuracy, wrong", "settings"] == 2
    assert {*frame.verdict} <= {"seen", "not seen", "undecided", "not tested"}
    assert frame.loc["selection, signal", "verdict"] == "not tested"  # it would be seen in noise alone
    assert "arXiv 2605.10889" in found._repr_html_()


def test_both_students_are_needed(runs):
    with pytest.raises(GradalignError, match="no run of student 'huge'"):
        paper_claims(runs, "small", "huge")


def test_a_teacher_that_no_question_has_leaves_its_findings_untested(tmp_path):
    runs = {
        (student, "choice"): gradalign.score(
            "builtin:choice", student=f"builtin:{student}", teachers=["ctx:correct_demo", "ctx:correct_wrong_demo"],
            objectives=["reverse_kl"], limit=4, rollouts=8, budget=16, demonstrations=1, out=tmp_path / student,
        )
        for student in ("small", "medium")
    }  # fmt: skip
    frame = paper_claims(runs, "small", "medium", draws=100).frame.set_index("finding")
    assert frame.loc["correct only", "verdict"] == "not tested"
