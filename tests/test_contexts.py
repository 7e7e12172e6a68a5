"""Teacher specs and the prompts they make."""

import pytest

from gradalign.contexts import CONTEXTS, Material, missing_material, parse_teacher, render_context, render_question
from gradalign.types import GradalignError, Question

QUESTION = Question("q", "Where?", "B", "choice", ("red", "blue"), "red blue. Answer: B")
FULL = Material("right way. Answer: B", "wrong way. Answer: A", "short way", QUESTION.solution, QUESTION.answer)
EXPECTED = {
    "none": (),
    "correct_demo": (FULL.correct,),
    "correct_wrong_demo": (FULL.correct, FULL.wrong),
    "wrong_demo": (FULL.wrong,),
    "summary": (FULL.summary,),
    "reference": (FULL.solution,),
    "answer": ("The correct answer is B.",),
}


@pytest.mark.parametrize("context", CONTEXTS)
def test_a_context_shows_what_it_promises_and_nothing_else(context):
    message = render_context(context, QUESTION, FULL).user
    assert message.startswith(render_question(QUESTION))
    for text in (FULL.correct, FULL.wrong, FULL.summary, FULL.solution, "The correct answer is B."):
        assert (text in message) == (text in EXPECTED[context])


def test_hidden_reasoning_of_a_demonstration_is_left_out():
    message = render_context("correct_demo", QUESTION, Material(correct="<think>long\nthoughts</think>\n\nB it is")).user
    assert "thoughts" not in message
    assert "B it is" in message


@pytest.mark.parametrize(
    ("context", "reason"),
    [("correct_demo", "no correct rollout"), ("reference", "no reference solution"), ("answer", "no answer")],
)
def test_what_lacks_is_named(context, reason):
    assert missing_material(context, Material()) == reason
    with pytest.raises(GradalignError, match=reason):
        render_context(context, QUESTION, Material())


def test_specs():
    assert parse_teacher("ctx:correct_demo").context == "correct_demo"
    both = parse_teacher("model:builtin:large+ctx:answer")
    assert (both.model, both.context, both.source) == ("builtin:large", "answer", None)
    sourced = parse_teacher("ctx:summary@model:Qwen3-1.7B")
    assert (sourced.model, sourced.context, sourced.source) == (None, "summary", "Qwen3-1.7B")


@pytest.mark.parametrize(
    "spec", ["", "demo", "ctx:", "ctx:corect_demo", "model:", "model:x+ctx:", "ctx:answer@model:x", "ctx:summary@model:"]
)
def test_bad_specs_are_refused_in_one_line(spec):
    with pytest.raises(GradalignError) as caught:
        parse_teacher(spec)
    assert "\n" not in str(caught.value)


def test_a_template_of_ones_own_is_sandboxed(tmp_path):
    good = tmp_path / "mine.j2"
    good.write_text("{{ prompt }}\nHint: {{ answer }}")
    assert parse_teacher(f"ctx:{good}").context == str(good)
    assert render_context(str(good), QUESTION, FULL).user.endswith("Hint: B")
    evil = tmp_path / "evil.j2"
    evil.write_text("{{ prompt.__class__.__mro__ }}")
    with pytest.raises(GradalignError, match="unsafe"):
        render_context(str(evil), QUESTION, FULL)
    for text in ("{{ prompt + 1 }}", "{{ 1/0 }}", "{% include 'x' %}"):
        failing = tmp_path / "failing.j2"
        failing.write_text(text)
        with pytest.raises(GradalignError, match="mend the template"):
            render_context(str(failing), QUESTION, FULL)
    for text in ("{{ unknown }}", "{% if %}"):
        bad = tmp_path / f"bad{len(text)}.j2"
        bad.write_text(text)
        with pytest.raises(GradalignError):
            parse_teacher(f"ctx:{bad}")


def test_braces_in_questions_and_rollouts_are_text():
    question = Question("q", "{{ 7*7 }} {% for %}", "1", "numeric")
    assert "{{ 7*7 }} {% for %}" in render_question(question)
    assert "{{ 8 }}" in render_context("correct_demo", question, Material(correct="{{ 8 }}")).user
