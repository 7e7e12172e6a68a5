"""Graders: a table of cases checked by hand, hostile texts, the process of mathematics, patterns, and functions that users bring."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gradalign.api import _identity, configure
from gradalign.pipeline import Facts
from gradalign.questions import functions, grade, load_questions, mathematics, read_answer, regraded, stated
from gradalign.questions.mathematics import MathWorker
from gradalign.types import GradalignError, Grade, Question

CASES = [json.loads(line) for line in (Path(__file__).parent / "grading_cases.jsonl").read_text("utf-8").splitlines()]
OUTCOMES = ("right", "wrong", "ungradable")
ASKED = (
    Question("n", "?", "18", "numeric"),
    Question("b", "?", "yes", "boolean"),
    Question("c", "?", "B", "choice", ("red cup", "blue cup")),
    Question("e", "?", "abc", "exact"),
    Question("r", "?", "(a+)+b", "regex"),
    Question("m", "?", "x+1", "math"),
)
TOWER = "9^{9^{9^{9^{9}}}}"


def asked(case) -> Question:
    return Question("q", "?", case["answer"], case["kind"], tuple(case.get("choices", ())))


def test_the_table_is_large_and_says_each_thing_once():
    assert len(CASES) >= 300
    assert len({json.dumps({**case, "note": "", "outcome": ""}) for case in CASES}) == len(CASES)
    assert {(case["kind"], case["outcome"]) for case in CASES} >= {(q.kind, outcome) for q in ASKED for outcome in OUTCOMES}


@pytest.mark.parametrize("kind", [q.kind for q in ASKED])
def test_every_case_of_the_table(kind):
    missed = []
    for case in (c for c in CASES if c["kind"] == kind):
        found = grade(asked(case), case["text"])
        assert found.reward == (found.outcome == "right")
        assert (found.reason is None) == (found.outcome != "ungradable")
        if found.outcome != case["outcome"]:
            missed.append((case["answer"], case["text"], case["outcome"], found))
    assert not missed


def test_right_answers_read_like_the_question_s_own():
    """What findings about copied answers rest on: equal answers are equal texts, and wrong ones are not."""
    for case in CASES:
        question = asked(case)
        said = stated(question, case["text"])
        own, read = read_answer(question, question.answer), None if said is None else read_answer(question, said)
        itself = said == question.answer  # of a pattern, which need not match itself
        assert (read == own) == (case["outcome"] == "right") or itself, case["text"]


PIECES = st.sampled_from(
    ["Answer: ", "answer is ", "\\boxed{", "}", "{", "$", "\\frac{", "1", "2,000", "-", " ", "\n", "#### ", "<think>", "</think>",
     "yes", "not ", "no", "B", "or ", "blue cup", "\\text{", "=", "%", "x", "^", "(", ")", "/", "0", "1e999", "½", "\u2212", "\\%"]
)  # fmt: skip


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(st.one_of(st.text(max_size=300), st.lists(PIECES, max_size=30).map("".join), st.characters(categories=["Cs"])))
def test_any_text_gets_a_grade(text):
    for question in ASKED:
        if question.kind == "math" and sum(map(text.count, "^/\\")) > 3:
            continue  # what takes the whole time limit has a test of its own
        began = time.monotonic()
        found = grade(question, text)
        assert isinstance(found, Grade)
        assert found.outcome in OUTCOMES
        assert found.reward == (found.outcome == "right")
        assert time.monotonic() - began < 6


HOSTILE = ["answer ", "answer is ", "best choice ", "\\boxed{", "\\boxed{1} or ", "{", "\\text{", "$", "\\frac{", "1,", "1 ", "10^{",
           "-", "(", "\n", "#### ", "<answer>", "A or ", "not ", "answer to the a b ", "answer (", "½", "=", "\\", "sqrt(",
           "1'234 ", "* ", "red cup "]  # fmt: skip


@pytest.mark.parametrize("piece", HOSTILE)
def test_long_hostile_texts_take_under_a_second(piece):
    for before in ("", "Answer: "):
        text = before + piece * (100_000 // len(piece))
        for question in ASKED[:-1]:
            began = time.process_time()
            grade(question, text)
            assert time.process_time() - began < 1


def test_equal_texts_and_plain_numbers_need_no_process(monkeypatch):
    monkeypatch.setattr(mathematics, "_compared", lambda *_: pytest.fail("asked the process"))
    for answer, text in [
        ("\\frac{x}{2}", "\\boxed{\\dfrac{x}{2}}"),
        ("1/2", "Answer: 0.5"),
        ("10,000", "Answer: 10000"),
        ("7", "Answer: 8"),
    ]:
        assert grade(Question("m", "?", answer, "math"), text).outcome == ("wrong" if answer == "7" else "right")


def test_what_takes_too_long_is_ungradable_and_the_process_starts_again():
    worker = MathWorker(seconds=4.5)
    try:
        assert worker.ask({"answer": "2x", "said": "x+x"})["same"]
        first = worker._process
        began = time.monotonic()
        assert "too much time" in worker.ask({"answer": "9", "said": TOWER})["reason"]
        assert time.monotonic() - began < 5
        assert worker._process is None
        assert first is not None
        assert first.poll() is not None
        assert not worker.ask({"answer": "2x", "said": "x+y"})["same"]
    finally:
        worker.close()
    found = grade(Question("m", "?", "9", "math"), f"\\boxed{{{TOWER}}}")
    assert (found.outcome, found.reason) == ("ungradable", "comparing takes too much time or memory")


def test_the_wall_limit_ends_what_the_limit_of_cpu_time_does_not():
    worker = MathWorker()
    try:
        worker.ask({"answer": "1", "said": "y"})
        worker.seconds = 0.2
        assert "reason" in worker.ask({"answer": "9", "said": TOWER})
    finally:
        worker.close()


def test_a_process_that_dies_between_requests_costs_one_answer():
    worker = MathWorker()
    try:
        worker.ask({"answer": "1", "said": "y"})
        assert worker._process is not None
        worker._process.kill()
        worker._process.wait()
        assert "reason" in worker.ask({"answer": "2x", "said": "x+x"})
        assert worker.ask({"answer": "2x", "said": "x+x"})["same"]
    finally:
        worker.close()


def test_threads_share_one_process():
    found = {}

    def ask(i):
        found[i] = grade(Question("m", "?", "2x", "math"), f"\\boxed{{x \\cdot {i}}}").outcome

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {1: "wrong", 2: "right", 3: "wrong", 4: "wrong"}


SCRIPT = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell in the background has it ignored
from gradalign.questions import grade, mathematics
from gradalign.types import Question
print(grade(Question("m", "?", "2x", "math"), "\\\\boxed{x+x}").outcome, flush=True)
import os
import re
print(mathematics._worker(os.getpid())._process.pid, flush=True)
{then}
"""


