"""The catalogue of failures: what goes wrong, and the line that the user then sees, end to end through the command.

Every case has an entry in docs/failures.md, whose line is checked against the one that is really printed. ELSEWHERE names other tests.
"""

import ast
import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import popen_fork
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from test_cli import TINY, spoiled
from transformers import AutoModelForCausalLM

from gradalign import load_run, score
from gradalign.models import CausalLanguageModel, norms
from gradalign.pipeline import Cast, group

HERE = Path(__file__).parent
PAGE = (HERE.parent / "docs" / "failures.md").read_text(encoding="utf-8")
ENTRY = re.compile(
    r"^### (?P<title>.+?)\n\n(?P<what>.+?)\n\n```text\n(?P<says>.+?)\n```\n\n(?P<mend>.+?)(?=\n\n#|\n*\Z)",
    re.MULTILINE | re.DOTALL,
)
ENTRIES = {found["title"]: found["says"].strip() for found in ENTRY.finditer(PAGE)}
RUN = ["score", *TINY, "--out", "r"]
SCORED = ["score", "--limit", "4", "--rollouts", "4", "--budget", "32", "--demonstrations", "4"]
Setting = Callable[[Path, pytest.MonkeyPatch], None]


def nothing(place: Path, patch: pytest.MonkeyPatch) -> None:
    """The folder as it is."""


def large(place: Path, patch: pytest.MonkeyPatch) -> None:
    """Models count as large."""
    patch.setattr(Cast, "parameters", 30_000_000)


def no_forks(place: Path, patch: pytest.MonkeyPatch) -> None:
    """The system has no process more to give."""

    def refused(*_) -> None:
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    patch.setattr(popen_fork.Popen, "_launch", refused)


@dataclass(frozen=True)
class Failure:
    """A command that fails with exit code 2, and what was done before: `setting` in the folder, and with `run` a finished run in it."""

    title: str
    arguments: Sequence[str]
    setting: Setting = nothing
    run: bool = False


def written(name: str, content: str | bytes) -> Setting:
    """A file of that content."""

    def write(place: Path, patch: pytest.MonkeyPatch) -> None:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(content.encode() if isinstance(content, str) else content)

    return write


def model(change: Callable[[Path], None]) -> Setting:
    """The small student in the folder `spoiled`, changed."""
    return lambda place, patch: (spoiled(place, change), None)[1]


def other_tokenizer(folder: Path) -> None:
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    names = sorted(content["model"]["vocab"], key=content["model"]["vocab"].get)
    vocabulary = content["model"]["vocab"]
    vocabulary[names[70]], vocabulary[names[71]] = vocabulary[names[71]], vocabulary[names[70]]
    file.write_text(json.dumps(content), encoding="utf-8")


def not_numbers(folder: Path) -> None:
    found = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        found.model.norm.weight[0] = float("nan")
    found.save_pretrained(folder)


def cut_weights(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])


def enormous(folder: Path) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"num_hidden_layers": 10**9}), encoding="utf-8")


def no_end_token(folder: Path) -> None:
    for name in ("generation_config.json", "config.json", "tokenizer_config.json"):
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({key: value for key, value in content.items() if not key.startswith("eos")}))


