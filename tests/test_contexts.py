"""Teacher specs and the prompts they make."""

import multiprocessing
import time
from string import ascii_lowercase

import pytest

from gradalign.contexts import (
    CONTEXTS,
    PLACES,
    Material,
    missing_material,
    parse_teacher,
    privileged_text,
    render_context,
    render_question,
    sandbox,
    template_text,
)
from gradalign.contexts.apart import Apart, TemplateFault
from gradalign.contexts.material import shortened
from gradalign.types import GradalignError, Message, Question, TeacherSpec

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


STUDENT = """Where?
A) red
B) blue
Reason step by step, then end with "Answer:" and the letter."""
PRIVATE = {
    "correct_demo": "A correct solution:\nright way. Answer: B",
    "correct_wrong_demo": "A correct solution:\nright way. Answer: B\n\nA wrong solution:\nwrong way. Answer: A",
    "wrong_demo": "A wrong solution:\nwrong way. Answer: A",
    "summary": "Key steps of a correct solution:\nshort way",
    "reference": "The reference solution:\nred blue. Answer: B",
    "answer": "The correct answer is B.",
}


@pytest.mark.parametrize("context", CONTEXTS[1:])
def test_the_words_that_the_built_in_students_know_stay_as_they_are(context):
    """To the byte: they were trained on no others."""
    assert render_question(QUESTION) == STUDENT
    assert render_context(context, QUESTION, FULL) == Message(f"{STUDENT}\n\n{PRIVATE[context]}\n\nNow solve it yourself.")
    assert render_context(context, QUESTION, FULL, "before") == Message(f"{PRIVATE[context]}\n\n{STUDENT}")
    assert render_context(context, QUESTION, FULL, "system") == Message(STUDENT, PRIVATE[context])
    assert privileged_text(context, QUESTION, FULL) == PRIVATE[context]


def test_instructions_by_kind_of_answer():
    exact = render_question(Question("q", "?", "1", "exact"))
    boxed = Question("q", "?", "1")
    object.__setattr__(boxed, "kind", "math")
    assert render_question(boxed) == "?\nReason step by step, then put the final answer within \\boxed{}."
    for kind in ("regex", "function", "some_later_kind"):
        object.__setattr__(boxed, "kind", kind)
        assert render_question(boxed) == exact


def test_places_in_specs(tmp_path):
    mine = tmp_path / "mine.j2"
    mine.write_text("It is {{ answer }}; {{ correct }}.")
    for place in PLACES:
        assert parse_teacher(f"ctx:answer:{place}") == TeacherSpec(f"ctx:answer:{place}", "answer", place=place)
        both = parse_teacher(f"model:builtin:large+ctx:answer:{place}")
        assert (both.model, both.context, both.place) == ("builtin:large", "answer", place)
        sourced = parse_teacher(f"ctx:summary:{place}@model:builtin:large")
        assert (sourced.source, sourced.context, sourced.place) == ("builtin:large", "summary", place)
        assert parse_teacher(f"ctx:{mine}:{place}").context == str(mine)
    assert parse_teacher(f"ctx:{mine}").place == "after"
    assert render_context(str(mine), QUESTION, FULL, "system") == Message(STUDENT, "It is B; right way. Answer: B.")


def test_places_that_cannot_be_are_refused_in_one_line(tmp_path):
    whole = tmp_path / "whole.j2"
    whole.write_text("{{ prompt }} Hint: {{ answer }}")
    for spec, says in (
        ("ctx:none:system", "adds nothing that could be placed; leave out :system"),
        (f"ctx:{whole}:before", "it is the whole message; leave out :before"),
        ("ctx:answer:top", "no such place 'top'; choose from after, before, system"),
        (f"ctx:{whole}:top", "no such place 'top'"),
        ("ctx:anser:system", "did you mean answer"),
    ):
        with pytest.raises(GradalignError, match=says) as caught:
            parse_teacher(spec)
        assert "\n" not in str(caught.value)
    assert parse_teacher(f"ctx:{whole}").context == str(whole)
    assert render_context(str(whole), QUESTION, FULL) == Message(f"{STUDENT} Hint: B")
    assert privileged_text(str(whole), QUESTION, FULL) is None


