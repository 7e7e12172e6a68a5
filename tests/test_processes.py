"""Several processes of this machine: the rows of one process, whatever happens to one of them."""

import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from test_resume import assert_same_rows

import gradalign
from gradalign.api import configure, run_forecast
from gradalign.pipeline import Budget, Cast, Done, Execution, Failed, Silent, Task, load_cast, processes, work
from gradalign.pipeline.faults import QuestionFault
from gradalign.pipeline.group import Spending
from gradalign.pipeline.on_processes import ProcessExecutor
from gradalign.questions import load_questions
from gradalign.store import Run, RunFolder, place_of
from gradalign.types import GradalignError

PARTS = {
    "teachers": ["ctx:correct_demo", "ctx:wrong_demo"],
    "limit": 12,
    "rollouts": 4,
    "budget": 16,
    "part_size": 3,
    "device": "cpu",
}
scored = work.score_group


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The run of one process."""
    return gradalign.score(out=tmp_path_factory.mktemp("runs") / "alone", workers=1, **PARTS)


@pytest.fixture(scope="module")
def cast() -> Cast:
    return load_cast(configure(limit=4), Execution(device="cpu"))


@pytest.fixture(autouse=True)
def none_is_left():
    """No process outlives its run."""
    yield
    assert not multiprocessing.active_children()


def disturbed(monkeypatch: pytest.MonkeyPatch, part: list[str], what: Callable[[], None]) -> None:
    """Have something happen, in the process that scores it, before the part with these questions is."""

    def score_group(places, *others):
        if [question.id for _, question in places] == part:
            what()
        return scored(places, *others)

    monkeypatch.setattr(work, "score_group", score_group)


def second_part(run: Run) -> list[str]:
    """The questions of its second part, in order."""
    return RunFolder(run.path).table(1, "questions").column("question").to_pylist()


@pytest.mark.parametrize("count", [2, 3])
def test_rows_are_those_of_one_process(alone, tmp_path, count):
    run = gradalign.score(out=tmp_path / "r", workers=count, **PARTS)
    assert_same_rows(alone, run, tolerance=0)
    log = "".join(path.read_text() for path in (run.path / "log").iterdir())
    assert {f'"worker": "process {i}"' in log for i in range(count)} == {True}


def test_a_run_goes_on_with_another_number_of_processes(alone, tmp_path):
    gradalign.score(out=tmp_path / "r", workers=2, **PARTS | {"budget": 8})
    run = gradalign.score(out=tmp_path / "r", workers=1, **PARTS)
    gradalign.score(out=tmp_path / "other", workers=1, **PARTS | {"budget": 8})
    assert_same_rows(gradalign.score(out=tmp_path / "other", workers=3, **PARTS), run, tolerance=0)


def test_a_part_whose_process_is_killed_is_scored_again(alone, tmp_path, monkeypatch, caplog):
    killed = tmp_path / "killed"

    def kill_once() -> None:
        if not killed.exists():
            killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    disturbed(monkeypatch, second_part(alone), kill_once)
    run = gradalign.score(out=tmp_path / "r", workers=2, **PARTS)
    assert killed.exists()
    assert "part 1 failed (try 1): its process was lost (SIGKILL)" in caplog.text
    assert_same_rows(alone, run, tolerance=0)


def test_a_question_that_kills_every_process_is_set_aside(alone, tmp_path, monkeypatch):
    here, poison = os.getpid(), second_part(alone)[1]

    def score_group(places, cast, config, spending, progress, stored, left_out=None):
        if poison in {question.id for _, question in places} - {*(left_out or {})}:
            assert os.getpid() != here
            os.kill(os.getpid(), signal.SIGKILL)
        return scored(places, cast, config, spending, progress, stored, left_out)

    monkeypatch.setattr(work, "score_group", score_group)
    run = gradalign.score(out=tmp_path / "r", workers=2, **PARTS)
    aside = run.skipped[run.skipped.reason.str.startswith("set aside")]
    assert aside[["question", "detail"]].to_numpy().tolist() == [[poison, "its process was lost (SIGKILL)"]]
    assert {*run.scores.question} == {*alone.scores.question} - {poison}


def test_processes_that_end_while_nothing_is_scored_are_replaced(cast, tmp_path):
    config = configure(limit=4, rollouts=4)
    questions = load_questions("builtin:arithmetic", 4)
    tasks = [Task(part, [(part, question)], Spending(Budget(8), 4), 0) for part, question in enumerate(questions)]
    folder, executor = RunFolder(tmp_path), ProcessExecutor(cast, 2)
    try:
        assert {type(one) for one in executor.run(folder, config, tasks, Silent())} == {Done}
        for hand in executor.hands:
            hand.process.kill()
            hand.process.join()
        found = [*executor.run(folder, config, tasks, Silent())]
        again = [one.task for one in found if isinstance(one, Failed)]
        assert len(found) == 4
        assert len(again) <= 2  # what was handed to them before it was heard that they are no more
        assert {type(one) for one in executor.run(folder, config, again or tasks, Silent())} == {Done}
    finally:
        executor.close()


def test_a_question_that_breaks_in_a_process_is_set_aside(alone, tmp_path, monkeypatch, caplog):
    part = second_part(alone)

    class Unsendable(Exception):
        def __init__(self, first, second):
            super().__init__(f"{first} {second}")

    def breaks() -> None:
        raise QuestionFault(part[0], "no such glyph") from Unsendable("no", "glyph")

    disturbed(monkeypatch, part, breaks)
    monkeypatch.setattr(work, "score_group", _only_where_asked(work.score_group, part[0]))
    run = gradalign.score(out=tmp_path / "r", workers=2, **PARTS)
    aside = run.skipped[run.skipped.reason.str.startswith("set aside")]
    assert aside.question.tolist() == [part[0]]
    assert {*run.scores.question} == {*alone.scores.question} - {part[0]}
    assert f"question '{part[0]}' is set aside: no such glyph" in caplog.text


def _only_where_asked(score_group, question: str):
    """Something happens only while the question is not left out."""

    def asked(places, cast, config, spending, progress, stored, left_out=None):
        score = scored if question in (left_out or {}) else score_group
        return score(places, cast, config, spending, progress, stored, left_out)

    return asked


def test_what_the_user_can_mend_ends_the_run_with_its_line(alone, tmp_path, monkeypatch):
    def refuse() -> None:
        raise GradalignError("the disk is full; make room")

    disturbed(monkeypatch, second_part(alone), refuse)
    with pytest.raises(GradalignError, match="the disk is full; make room"):
        gradalign.score(out=tmp_path / "r", workers=2, **PARTS)
    monkeypatch.undo()
    assert_same_rows(alone, gradalign.score(out=tmp_path / "r", workers=2, **PARTS), tolerance=0)


def test_what_a_process_logs_is_heard_here(alone, tmp_path, monkeypatch, caplog):
    def warn() -> None:
        logging.getLogger("gradalign.anything").warning("%d things to tell of process %d", 3, os.getpid())

    disturbed(monkeypatch, second_part(alone), warn)
    run = gradalign.score(out=tmp_path / "r", workers=2, **PARTS)
    told = [record for record in caplog.records if record.name == "gradalign.anything"]
    assert [record.levelname for record in told] == ["WARNING"]
    assert "3 things to tell of process" in told[0].getMessage()
    assert str(os.getpid()) not in told[0].getMessage()
    kept = "".join(path.read_text() for path in (run.path / "log").iterdir())
    assert kept.count("3 things to tell") == 1


def test_processes_end_with_the_one_that_they_were_forked_from(alone, tmp_path, monkeypatch):
    told = tmp_path / "pids"
    told.mkdir()

    def sleep() -> None:
        (told / str(os.getpid())).touch()
        time.sleep(600)

    disturbed(monkeypatch, second_part(alone), sleep)
    context = multiprocessing.get_context("fork")
    run = context.Process(target=gradalign.score, kwargs={"out": tmp_path / "r", "workers": 2, **PARTS})
    run.start()
    _until(lambda: any(told.iterdir()))
    run.kill()
    run.join()
    forked = int(next(told.iterdir()).name)
    assert forked != run.pid
    _until(lambda: _gone(forked))


def test_ctrl_c_ends_every_process_and_loses_nothing(tmp_path):
    command = "gradalign score --out r --workers 2 --no-report --limit 200 --rollouts 4 --budget 16 --device cpu"
    program = (  # a shell in the background has the signal ignored
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); from gradalign_cli.main import main; "
        f"sys.argv = {command.split()}; main()"
    )
    run = subprocess.Popen(
        [sys.executable, "-c", program], cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    finished = tmp_path / "r" / "finished"
    _until(lambda: finished.is_dir() and any(finished.iterdir()))
    os.killpg(run.pid, signal.SIGINT)
    assert "interrupted; nothing finished is lost" in run.communicate()[1]
    assert run.returncode == 130
    with pytest.raises(ProcessLookupError):
        os.killpg(run.pid, 0)
    assert any(finished.iterdir())


def _until(done: Callable[[], bool]) -> None:
    began = time.monotonic()
    while not done():
        assert time.monotonic() - began < 60
        time.sleep(0.02)


def _gone(process: int) -> bool:
    """Has it ended, whether or not anybody has asked how?"""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


def test_as_many_processes_as_torch_has_threads(cast, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)
    assert tuple(processes(cast, asked, Path("run")) for asked in (None, 3, 1)) == (6, 3, 1)


@pytest.mark.parametrize("why", ["large", "elsewhere", "no fork", "macOS", "object store"])
def test_one_process_where_several_would_be_of_no_use(cast, monkeypatch, why):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)
    place = place_of("memory://bucket/run" if why == "object store" else "run")
    if why == "large":
        monkeypatch.setattr(Cast, "parameters", 20_000_000)
    elif why == "elsewhere":
        monkeypatch.setattr(cast.student.engine.model, "device", torch.device("meta"))
    elif why == "macOS":
        monkeypatch.setattr(sys, "platform", "darwin")
    elif why == "no fork":
        monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: ["spawn"])
    assert (processes(cast, None, place), processes(cast, 1, place)) == (1, 1)
    with pytest.raises(GradalignError, match="workers is 2, but only models of under 20 million parameters"):
        processes(cast, 2, place)


def test_a_forecast_knows_of_processes(cast):
    config = configure(limit=16, rollouts=4, part_size=4)
    one, many = (run_forecast(config, Execution(device="cpu", workers=count), cast=cast) for count in (1, 16))
    assert one.seconds == pytest.approx(4 * one.measured_seconds)
    assert many.seconds == pytest.approx(many.measured_seconds)
    stored = run_forecast(config, Execution(device="cpu"), cast=cast, out="memory://bucket/run")
    assert stored.seconds == pytest.approx(4 * stored.measured_seconds)