def removed(*names: str) -> Callable[[Path], None]:
    def remove(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return remove


def full_disk(place: Path, patch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    patch.setattr(os, "fsync", full)


def no_memory(place: Path, patch: pytest.MonkeyPatch) -> None:
    def full(self: CausalLanguageModel, *arguments: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    patch.setattr(CausalLanguageModel, "_forward", full)


def padded(folder: Path) -> None:
    found = AutoModelForCausalLM.from_pretrained(folder)
    found.resize_token_embeddings(found.config.vocab_size + 32, mean_resizing=False)
    found.save_pretrained(folder)


def interrupted(place: Path, patch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    patch.setattr(group, "sample_targeted", interrupt)


def damaged(name: str, content: bytes) -> Setting:
    return written(f"r/{name}", content)


def unfinished(place: Path, patch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(place / "r" / "finished")


def old_format(place: Path, patch: pytest.MonkeyPatch) -> None:
    file = place / "r" / "run.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format": 1}), encoding="utf-8")


def lacking(place: Path, patch: pytest.MonkeyPatch) -> None:
    file = place / "r" / "run.json"
    found = json.loads(file.read_text())
    del found["identity"]["teachers"]
    file.write_text(json.dumps(found), encoding="utf-8")


HOLDERS: list[FileLock] = []


def held(place: Path, patch: pytest.MonkeyPatch) -> None:
    """A lock of the kind that another process would hold."""
    lock = FileLock(place / "r" / ".lock")
    lock.acquire()
    HOLDERS.append(lock)


LONG = json.dumps({"question": "What is 2+2?", "answer": "4", "solution": "so " * 2000})
PLAIN = json.dumps({"question": "What is 2+2?", "answer": "4"})
FAILURES = [
    Failure("An unknown model", ["score", "--student", "Qwen3-0.6"]),
    Failure("No network", ["score", "--student", "nobody/nothing"]),
    Failure("An unknown built-in model", ["score", "--student", "builtin:smal"]),
    Failure("A folder without a model", ["score", "--student", "."]),
    Failure("A GGUF file that is not there", ["score", "--student", "missing.gguf"]),
    Failure("A damaged GGUF file", ["score", "--student", "broken.gguf"], written("broken.gguf", b"GGUF nothing")),
    Failure("Damaged weights", ["score", "--student", "spoiled"], model(cut_weights)),
    Failure("A configuration that no model has", ["score", "--student", "spoiled"], model(enormous)),
    Failure("No chat template", ["score", "--student", "spoiled"], model(removed("chat_template.jinja"))),
    Failure(
        "A chat template that fails",
        ["score", "--chat-template", "bad.jinja"],
        written("bad.jinja", "{{ messages[3].content }}"),
    ),
    Failure(
        "A chat template that never ends",
        ["score", "--chat-template", "bad.jinja"],
        written("bad.jinja", "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"),
    ),
    Failure("No end-of-turn token", ["score", "--student", "spoiled"], model(no_end_token)),
    Failure("Another tokenizer", [*SCORED, "--teacher", "model:spoiled"], model(other_tokenizer)),
    Failure("Logits that are not numbers", [*SCORED, "--student", "spoiled", "--teacher", "ctx:reference"], model(not_numbers)),
    Failure("Out of memory even one at a time", [*SCORED, "--teacher", "ctx:reference"], no_memory),
    Failure("A device that is not there", ["score", "--device", "abacus"]),
    Failure("An engine that is none", ["score", "--engine", "abacus"]),
    Failure("A server that cannot be reached", [*SCORED, "--engine", "server:http://127.0.0.1:9"]),
    Failure("A secret in an address", ["score", "--engine", "server:http://me:hunter2@host"]),
    Failure("No such question file", ["score", "nowhere.jsonl"]),
    Failure("A line that is no question", ["score", "q.jsonl"], written("q.jsonl", PLAIN + "\n{")),
    Failure(
        "An answer that cannot be graded",
        ["score", "q.jsonl"],
        written("q.jsonl", json.dumps({"question": "?", "answer": "blue", "kind": "numeric"})),
    ),
    Failure(
        "A question id twice", ["score", "q.jsonl"], written("q.jsonl", '{"id": "a", "question": "?", "answer": "1"}\n' * 2)
    ),
    Failure(
        "A context that needs what no question has",
        [*SCORED, "q.jsonl", "--teacher", "ctx:reference"],
        written("q.jsonl", PLAIN),
    ),
    Failure("A context longer than the window", [*SCORED, "q.jsonl", "--teacher", "ctx:reference"], written("q.jsonl", LONG)),
    Failure("An unknown context", ["score", "--teacher", "ctx:corect_demo"]),
    Failure("A template with a fault", ["score", "--teacher", "ctx:mine.j2"], written("mine.j2", "{% if %}")),
    Failure("A teacher in another form", ["score", "--teacher", "correct_demo"]),
    Failure("An unknown objective", ["score", "--objective", "klkl"]),
    Failure(
        "A module of one's own that fails", ["score", "--objective", "mine:f"], written("mine.py", "raise RuntimeError('no')")
    ),
    Failure("A budget that is not understood", ["score", "--budget", "lots"]),
    Failure("Truncated sampling", ["score", "--top-p", "0.9"]),
    Failure(
        "A fault in a training configuration",
        ["score", "--configs", "c.yaml"],
        written("c.yaml", "- name: a\n  objektive: reverse_kl\n"),
    ),
    Failure("Workers without Ray", ["score", "--worker-gpus", "2"]),
    Failure("Several processes, large models", [*RUN, "--workers", "4"], large),
    Failure("No process to be had", [*RUN, "--limit", "12", "--workers", "2"], no_forks),
    Failure("An object store that cannot be reached", [*RUN[:-1], "nowhere://bucket/run"]),
    Failure("A folder that cannot be written", [*RUN[:-1], "file"], written("file", "x")),
    Failure("A folder that is not a run", [*RUN[:-1], "full"], written("full/notes.txt", "mine")),
    Failure("A full disk", RUN, full_disk),
    Failure("Another configuration in the same folder", [*RUN, "--seed", "3"], run=True),
    Failure("A budget in another unit", [*RUN, "--budget", "90k-tokens"], run=True),
    Failure("A run that another process writes", RUN, held, run=True),
    Failure("A damaged part", ["rank", "r"], damaged("nodes/part-00000.parquet", b"not parquet"), run=True),
    Failure("A damaged run.json", ["rank", "r"], damaged("run.json", b"{"), run=True),
    Failure("A run.json that lacks something", ["rank", "r"], lacking, run=True),
    Failure("A run of another format", ["rank", "r"], old_format, run=True),
    Failure("A run without a finished part", ["rank", "r"], unfinished, run=True),
    Failure("A folder that is no run at all", ["rank", "nowhere"]),
    Failure("A question that the run does not have", ["show", "r", "--question", "nope"], run=True),
    Failure("A place that cannot be written", ["rank", "r", "--out", "nowhere/t.csv"], run=True),
]
SAID = [  # nothing is refused: the case is counted or said, and the run goes on, or ends where the user ended it
    (0, Failure("Padded logits", [*SCORED, "--teacher", "ctx:reference", "--student", "spoiled"], model(padded))),
    (
        0,
        Failure(
            "Questions and contexts that are left out",
            [*SCORED, "q.jsonl", "--teacher", "ctx:reference", "--teacher", "ctx:answer"],
            written("q.jsonl", PLAIN),
        ),
    ),
    (
        0,
        Failure("All rollouts right, or all wrong", [*SCORED, "q.jsonl", "--teacher", "ctx:answer"], written("q.jsonl", PLAIN)),
    ),
    (130, Failure("An interrupt", RUN, interrupted)),
]
SAID_BELOW = (  # each with a test of its own
    "Out of memory",
    "Kernels that cannot be made",
    "A run that was killed",
    "A question that breaks",
)
ELSEWHERE = [  # what else is promised of the same cases, tested where it belongs
    ("test_resume.py", "test_killed_ten_times_a_run_ends_with_the_same_rows"),
    ("test_store.py", "test_a_full_disk_says_so_and_loses_nothing"),
    ("test_store.py", "test_an_interrupt_waits_until_the_part_stands"),
    ("test_store.py", "test_a_turned_bit_anywhere_in_a_marker_is_seen"),
    ("test_cli.py", "test_a_damaged_part_is_named_and_redone"),
    ("test_cli.py", "test_questions_and_teachers_that_lack_something_are_skipped_and_counted"),
    ("test_cli.py", "test_an_edited_template_is_another_configuration"),
    ("test_endpoint.py", "test_addresses_with_secrets_are_refused_and_not_shown"),
    ("test_models.py", "test_unknown_names_fail_with_the_nearest"),
]


def said(message: str, pattern: str) -> bool:
    """Does a line say what a pattern does, with anything in the places of `…`?"""
    at = 0
    for piece in pattern.split("…"):
        found = message.find(piece.strip(), at)
        if found < 0:
            return False
        at = found + len(piece.strip())
    return True


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory) -> Path:
    """What `RUN` makes, made once."""
    folder = tmp_path_factory.mktemp("finished") / "r"
    score(teachers=["ctx:reference"], limit=4, rollouts=4, budget=32, demonstrations=4, out=folder)
    return folder


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: failure.title)
def test_a_failure_is_one_line_that_names_the_mend(gradalign, tmp_path, monkeypatch, finished_run, failure):
    if failure.run:
        shutil.copytree(finished_run, tmp_path / "r")
    with monkeypatch.context() as patched:
        failure.setting(tmp_path, patched)
        finished = {path: path.read_bytes() for path in tmp_path.rglob("part-*") if path.is_file()}
        try:
            code, _, err = gradalign(*failure.arguments)
        finally:
            while HOLDERS:
                HOLDERS.pop().release()
    assert code == 2, err
    assert "Traceback" not in err
    message = err[err.index("error:") :].strip()
    assert "\n" not in message
    assert said(message, ENTRIES[failure.title]), message
    assert all(path.read_bytes() == content for path, content in finished.items()), "what was finished has changed"