@pytest.mark.parametrize("name", CONTEXTS[1:])
def test_a_built_in_template_copied_is_the_same_context(name, tmp_path):
    copied = tmp_path / "mine.j2"
    copied.write_text(template_text(name) + "\n")  # as the shell writes what the command prints
    for place in PLACES:
        assert render_context(str(copied), QUESTION, FULL, place) == render_context(name, QUESTION, FULL, place)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "longer than 1 s"),
        ("{% for a in s %}{% for b in s %}{% for c in s %}{% for d in s %}{% endfor %}{% endfor %}{% endfor %}{% endfor %}", "1 s"),
        ("{{ 9 ** (9 ** 9) }}", "longer than 1 s"),
        ("{% for a in range(99999) %}{{ s }}{% endfor %}", "more than 1,000,000 characters"),
        ("{% set a = s * 10000000 %}{{ a | length }}", "too much memory"),
        ("{{ 'x'.ljust(10 ** 10) }}", "too much memory"),
        ("{{ range(10 ** 9) | length }}", "too big"),
        ("{{ " + "(" * 9999 + "1" + ")" * 9999 + " }}", "recursion"),
        ("{{ s.__class__.__mro__ }}", "unsafe"),
    ],
)  # fmt: skip
def test_a_template_that_never_ends_or_builds_gigabytes_is_refused_in_seconds(text, says):
    apart = Apart(seconds=1.0)
    try:
        apart.ask("{{ s }}", {"s": "warm"})
        began = time.monotonic()
        with pytest.raises(TemplateFault, match=says) as caught:
            apart.ask(text, {"s": ascii_lowercase * 10})
        assert time.monotonic() - began < 4
        assert "\n" not in str(caught.value)
        assert apart.ask("{{ s }} lives", {"s": "it"}) == "it lives"
    finally:
        apart.close()


def test_an_answer_that_breaks_off_is_a_fault(tmp_path, monkeypatch):
    killed = tmp_path / "killed.py"
    killed.write_text("print('ready', flush=True)\ninput()\nprint('{\"found\": \"ha', end='', flush=True)\n")
    monkeypatch.setattr(sandbox, "__file__", str(killed))
    apart = Apart()
    try:
        with pytest.raises(TemplateFault, match="brought its process down"):
            apart.ask("{{ s }}", {"s": "half"})
    finally:
        apart.close()


def test_a_fork_asks_a_process_of_its_own():
    apart = Apart()
    try:
        apart.ask("{{ s }}", {"s": "warm"})
        before = apart._child
        context = multiprocessing.get_context("fork")
        here, there = context.Pipe()
        fork = context.Process(target=lambda: there.send((apart.ask("{{ s }}", {"s": "forked"}), apart._child.pid)))
        fork.start()
        said, process = here.recv()
        fork.join()
        assert (said, fork.exitcode) == ("forked", 0)
        assert process != before.pid
        assert apart.ask("{{ s }}", {"s": "still here"}) == "still here"
        assert apart._child is before
    finally:
        apart.close()


def test_names_are_read_apart_too(tmp_path):
    endless = tmp_path / "endless.j2"
    endless.write_text("{{ 9 ** (9 ** 9) }}")  # Jinja folds constants as soon as it looks at a template
    with pytest.raises(GradalignError, match="longer than 3 s; mend the template"):
        parse_teacher(f"ctx:{endless}")


def ids(text: str) -> list[int]:
    """A token a byte."""
    return [*text.encode()]


def shown(tokens) -> str:
    return bytes(tokens).decode(errors="replace")


@pytest.mark.parametrize("limit", range(1, 27))
def test_what_is_too_long_loses_its_middle(limit):
    text, cut = shortened(ascii_lowercase, limit, ids, shown)
    if limit == 26:
        assert (text, cut) == (ascii_lowercase, 0)
    else:
        start, end = text.split("\n[...]\n")
        assert len(start) + len(end) == limit == 26 - cut
        assert 0 <= len(start) - len(end) <= 1
        assert ascii_lowercase.startswith(start)
        assert ascii_lowercase.endswith(end)


def test_characters_cut_in_two_are_left_out():
    text, cut = shortened("ä" * 10, 6, ids, shown)
    assert (text, cut) == ("ä\n[...]\nä", 14)


def test_the_answer_is_never_cut_and_what_a_context_does_not_show_is_not_counted():
    long = Material(correct="a" * 30, wrong="b" * 50, answer="c" * 40)
    short, cut = long.shortened(("answer", "correct"), 10, ids, shown)
    assert short == Material(correct="aaaaa\n[...]\naaaaa", wrong="b" * 50, answer="c" * 40)
    assert cut == 20