def gone(process: int) -> bool:
    for _ in range(100):
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return True
        if (
            Path(f"/proc/{process}/stat").exists()
            and Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        ):
            return True
        time.sleep(0.05)
    return False


@pytest.mark.skipif(os.name != "posix", reason="looks for processes as POSIX has them")
@pytest.mark.parametrize(
    ("then", "sent", "code"),
    [
        ("", None, 0),
        ("raise SystemExit(3)", None, 3),
        ("pid = os.fork()\nif not pid: sys.exit(0)\nos.waitpid(pid, 0)\n"
         "print(grade(Question('m', '?', '2y', 'math'), '\\\\boxed{y+y}').outcome == 'right')", None, 0),
        (f"grade(Question('m', '?', '9', 'math'), '\\\\boxed{{{TOWER}}}')\ntime.sleep(60)", signal.SIGINT, -signal.SIGINT),
        ("time.sleep(60)", signal.SIGKILL, -signal.SIGKILL),
    ],
    ids=["exit", "error", "fork", "ctrl-c", "killed"],
)  # fmt: skip
def test_no_process_is_left_behind(then, sent, code):
    script = SCRIPT.replace("{then}", then)
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout is not None
        assert run.stderr is not None
        assert run.stdout.readline() == "right\n"
        process = int(run.stdout.readline())
        if sent is not None:
            time.sleep(0.3)
            run.send_signal(sent)
        rest, said = run.stdout.read(), run.stderr.read()
        assert run.wait(20) == code, said
        assert "False" not in rest
        assert "Warning" not in said
    assert gone(process)


def test_patterns_that_re2_does_not_know_are_refused_at_loading(tmp_path):
    for pattern in ("(", r"(a)\1", "(?=a)", "a{5000}", "((a{100}){100}){100}"):
        file = tmp_path / "q.jsonl"
        file.write_text(json.dumps({"question": "?", "answer": pattern, "kind": "regex"}))
        with pytest.raises(GradalignError, match=r"line 1: the pattern .* re2") as caught:
            load_questions(str(file))
        assert "\n" not in str(caught.value)