@pytest.mark.parametrize(("code", "case"), SAID, ids=lambda value: getattr(value, "title", ""))
def test_what_is_no_fault_is_said(gradalign, tmp_path, monkeypatch, code, case):
    with monkeypatch.context() as patched:
        case.setting(tmp_path, patched)
        found, out, err = gradalign(*case.arguments)
    assert found == code
    assert said(" ".join((out + err).split()), ENTRIES[case.title]), out + err


def test_after_a_full_disk_the_same_command_goes_on(gradalign, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        full_disk(tmp_path, patched)
        assert gradalign(*RUN)[0] == 2
    assert gradalign(*RUN)[0] == 0
    assert len(load_run(tmp_path / "r").questions) == 4


def test_out_of_memory_halves_the_batch_and_says_so(gradalign, tmp_path, monkeypatch, finished_run):
    whole = CausalLanguageModel._forward

    def full(self, passes, continuations):
        if len(continuations) > 1:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return whole(self, passes, continuations)

    monkeypatch.setattr(CausalLanguageModel, "_forward", full)
    arguments = [*RUN[:-1], "small-batches"]
    code, _, err = gradalign(*arguments)
    assert code == 0
    log = next((tmp_path / "small-batches" / "log").iterdir()).read_text(encoding="utf-8")
    assert said(" ".join(err.split()) + log, ENTRIES["Out of memory"])
    one, other = load_run(finished_run), load_run(tmp_path / "small-batches")
    assert one.rollouts.tokens.map(tuple).equals(other.rollouts.tokens.map(tuple))


def test_without_kernels_a_run_goes_on(gradalign, finished_run, monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(norms, "norm_kernel", {})
    monkeypatch.setattr(norms, "_has_kernels", norms.kernels_run)
    norms.kernels_run.cache_clear()
    try:
        assert gradalign(*RUN[:-1], "slow")[0] == 0
    finally:
        norms.kernels_run.cache_clear()
    assert said(" ".join(caplog.messages), ENTRIES["Kernels that cannot be made"])
    assert load_run(finished_run).alignment.equals(load_run(tmp_path / "slow").alignment)


def test_a_killed_run_says_so_and_goes_on(gradalign, tmp_path):
    """The folder as a kill leaves it: no end in the log, a part without its marker, a file that was being written."""
    assert gradalign("score", *TINY[2:], "--limit", "12", "--out", "r")[0] == 0
    expected = load_run(tmp_path / "r").alignment
    log = next((tmp_path / "r" / "log").iterdir())
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:-2]) + '{"time": "20', encoding="utf-8")
    (tmp_path / "r" / "finished" / "part-00001.json").unlink()
    written("r/.partial/half", b"x")(tmp_path, pytest.MonkeyPatch())
    first = (tmp_path / "r" / "finished" / "part-00000.json").stat().st_mtime_ns
    code, out, _ = gradalign("status", "r")
    assert code == 0
    assert said(" ".join(out.split()), ENTRIES["A run that was killed"])
    assert gradalign("score", *TINY[2:], "--limit", "12", "--out", "r")[0] == 0
    assert (tmp_path / "r" / "finished" / "part-00000.json").stat().st_mtime_ns == first
    assert load_run(tmp_path / "r").alignment.equals(expected)


