"""Stored steps read piece by piece: the same findings, whatever is read at once, and a run too large to compare all questions says so."""

from dataclasses import replace

import numpy as np
import pytest
from test_pipeline_exact import cast_of, config_for, questions

from gradalign.api import run_score
from gradalign.findings import paced_diagnostics, rank
from gradalign.findings.steps import steps_of, steps_themselves
from gradalign.pipeline import Budget, Effort
from gradalign.store import Run

KEYS = [
    (teacher, objective, "all") for teacher in ("model:better", "model:worse") for objective in ("reverse_kl", "forward_kl")
]


@pytest.fixture(scope="module")
def run(tabular, tmp_path_factory) -> Run:
    config = replace(config_for(30), objectives=("reverse_kl", "forward_kl"), part_size=3)
    folder = tmp_path_factory.mktemp("run") / "r"
    return run_score(config, folder, cast=cast_of(tabular), questions=questions(30), effort=Effort(Budget(64)))


def as_numbers(frame) -> np.ndarray:
    return frame.select_dtypes("number").to_numpy(dtype=np.float64)


def test_findings_do_not_depend_on_how_much_is_read_at_once(run, monkeypatch):
    ranked, diagnosed = rank(run), paced_diagnostics(run, draws=50)
    monkeypatch.setattr("gradalign.store.run._PARTS", 3)
    for room in (2**28, 5000, 1):
        monkeypatch.setattr("gradalign.findings.steps._ROOM", room)
        again, anew = rank(run), paced_diagnostics(run, draws=50)
        assert again.frame.teacher.tolist() == ranked.frame.teacher.tolist()
        np.testing.assert_allclose(as_numbers(again.frame), as_numbers(ranked.frame), rtol=1e-9, atol=1e-15)
        np.testing.assert_allclose(as_numbers(anew.curve), as_numbers(diagnosed.curve), rtol=1e-9)


def test_steps_are_those_of_their_questions(run):
    """In whatever order they are asked for, and though other parts than theirs are read too."""
    asked = ["q17", "q3", "q29"]
    table = run.steps.set_index(["question", "teacher", "objective", "tokens"])
    for column, space in (("step", "head"), ("step_logits", "logits")):
        for key, found in zip(KEYS, steps_themselves(run, KEYS, asked, space), strict=True):
            np.testing.assert_array_equal(found, np.stack([table.loc[(question, *key), column] for question in asked]))
    sums = steps_of(run, KEYS, asked).sums
    (better, *_), ideal = (
        steps_themselves(run, KEYS, asked, "head"),
        run.steps[run.steps.teacher.isna()].set_index("question").step,
    )
    crossed = better.astype(np.float64) @ np.stack(ideal.loc[asked].to_list()).T
    np.testing.assert_allclose(sums.others_MQ[0], ((crossed + crossed.T) / 2).sum(1) - np.diag(crossed), rtol=1e-6)


def test_what_was_not_kept_is_not_known(run):
    unknown = ("model:better", "reverse_kl", "incorrect_paths")
    found = steps_of(run, [*KEYS, unknown], ["q1", "q2", "q3", "q4", "q5"]).transfer()
    assert np.isnan(found.drive_M).tolist() == [False] * len(KEYS) + [True]
    assert np.isnan(next(steps_themselves(run, [unknown], ["q1"], "head"))).all()


def test_curves_of_many_questions_are_those_of_some_and_say_so(run, monkeypatch):
    whole = paced_diagnostics(run, draws=50)
    assert whole.curve.groupby(["teacher", "objective", "space"]).questions.sum().eq(30).all()
    assert not any("at random" in remark.text for sheet in whole.sheets() for remark in sheet.remarks)
    monkeypatch.setattr("gradalign.findings.paced._MOST", 20)
    some = paced_diagnostics(run, draws=50)
    assert some.curve.groupby(["teacher", "objective", "space"]).questions.sum().eq(20).all()
    assert len(some.weights) == 30
    assert any("20 of the 30 questions" in remark.text for sheet in some.sheets() for remark in sheet.remarks)
