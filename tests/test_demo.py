"""What `gradalign score` shows with no arguments, and every kind of teacher, on the built-in models."""

import pytest

import gradalign
from gradalign.findings import paired_difference


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return gradalign.score(out=tmp_path_factory.mktemp("demo") / "run")


def test_a_correct_demonstration_ranks_above_a_wrong_one(demo):
    frame = gradalign.rank(demo).frame
    place = {key: i for i, key in enumerate(zip(frame.teacher, frame.objective, strict=True))}
    for objective in ("reverse_kl", "forward_kl"):
        right, wrong = ("ctx:correct_demo", objective), ("ctx:wrong_demo", objective)
        assert place[right] < place[wrong]
        difference, low, high = paired_difference(demo, right, wrong)
        assert 0 < low < difference < high


def test_the_leak_raises_the_teacher_and_not_the_drive(demo):
    frame = gradalign.rank(demo).frame.set_index(["teacher", "objective"])
    leak, sound = frame.loc[("ctx:answer", "reverse_kl")], frame.loc[("ctx:correct_demo", "reverse_kl")]
    assert leak.teacher_advantage_low > 0
    assert leak.drive_high < 0.1 * sound.drive_low


def test_the_leak_is_warned_of_and_a_correct_demonstration_is_not(demo):
    ranking = gradalign.rank(demo)
    assert ranking.by == "transfer_drive"
    for objective in ("reverse_kl", "forward_kl"):
        assert any(warning.startswith(f"ctx:answer with {objective}:") for warning in ranking.warnings)
    assert all(warning.startswith("ctx:answer") for warning in ranking.warnings)
    frame = ranking.frame.set_index(["teacher", "objective"])
    assert frame.loc[("ctx:answer", "forward_kl")].transfer_drive_high < 0
    assert frame.index[0] == ("ctx:correct_demo", "reverse_kl")


def test_rows_are_consistent(demo):
    nodes, alignment = demo.nodes, demo.alignment
    scored = nodes[nodes.scored]
    assert (scored.inclusion > 0).all()
    assert (scored.inclusion <= 1).all()
    assert len(alignment) == len(demo.teachers.dropna(subset=["advantage"])) * 2
    assert alignment.alignment.dropna().between(-1, 1).all()
    assert alignment.alignment_full.dropna().between(-1, 1).all()
    assert (alignment.captured.dropna() <= 1 + 1e-6).all()
    branches = demo.branches
    assert (branches.lower <= branches.success + 1e-12).all()
    assert (branches.success <= branches.upper + 1e-12).all()
    demonstrations = demo.rollouts[demo.rollouts.purpose == "demonstration"]
    assert (demonstrations.groupby("question").size() == 8).all()


def test_teachers_are_shown_the_first_right_demonstration_of_the_pool_kept_for_them(demo):
    rollouts = demo.rollouts[demo.rollouts.purpose != "targeted"].set_index(["question", "purpose"])
    contexts = demo.contexts[demo.contexts.teacher == "ctx:correct_demo"]
    for row in contexts.itertuples():
        pool = rollouts.loc[(row.question, "demonstration")]
        shown = pool[(pool.outcome == "right") & (pool.stop == "stop")].text.iloc[0]
        assert shown.strip() in row.message


def test_every_kind_of_teacher(tmp_path):
    teachers = [
        "ctx:none",
        "ctx:reference",
        "ctx:summary",
        "model:builtin:large",
        "model:builtin:large+ctx:correct_demo",
        "ctx:correct_demo@model:builtin:large",
        "ctx:summary@model:builtin:large",
    ]
    objectives = ["gkd", "forward_kl", "jsd:0.5", "sampled_kl"]
    run = gradalign.score(
        "builtin:choice:heldout", teachers=teachers, objectives=objectives, limit=12, budget=64, out=tmp_path / "run"
    )
    frame = gradalign.rank(run).frame
    assert {*frame.teacher} == {*teachers}
    assert {*frame.objective} == {*objectives}
    larger = frame[(frame.teacher == "model:builtin:large") & (frame.objective == "reverse_kl")]
    assert (larger.drive_low > 0).all()
    same = frame[frame.teacher == "ctx:none"]
    assert same.drive.abs().max() < 1e-6
    assert same.teacher_advantage.abs().max() < 1e-6
    sources = run.rollouts[run.rollouts.purpose == "demonstration"].source
    assert {*sources} == {"builtin:medium", "builtin:large"}
    messages = run.contexts.set_index(["question", "teacher"]).message
    question = run.contexts.question[run.contexts.teacher == "ctx:summary"].iloc[0]
    assert "Key steps" in messages[question, "ctx:summary"]