def test_a_question_that_breaks_is_set_aside(gradalign, tmp_path, monkeypatch, finished_run):
    whole = group.sample_targeted
    broken = load_run(finished_run).questions.question.iloc[0]

    def breaking(*arguments, **options):
        for argument in (*arguments, *options.values()):
            for item in argument if isinstance(argument, list | tuple) else (argument,):
                question = getattr(item, "question", None)
                if getattr(question, "id", None) == broken:
                    from gradalign.pipeline.faults import QuestionFault

                    raise QuestionFault(broken, "RuntimeError: odd")
        return whole(*arguments, **options)

    monkeypatch.setattr(group, "sample_targeted", breaking)
    code, out, _ = gradalign(*RUN[:-1], "other")
    assert code == 0, out
    skipped = load_run(tmp_path / "other").skipped.set_index("question")
    assert said(f"{skipped.loc[broken].reason}: {skipped.loc[broken].detail}", ENTRIES["A question that breaks"])
    assert len(load_run(tmp_path / "other").questions) == 4


def test_the_page_lists_every_failure_and_no_other():
    titles = [failure.title for failure in FAILURES]
    assert len({*titles}) == len(titles)
    assert {*titles, *(case.title for _, case in SAID), *SAID_BELOW} == {*ENTRIES}
    assert PAGE.count("\n### ") == len(ENTRIES), "an entry has another form"


@pytest.mark.parametrize(("file", "name"), ELSEWHERE)
def test_tests_that_the_catalogue_names_exist(file, name):
    tree = ast.parse((HERE / file).read_text(encoding="utf-8"))
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
