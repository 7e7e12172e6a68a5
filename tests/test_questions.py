"""Question files and graders."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradalign.questions import grade, load_questions, stated_answer
from gradalign.types import GradalignError, Question

NUMERIC = Question("n", "?", "1234.5", "numeric")
BOOLEAN = Question("b", "?", "yes", "boolean")
CHOICE = Question("c", "?", "B", "choice", ("red cup", "blue cup", "green cup", "black cup"))
EXACT = Question("e", "?", "Mount Everest", "exact")

CASES = [
    (NUMERIC, "so 7 and 8. Answer: 1234.5", "right"),
    (NUMERIC, "Answer: 1,234.50", "right"),
    (NUMERIC, "the answer is 1234.5 apples", "right"),
    (NUMERIC, "Answer: 2469/2", "right"),
    (NUMERIC, "Answer: 1.2345e3", "right"),
    (NUMERIC, "Answer: 12 + 3 = 1234.5", "right"),
    (NUMERIC, "**Final Answer**: 1234.5", "right"),
    (NUMERIC, "Answer: \u22121234.5", "wrong"),
    (NUMERIC, "Answer: 1234.5000000000001", "wrong"),
    (Question("n", "?", "-.5", "numeric"), "Answer: \u22120.5", "right"),
    (Question("n", "?", "-.5", "numeric"), "Answer: 5", "wrong"),
    (Question("n", "?", "1e5", "numeric"), "Answer: 100,000", "right"),
    (Question("c", "?", "B", "choice", ("a cat", "a dog")), "Answer: a dog", "right"),
    (Question("e", "?", "{x}", "exact"), "so \\boxed{{x}}", "right"),
    (NUMERIC, "Answer: \\boxed{1234.5}", "right"),
    (NUMERIC, "thus \\boxed{1234.5}", "right"),
    (NUMERIC, "Answer: 3 no wait\nAnswer: 1234.5", "right"),
    (NUMERIC, "<think>Answer: 1234.5</think> Answer: 7", "wrong"),
    (NUMERIC, "Answer: -1234.5", "wrong"),
    (NUMERIC, "Answer: 12345", "wrong"),
    (NUMERIC, "Answer: 1/0", "ungradable"),
    (NUMERIC, "1234.5", "right"),
    (NUMERIC, "first 1234.5 and then some more", "ungradable"),
    (BOOLEAN, "Yes.", "right"),
    (BOOLEAN, "No way", "wrong"),
    (BOOLEAN, "Yes, since it is hotter than that", "ungradable"),
    (NUMERIC, "Answer:", "ungradable"),
    (NUMERIC, "Answer: none", "ungradable"),
    (NUMERIC, "", "ungradable"),
    (BOOLEAN, "Answer: Yes.", "right"),
    (BOOLEAN, "Answer: **true**", "right"),
    (BOOLEAN, "answer = no", "wrong"),
    (BOOLEAN, "Answer: nobody knows", "ungradable"),
    (CHOICE, "Answer: B", "right"),
    (CHOICE, "Answer: (b) blue cup", "right"),
    (CHOICE, "Answer: blue cup", "right"),
    (CHOICE, "Answer: A", "wrong"),
    (CHOICE, "Answer: Blimey", "ungradable"),
    (CHOICE, "Answer: E", "ungradable"),
    (EXACT, "Answer: mount  everest.", "right"),
    (EXACT, "Answer: K2", "wrong"),
]


@pytest.mark.parametrize(("question", "text", "outcome"), CASES)
def test_grades(question, text, outcome):
    found = grade(question, text)
    assert found.outcome == outcome
    assert found.reward == (1.0 if outcome == "right" else 0.0)


@given(st.text(max_size=300))
def test_any_text_gets_a_grade(text):
    for question in (NUMERIC, BOOLEAN, CHOICE, EXACT):
        assert grade(question, text).outcome in ("right", "wrong", "ungradable")
        assert grade(question, f"Answer: {text}").outcome in ("right", "wrong", "ungradable")
    stated_answer(text)


def write(path, *records) -> str:
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in records), encoding="utf-8")
    return str(path)


def test_kind_is_guessed_from_the_answer(tmp_path):
    file = write(
        tmp_path / "q.jsonl",
        {"question": "2+2", "answer": 4},
        {"question": "Is it?", "answer": "Yes"},
        {"question": "Which?", "answer": "A", "choices": ["x", "y"]},
        "",
        {"question": "Who?", "answer": "Ada", "id": "who", "difficulty": 3},
    )
    found = load_questions(file)
    assert [q.kind for q in found] == ["numeric", "boolean", "choice", "exact"]
    assert [q.id for q in found] == ["q1", "q2", "q3", "who"]
    assert found[3].difficulty == "3"


@pytest.mark.parametrize(
    ("lines", "names"),
    [
        (["{"], "line 1"),
        ([{"question": "x"}], "answer"),
        ([{"question": "x", "answer": "1"}, "[1, 2]"], "line 2"),
        ([{"question": "x", "answer": "1", "kind": "essay"}], "essay"),
        ([{"id": "a", "question": "x", "answer": "1"}, {"id": "a", "question": "y", "answer": "2"}], "twice"),
        ([{"question": "x", "answer": "1", "choices": list(range(40))}], "26"),
        ([""], "no questions"),
        ([{"question": "x", "answer": "abc", "kind": "numeric"}], "abc"),
        ([{"question": "x", "answer": "E", "choices": ["a", "b"]}], "choice grader"),
        ([{"question": "x", "answer": None}], "missing"),
        ([{"question": "", "answer": "1"}], "empty"),
        ([{"question": "x", "answer": ["6"]}], "neither text"),
        ([{"question": "x", "answer": "A", "choices": "ABCD"}], "list"),
        (['{"question": "\\ud800", "answer": "1"}'], "surrogates"),
        (["[" * 100_000], "line 1"),
    ],
)
def test_faults_of_a_question_file_name_the_line(tmp_path, lines, names):
    with pytest.raises(GradalignError, match=names) as caught:
        load_questions(write(tmp_path / "q.jsonl", *lines))
    assert "\n" not in str(caught.value)


def test_files_that_are_no_text_are_refused_and_a_byte_order_mark_is_read(tmp_path):
    binary = tmp_path / "b.jsonl"
    binary.write_bytes(b"\x80\x81")
    with pytest.raises(GradalignError, match="UTF-8"):
        load_questions(str(binary))
    marked = tmp_path / "m.jsonl"
    marked.write_text('{"question": "x", "answer": "1"}', encoding="utf-8-sig")
    assert len(load_questions(str(marked))) == 1


@pytest.mark.parametrize("source", ["x" * 400, ".", "nowhere.jsonl", "builtin:nothing", "builtin:arithmetic:test"])
def test_unknown_sets_are_refused(source):
    with pytest.raises(GradalignError):
        load_questions(source)


@pytest.mark.parametrize("name", ["arithmetic", "boolean", "choice"])
def test_builtin_sets_are_large_disjoint_and_their_solutions_are_right(name):
    splits = {split: load_questions(f"builtin:{name}:{split}") for split in ("train", "heldout")}
    assert all(len(found) >= 500 for found in splits.values())
    assert not {(q.text, q.choices) for q in splits["train"]} & {(q.text, q.choices) for q in splits["heldout"]}
    for found in splits.values():
        assert len({q.difficulty for q in found}) >= 3
        for question in found:
            assert question.solution is not None
            assert grade(question, question.solution).outcome == "right"
