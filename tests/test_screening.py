"""Pre-screening of contexts: the table by hand, the leak not recommended, and what a run cannot tell left missing."""

import json

import numpy as np
import pandas as pd
import pytest

import gradalign
from gradalign.findings import screen_contexts
from gradalign.findings.accuracy import Accuracy, share_with_interval
from gradalign.findings.notes import disagreements
from gradalign.findings.screening import ALONE, _recommend
from gradalign.types import GradalignError

CONTEXTS = ["ctx:none", "ctx:correct_demo", "ctx:wrong_demo", "ctx:answer"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "r"
    return gradalign.score(teachers=CONTEXTS, objectives=["forward_kl"], limit=48, budget=16, teacher_rollouts=8, out=folder)


@pytest.fixture(scope="module")
def found(run):
    return screen_contexts(run)


def test_accuracy_and_copying_by_hand(run, found):
    row = found.frame.set_index("teacher").loc["ctx:wrong_demo"]
    contexts = run.contexts[run.contexts.teacher == "ctx:wrong_demo"].set_index("question")
    assert row.built == len(contexts) / 48
    assert row.context_tokens == contexts.length.mean()
    assert row.stated == 1.0
    rollouts = run.rollouts
    taught = rollouts[(rollouts.purpose == "teacher") & (rollouts.source == "ctx:wrong_demo")]
    by_question = taught.groupby("question").reward.mean()
    assert row.accuracy == pytest.approx(by_question.mean())
    rate = run.questions.set_index("question").pass_rate
    assert row.lift == pytest.approx((by_question - rate[by_question.index]).mean())
    assert row.accuracy_low < row.accuracy < row.accuracy_high
    base = rollouts[rollouts.purpose == "base"]
    follows, alone = [], []
    for question, context in contexts.iterrows():
        said = {*context.answers}
        assert run.questions.set_index("question").answer[question] not in said  # a wrong demonstration states a wrong answer
        follows.append(np.mean([a in said for a in taught[taught.question == question].read_answer]))
        alone.append(np.mean([a in said for a in base[base.question == question].read_answer]))
    assert row.follows == pytest.approx(np.mean(follows))
    assert row.copied == pytest.approx((np.sum(follows) - np.sum(alone)) / (len(alone) - np.sum(alone)))


def test_the_leak_is_warned_of_and_the_demonstration_recommended(found):
    assert found.recommendation == "Recommended: ctx:correct_demo."
    assert any("ctx:answer" in warning for warning in found.warnings)
    assert not any("ctx:correct_demo:" in warning for warning in found.warnings)
    frame = found.frame.set_index("teacher")
    assert frame.loc["ctx:answer", "accuracy"] > frame.loc["ctx:correct_demo", "accuracy"] > frame.loc[ALONE, "accuracy"]
    assert frame.loc["ctx:answer", "copied"] > 0.9
    assert np.isnan(frame.loc["ctx:none", "copied"])  # no answer stands in it
    assert frame.loc["ctx:none", "transfer_drive"] == pytest.approx(0, abs=1e-12)


def row(teacher: str, transfer: float, half: float, advantage: float, objective: str = "reverse_kl") -> dict:
    """A teacher with a gain for others and an advantage on its own questions."""
    return {
        "teacher": teacher, "objective": objective, "transfer_drive": transfer, "transfer_drive_low": transfer - half,
        "transfer_drive_high": transfer + half, "teacher_advantage": advantage, "teacher_advantage_low": advantage - 0.1,
        "teacher_advantage_high": advantage + 0.1, "drive_low": 0.1, "first_step_share": np.nan,
    }  # fmt: skip


def test_who_helps_others_hardly_at_all_is_warned_of_for_how_far_ahead_it_is():
    sound, weak, leak, harmful = (
        row("sound", 10, 1, 1),
        row("weak", 0.9, 0.1, 0.1),
        row("leak", 0.4, 0.2, 2),
        row("bad", -3, 1, 2),
    )
    other = row("other", 0.4, 0.1, 2.0, "forward_kl")  # its objective has no teacher to compare with

    def warned(*rows: dict, accuracy: dict[str, Accuracy] | None = None) -> list[str]:
        return disagreements(pd.DataFrame(rows), accuracy or {}, lambda each: each["teacher"])

    found = warned(sound, weak, leak, harmful, other)
    assert [text.partition(":")[0] for text in found] == ["leak", "bad"]
    assert "hardly at all, 4% of what sound does" in found[0]
    assert "would lower other questions" in found[1]
    assert warned(weak, sound) == []
    clever = Accuracy(0.99, 0.98, 1.0, 0.4, 0.38, 0.42)
    assert "raises the teacher to 99.0%, 40 points above the student" in warned(sound, leak, accuracy={"leak": clever})[0]
    plain = Accuracy(0.7, 0.6, 0.8, 0.1, 0.05, 0.15)
    both = warned(sound, weak, leak, accuracy={"leak": clever, "sound": clever, "weak": plain})
    assert [text.partition(":")[0] for text in both] == ["leak"]


def test_who_is_about_as_good_as_the_best_and_who_has_no_teacher_is_not_warned_of():
    def warned(*rows: dict, accuracy: dict[str, Accuracy] | None = None) -> list[str]:
        return disagreements(pd.DataFrame(rows), accuracy or {}, lambda each: each["teacher"])

    sure, lucky = Accuracy(0.9, 0.88, 0.92, 0.3, 0.28, 0.32), Accuracy(0.61, 0.55, 0.67, 0.01, -0.05, 0.07)
    assert warned(row("a", 10.0, 1.0, 1.0), row("b", 11.0, 1.0, 1.0), accuracy={"a": sure, "b": lucky}) == []
    nothing = {**row("rewards", -1.0, 0.5, 0.1), "teacher_advantage": np.nan, "teacher_advantage_low": np.nan}
    assert warned(nothing, row("a", 10.0, 1.0, 1.0)) == []


def test_ties_and_the_default_objective_are_those_of_teachers(tmp_path):
    settings = {"limit": 6, "rollouts": 16, "budget": 32, "teachers": ["ctx:correct_demo", "ctx:reference"]}
    run = gradalign.score(objectives=["dr_grpo", "reverse_kl", "forward_kl"], out=tmp_path / "r", **settings)
    found = screen_contexts(run)
    assert found.objective == "reverse_kl"
    alone = gradalign.rank(run, objectives=["forward_kl"])
    assert {*alone.frame.objective} == {"forward_kl"}
    assert alone.frame.p_best.sum() == pytest.approx(1)
    frame = screen_contexts(run, "forward_kl").frame.set_index("teacher")
    assert frame.loc[["ctx:correct_demo", "ctx:reference"], "p_best"].sum() == pytest.approx(1)
    with pytest.raises(GradalignError, match="choose from reverse_kl, forward_kl"):
        screen_contexts(run, "dr_grpo")


def test_shares_that_are_all_alike_have_an_honest_width():
    assert share_with_interval(np.ones(8))[1:] == (pytest.approx(0.737, abs=0.01), 1.0)
    low, high = share_with_interval(np.zeros(2))[1:]
    assert low == 0.0
    assert high > 0.5
    mean, low, high = share_with_interval(np.array([0.5, 0.75, 1.0, 1.0]))
    assert 0 <= low < mean < high <= 1


def test_questions_without_a_difficulty_stand_beside_the_others(tmp_path):
    lines = [
        json.dumps({"question": f"Start at {i}: +5 -2 (modulo 10). What is the total?", "answer": str((i + 3) % 10)}
                   | ({"difficulty": d} if (d := ["10", "2", None][i % 3]) else {}))
        for i in range(6)
    ]  # fmt: skip
    (tmp_path / "q.jsonl").write_text("\n".join(lines))
    run = gradalign.score(
        str(tmp_path / "q.jsonl"), student="builtin:small", teachers=["ctx:answer"], objectives=["reverse_kl"], rollouts=8, budget=8,
        teacher_rollouts=2, out=tmp_path / "r",
    )  # fmt: skip
    groups = list(dict.fromkeys(screen_contexts(run).by_difficulty.group))
    assert groups == ["2", "10", "not stated"]


def test_of_those_that_cannot_be_told_apart_one_without_objections_is_recommended():
    frame = pd.DataFrame([
        {**row(name, transfer, 1.0, 1.0), "tied": tied, "built": built, "accuracy": 0.9, "lift": lift,
         "lift_low": lift - 0.1, "lift_high": lift + 0.1}
        for name, transfer, tied, built, lift in (("rare", 9, True, 0.3, 0.2), ("worse", 8, True, 1.0, -0.3), ("fine", 7, True, 1.0, 0.2),
                                                 ("less", 3, False, 1.0, 0.2))
    ])  # fmt: skip
    said, reasons, doubts = _recommend(frame, "transfer_drive", set())
    assert said == "Recommended: fine."
    assert "no less than toward rare" in reasons[0]
    assert doubts == ["rare, worse cannot be told from it"]
    said, _, doubts = _recommend(frame, "transfer_drive", {"fine"})
    assert said == "Recommended: rare."
    assert any("only 30%" in doubt for doubt in doubts)
    unknown = frame.assign(transfer_drive=np.nan)
    assert "is not known from this run" in _recommend(unknown, "transfer_drive", set())[0]
    assert "none of these" in _recommend(frame, "transfer_drive", {*frame.teacher})[0]


def test_scores_are_those_of_the_ranking(run, found):
    ranked = gradalign.rank(run).frame.set_index("teacher")
    frame = found.frame.set_index("teacher")
    for teacher in CONTEXTS:
        for name in ("transfer_drive", "transfer_drive_low", "drive", "mean_cosine_high"):
            assert frame.loc[teacher, name] == pytest.approx(ranked.loc[teacher, name], nan_ok=True)


def test_accuracy_by_difficulty(run, found):
    rows = found.by_difficulty
    assert {*rows.group} == {*run.questions.difficulty}
    row = rows[(rows.teacher == ALONE) & (rows.group == "2")].iloc[0]
    assert row.accuracy == pytest.approx(run.questions[run.questions.difficulty == "2"].pass_rate.mean())
    assert row.questions == (run.questions.difficulty == "2").sum()


def test_what_was_not_sampled_is_missing_and_not_nought(tmp_path):
    run = gradalign.score(
        teachers=["ctx:reference"], objectives=["reverse_kl"], limit=3, rollouts=4, budget=8, out=tmp_path / "r"
    )
    found = screen_contexts(run)
    row = found.frame.iloc[0]
    assert np.isnan([row.accuracy, row.lift, row.copied]).all()
    assert np.isnan(row.transfer_drive)  # three questions have no transfer
    assert row.stated == 1.0
    assert "ctx:reference" in found._repr_html_()
    with pytest.raises(GradalignError, match="no teacher was scored with objective 'forward_kl'"):
        screen_contexts(run, "forward_kl")


def test_first_steps_tell_of_all_that_do_not_help_others():
    def stepped(teacher: str, share: float, high: float = 1.0, better: bool = True) -> dict:
        found = row(teacher, 1.0, 0.5, 1.0 if better else -1.0)
        return found | {"first_step": share, "first_step_high": high, "first_step_share": share, "drive_low": -1.0}

    rows = [stepped("sound", 1.0), stepped("fair", 0.6), stepped("leak", 0.2), stepped("misled", 0.1, better=False),
            stepped("wrong", -0.9, -0.5, better=False), stepped("nothing", 0.0)]  # fmt: skip
    found = disagreements(pd.DataFrame(rows), {}, lambda each: each["teacher"])
    assert [text.partition(":")[0] for text in found] == ["leak", "misled", "wrong"]
    assert "helps other questions by 20% of what one as long on sound does. It may know what the student cannot" in found[0]
    assert found[1:] == [
        "misled: a step on it helps other questions by 10% of what one as long on sound does.",
        "wrong: a step on it would lower other questions.",
    ]
