"""What each model sees of a question is the same in a run, in the run's tables, when it goes on, and in `gradalign contexts show`."""

import json

import pandas as pd
import pytest
from hostile import is_clean

import gradalign
from gradalign import load_run
from gradalign.api import configure, run_preview
from gradalign.configurations import Configuration
from gradalign.contexts import CONTEXTS, template_text
from gradalign.findings.tokens import question_tokens
from gradalign.handover import export_configuration
from gradalign.types import GradalignError

TEACHERS = ["ctx:none", "ctx:correct_demo", "ctx:correct_demo:before", "ctx:correct_demo:system", "ctx:summary:system"]
SETTINGS = {"teachers": TEACHERS, "limit": 6, "demonstrations": 8, "seed": 3, "context_tokens": 6}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return gradalign.score(rollouts=8, budget=8, out=tmp_path_factory.mktemp("seen") / "r", **SETTINGS)


def test_the_tables_hold_what_is_seen(run, small):
    rows = run.contexts.set_index(["question", "teacher"])
    codec = small.codec
    for row in rows.itertuples():
        place = TEACHERS.index(row.Index[1])
        system = None if pd.isna(row.system) else row.system
        assert (system is not None) == (place > 2)
        assert tuple(row.prompt_tokens) == codec.prompt(row.message, system)
        assert codec.ids("Now solve it yourself.")[0] in row.prompt_tokens or place != 1
    plain, after, system = (rows.xs(name, level="teacher") for name in (TEACHERS[0], TEACHERS[1], TEACHERS[3]))
    assert (plain.private == 0).all()
    assert (plain.cut == 0).all()
    assert len(after) > 2
    for question, row in after.iterrows():
        shown = system.loc[question].system
        assert system.loc[question].message == plain.loc[question].message
        assert row.message == f"{plain.loc[question].message}\n\n{shown}\n\nNow solve it yourself."
        assert row.private == system.loc[question].private == len(codec.ids(shown))
        assert (row.cut > 0) == ("\n[...]\n" in shown)
    assert (after.cut > 0).any()


def test_what_is_cut_is_the_first_right_demonstration_kept_at_both_ends(run, small):
    rows = run.contexts.set_index(["teacher", "question"]).loc["ctx:correct_demo:system"]
    shown = run.rollouts[(run.rollouts.purpose == "demonstration") & (run.rollouts.outcome == "right")]
    for question, row in rows.iterrows():
        text = shown[(shown.question == question) & (shown.stop == "stop")].text.iloc[0].strip()
        ids = small.codec.ids(text)
        assert row.cut == max(0, len(ids) - 6)
        if row.cut:
            start, end = row.system.removeprefix("A correct solution:\n").split("\n[...]\n")
            assert (start, end) == (small.codec.text(ids[:3]).strip(), small.codec.text(ids[-3:]).strip())


def test_an_answer_that_was_cut_away_is_not_stated(run):
    """`answers` are read in what is shown: the end of a demonstration stays, and with it what it answers."""
    rows = run.contexts[run.contexts.teacher == "ctx:correct_demo"]
    answer = run.questions.set_index("question").answer
    for row in rows.itertuples():
        assert list(row.answers) == [answer[row.question]]


def test_a_run_that_goes_on_has_the_same_prompts(run, tmp_path):
    first = gradalign.score(rollouts=8, budget=4, out=tmp_path / "r", **SETTINGS)
    contexts, rollouts = first.contexts, first.rollouts
    gone_on = gradalign.score(rollouts=8, budget=8, out=tmp_path / "r", **SETTINGS)
    assert contexts.equals(gone_on.contexts)
    assert gone_on.contexts.equals(run.contexts)
    assert len(gone_on.rollouts) > len(rollouts)


def test_the_explorer_shows_system_messages(run):
    question = run.contexts[run.contexts.teacher == TEACHERS[3]].question.iloc[0]
    view = next(question_tokens(run, [question]))
    assert view.messages[TEACHERS[3]].startswith("System message:\nA correct solution:")
    assert view.messages[TEACHERS[1]].startswith("Start at")


def test_a_preview_is_what_the_run_saw(run, small):
    config = configure(**SETTINGS)
    found, notices = run_preview(config)
    assert notices == []
    contexts, rollouts = run.contexts, run.rollouts
    compared = 0
    for each in found:
        base = rollouts[(rollouts.question == each.question.id) & (rollouts.purpose == "base")].iloc[0]
        assert each.completion == small.codec.shown(base.tokens)
        assert each.sights[0].who == "student"
        assert each.sights[0].prompt + "".join(each.sights[0].boundary) == small.codec.shown(
            small.codec.prompt(run.questions.set_index("question").prompt[each.question.id])
        )
        mine = contexts[contexts.question == each.question.id].set_index("teacher")
        assert [sight.who for sight in each.sights[1:]] == list(mine.index)
        for sight in each.sights[1:]:
            row = mine.loc[sight.who]
            assert sight.prompt + "".join(sight.boundary) == small.codec.shown(row.prompt_tokens)
            assert (sight.length, sight.private, sight.cut) == (row.length, row.private, row.cut)
            assert sight.boundary == ("<|im_start|>", "assistant\n")
            compared += 1
    assert compared == len(contexts)