def test_a_file_cannot_name_code(tmp_path):
    file = tmp_path / "q.jsonl"
    for record in ({"kind": "function"}, {"kind": "os:system"}):
        file.write_text(json.dumps({"question": "?", "answer": "1", **record}))
        with pytest.raises(GradalignError, match="is none of"):
            load_questions(str(file))
    file.write_text(json.dumps({"question": "?", "answer": "1", "grader": "os:system"}))
    assert load_questions(str(file))[0].grader is None


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A module of the user's own, importable by its name."""
    (tmp_path / "mine_grader.py").write_text(
        "from gradalign.types import Grade\n"
        "def grade(question, text):\n"
        "    said = {'half': 0.5, 'yes': True, 'no': False, 'one': 1, 'none': None, 'much': 2, 'nan': float('nan'), 'text': 'x',\n"
        "            'own': Grade(0.25, 'right', 'mine'), 'odd': Grade(1.0, 'ungradable', None)}\n"
        "    return said[text.split()[-1]]\n"
    )
    monkeypatch.chdir(tmp_path)
    yield "mine_grader:grade"
    sys.modules.pop("mine_grader", None)
    functions._function.cache_clear()


def test_a_function_of_one_s_own(mine):
    question = regraded(Question("q", "?", "B", "choice", ("a", "b")), mine)
    assert (question.kind, question.grader) == ("function", mine)
    expected = {
        "half": (0.5, "wrong"),
        "yes": (1.0, "right"),
        "no": (0.0, "wrong"),
        "one": (1.0, "right"),
        "none": (0.0, "ungradable"),
    }
    for text, (reward, outcome) in expected.items():
        found = grade(question, f"Answer: {text}")
        assert (found.reward, found.outcome) == (reward, outcome)
        assert found.answer == text
    assert grade(question, "own") == Grade(0.25, "right", "mine")
    for text in ("much", "nan", "text", "odd", "missing"):
        with pytest.raises(GradalignError, match="question 'q'") as caught:
            grade(question, text)
        assert "\n" not in str(caught.value)


def test_the_grader_is_a_setting_of_the_run_and_its_code_part_of_its_identity(mine, tmp_path):
    config = configure(grader=mine)
    facts = Facts({}, (), 256, "hf")
    question = regraded(Question("q", "?", "1", "numeric"), mine)
    before = _identity(config, facts, [question])
    assert (before["grader"], len(before[f"code of {mine}"])) == (mine, 32)
    source = tmp_path / "mine_grader.py"
    source.write_text(source.read_text() + "# changed\n")
    assert _identity(config, facts, [question]) != before
    for spec, said in (("essay", "unknown grader"), ("nowhere_at_all:f", "import"), ("json:nothing", "no function")):
        with pytest.raises(GradalignError, match=said):
            configure(grader=spec)
    assert configure(grader="math").grader_function is None


def test_another_kind_for_every_question():
    assert regraded(Question("q", "?", "7", "exact"), "numeric").kind == "numeric"
    with pytest.raises(GradalignError, match=r"question 'q'.*numeric grader"):
        regraded(Question("q", "?", "seven", "exact"), "numeric")


def test_run_scored_by_a_function(mine, tmp_path):
    import gradalign

    (tmp_path / "mine_grader.py").write_text("def grade(question, text):\n    return question.answer in text.split()[-1:]\n")
    run = gradalign.score(
        limit=2, rollouts=8, demonstrations=1, budget=4, teachers=["ctx:answer"], grader=mine, out=tmp_path / "run"
    )
    assert set(run.questions.kind) == {"function"}
    base = run.rollouts[run.rollouts.purpose == "base"]
    answers = run.questions.set_index("question").answer
    assert [row.reward == 1 for row in base.itertuples()] == [
        answers[row.question] in row.text.split()[-1:] for row in base.itertuples()
    ]


def test_why_a_rollout_is_ungradable_is_kept(tmp_path):
    import gradalign

    run = gradalign.score(
        limit=2, rollouts=16, demonstrations=1, budget=4, teachers=["ctx:answer"], max_tokens=8, out=tmp_path / "run"
    )
    base = run.rollouts[run.rollouts.purpose == "base"]
    assert (base.ungradable_reason.notna() == (base.outcome == "ungradable")).all()
    assert "no answer is stated" in {*base.ungradable_reason.dropna()}


def documented() -> list[tuple[Question, str, str]]:
    """Every example of the table in docs/graders.md: question, stated answer, outcome."""
    page = (Path(__file__).parents[1] / "docs" / "graders.md").read_text(encoding="utf-8")
    found, kind = [], ""
    for line in page[page.index("| kind |") :].split("\n\n")[0].split("\n")[2:]:
        cells = [re.findall(r"`([^`]+)`", cell.replace(r"\|", "|")) for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        kind = cells[0][0] if cells[0] else kind
        if kind != "function":
            question = Question("q", "?", cells[1][0], kind, ("red cup", "blue cup") if kind == "choice" else ())
            found += [(question, said, outcome) for outcome, cell in zip(OUTCOMES, cells[2:], strict=True) for said in cell]
    return found


def test_the_examples_in_the_documents_are_graded_as_they_say():
    examples = documented()
    assert len(examples) > 40
    for question, said, outcome in examples:
        assert grade(question, f"Answer: {said}").outcome == outcome, said