def test_the_hand_over_has_the_system_text_and_says_where_it_went(run, tmp_path):
    found = export_configuration(run, Configuration("c", "reverse_kl", TEACHERS[3]), tmp_path / "x")
    assert any("system message" in lost for lost in found.not_carried)
    questions = pd.read_parquet(tmp_path / "x" / "questions.parquet").set_index("question")
    rows = [json.loads(line) for line in (tmp_path / "x" / "train.jsonl").read_text().splitlines()]
    seen = run.contexts[run.contexts.teacher == TEACHERS[3]].set_index("question")
    assert len(rows) == len(seen)
    for row in rows:
        system = seen.loc[row["question"]].system
        assert questions.loc[row["question"]].teacher_system == system
        assert row["privileged_context"] == f"{system}\n\n{row['prompt'][0]['content']}"
    without = export_configuration(run, Configuration("c", "reverse_kl", TEACHERS[1]), tmp_path / "y")
    assert not any("system message" in lost for lost in without.not_carried)
    assert pd.read_parquet(tmp_path / "y" / "questions.parquet").teacher_system.isna().all()


def test_contexts_show_prints_prompts_counts_and_boundary(gradalign):
    code, out, _ = gradalign("contexts", "show", "--teacher", "ctx:correct_demo:system", "--question", "arithmetic-train-0003")
    assert code == 0
    assert "question arithmetic-train-0003" in out
    assert "student builtin:medium: " in out
    assert "ctx:correct_demo:system: " in out
    assert out.count("⟦<|im_start|>assistant\n⟧") == 2
    assert "<|im_start|>system\nA correct solution:\n" in out
    assert "boundary of 2: '<|im_start|>' 'assistant\\n'" in out
    code, out, _ = gradalign("contexts", "show", "--teacher", "ctx:answer", "--limit", "2", "--json")
    assert code == 0
    assert [sight["who"] for each in json.loads(out) for sight in each["sights"]] == ["student", "ctx:answer"] * 2
    code, _, err = gradalign("contexts", "show", "--question", "no-such")
    assert code == 2
    assert "has no question 'no-such'" in err


def test_contexts_show_says_what_is_left_out_and_obeys_no_text(gradalign, tmp_path):
    file = tmp_path / "q.jsonl"
    file.write_text(json.dumps({"question": "\x1b[31mWhat\u202e is 2+2?", "answer": "4"}) + "\n")
    code, out, _ = gradalign("contexts", "show", "q.jsonl", "--student", "builtin:small", "--teacher", "ctx:reference", "--teacher",
                           "ctx:answer", "--max-tokens", "8")  # fmt: skip
    assert code == 0
    assert is_clean(out)
    assert "ctx:reference: left out, no reference solution" in out


def test_templates_are_printed_to_copy(gradalign):
    for name in CONTEXTS[1:]:
        assert gradalign("contexts", "template", name) == (0, template_text(name) + "\n", "")
    code, _, err = gradalign("contexts", "template", "none")
    assert code == 2
    assert "no built-in template 'none'; choose from correct_demo" in err


def test_contexts_without_another_command_screens(gradalign, tmp_path):
    code, out, _ = gradalign("contexts", "--help")
    assert code == 0
    for word in ("--teacher-rollouts", "--thinking", "show", "template", "Pre-screen"):
        assert word in out
    code, _, err = gradalign("contexts", "no-such-set.jsonl", "--student", "builtin:small")
    assert code == 2
    assert "no-such-set.jsonl" in err
    few = ["--limit", "4", "--rollouts", "4", "--budget", "4", "--teacher-rollouts", "2", "--teacher", "ctx:answer:before"]
    code, out, _ = gradalign("contexts", "builtin:choice", *few, "--thinking", "on", "--out", "r")
    assert code == 0
    assert "ctx:answer:before" in out
    identity = load_run(tmp_path / "r").identity
    assert (identity["thinking"], identity["context_tokens"]) == (True, None)


def test_one_teacher_in_two_ways_and_words_for_flags_are_refused():
    with pytest.raises(GradalignError, match="one teacher is written in two ways"):
        configure(teachers=["ctx:answer", "ctx:answer:after"])
    assert len(configure(teachers=["ctx:answer", "ctx:answer:before"]).teachers) == 2
    with pytest.raises(GradalignError, match="thinking is 'off'; it must be True or False"):
        configure(teachers=["ctx:answer"], thinking="off")
    with pytest.raises(GradalignError, match="context_tokens is 0"):
        configure(teachers=["ctx:answer"], context_tokens=0)
