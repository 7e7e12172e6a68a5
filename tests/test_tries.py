"""Parts that break: tried three times, the questions at fault set aside with the reason, the rest scored as if nothing had been."""

import json

import pytest
from test_pipeline_exact import cast_of, config_for, questions
from test_resume import assert_same_rows

from gradalign.api import run_score
from gradalign.pipeline import Budget, Effort
from gradalign.store import RunFolder, RunLog, load_run, session, status
from gradalign.testbed import TabularCodec
from gradalign.types import GradalignError, Question

SMALL = Effort(Budget(16))


class Breaking(TabularCodec):
    """Fails at prompts that name a marked question, as many times as `times` says; counts them."""

    def __init__(self, model, times=10**6):
        super().__init__(model)
        self.times, self.calls = times, 0

    def prompt(self, user: str, system: str | None = None) -> tuple[int, ...]:
        if "poison" in user and self.calls < self.times:
            self.calls += 1
            raise ValueError("no such glyph")
        return super().prompt(user, system)


def cast_with(tabular, codec):
    cast = cast_of(tabular)
    model = type(cast.student.model)(tabular, codec, "table tabular")
    return type(cast)(type(cast.student)(model, tabular), cast.teachers, cast.others)


def marked(count: int, *poison: int) -> list[Question]:
    return [Question(f"q{i}", "poison?" if i in poison else "which?", "yes", "boolean") for i in range(count)]


def events(run, kind: str) -> list[dict]:
    lines = [line for file in sorted((run.path / "log").iterdir()) for line in file.read_text().splitlines()]
    return [event for event in map(json.loads, lines) if event["event"] == kind]


def test_a_question_that_breaks_three_times_is_set_aside_and_the_others_are_scored(tabular, tmp_path, caplog):
    codec = Breaking(tabular)
    config = config_for(12, part_size=4)
    run = run_score(config, tmp_path / "r", cast=cast_with(tabular, codec), questions=marked(12, 5), effort=SMALL)
    assert codec.calls == 3
    aside = run.skipped[run.skipped.reason.str.startswith("set aside")]
    assert aside.question.tolist() == ["q5"]
    assert "ValueError: no such glyph" in aside.detail.iloc[0]
    assert {*run.scores.question} == {f"q{i}" for i in range(12)} - {"q5"}
    assert len(run.questions) == 12
    assert run.questions.set_index("question").rollouts["q5"] == 0
    assert [event["tries"] for event in events(run, "failed")] == [1, 2, 3]
    assert [event["question"] for event in events(run, "set aside")] == ["q5"]
    found = status(run.path)
    assert (found.state, len(found.set_aside), len(found.failures)) == ("done", 1, 3)
    assert "q5" in caplog.text


def test_what_breaks_twice_and_then_works_leaves_no_trace_in_the_rows(tabular, tmp_path):
    config = config_for(12, part_size=4)
    shaken = run_score(
        config, tmp_path / "a", cast=cast_with(tabular, Breaking(tabular, times=2)), questions=marked(12, 5), effort=SMALL
    )
    sound = run_score(
        config, tmp_path / "b", cast=cast_with(tabular, TabularCodec(tabular)), questions=marked(12, 5), effort=SMALL
    )
    assert len(events(shaken, "failed")) == 2
    assert_same_rows(sound, shaken, tolerance=0)


def test_a_set_aside_question_stays_so_under_a_larger_budget_and_the_rest_of_its_part_grows(tabular, tmp_path):
    config, place = config_for(8, part_size=4), tmp_path / "r"
    first = run_score(config, place, cast=cast_with(tabular, Breaking(tabular)), questions=marked(8, 2), effort=SMALL)
    before = first.questions.set_index("question").targeted_rollouts
    codec, larger = Breaking(tabular), Effort(Budget(64))
    run = run_score(config, place, cast=cast_with(tabular, codec), questions=marked(8, 2), effort=larger)
    assert codec.calls == 0
    assert run.skipped[run.skipped.reason.str.startswith("set aside")].question.tolist() == ["q2"]
    part = next(p for p in run.parts if "q2" in {row["question"] for row in RunFolder(place).rows(p, "questions")})
    beside = [row["question"] for row in RunFolder(place).rows(part, "questions") if row["question"] != "q2"]
    after = run.questions.set_index("question").targeted_rollouts
    assert (after[beside] > before[beside]).any()


def test_what_a_run_holds_is_not_given_up_for_a_fault_under_a_larger_budget(tabular, tmp_path, caplog):
    config, place = config_for(8, part_size=4), tmp_path / "r"
    before = run_score(config, place, cast=cast_with(tabular, TabularCodec(tabular)), questions=marked(8, 2), effort=SMALL)
    held = before.questions.set_index("question").targeted_rollouts
    larger = Effort(Budget(64))
    after = run_score(config, place, cast=cast_with(tabular, Breaking(tabular)), questions=marked(8, 2), effort=larger)
    assert "stays as it was before: ValueError: no such glyph" in caplog.text
    assert after.skipped.empty
    more = after.questions.set_index("question").targeted_rollouts
    fell = [part for part in after.parts if "q2" in {row["question"] for row in RunFolder(place).rows(part, "questions")}]
    beside = {row["question"] for row in RunFolder(place).rows(fell[0], "questions")}
    assert (more[list(beside)] == held[list(beside)]).all()
    others = sorted({*more.index} - beside)
    assert (more[others] > held[others]).any()
    mended = run_score(config, place, cast=cast_with(tabular, TabularCodec(tabular)), questions=marked(8, 2), effort=larger)
    assert (mended.questions.set_index("question").targeted_rollouts[list(beside)] > held[list(beside)]).any()


class Falling:
    """An engine that breaks whenever a batch holds a marked seed, without a word of which question it was."""

    kind = "tabular"

    def __init__(self, inner, falls):
        self.inner, self.falls = inner, falls

    def rest(self) -> None: ...

    def complete(self, requests):
        if self.falls(requests):
            raise RuntimeError("device lost")
        yield from self.inner.complete(requests)


def test_where_nobody_is_named_each_question_is_tried_alone(tabular, tmp_path):
    from gradalign.seeds import seed_of

    config = config_for(8, part_size=4)
    bad = seed_of(config.seed, "q3", "base", 0)
    engine = Falling(tabular, lambda requests: any(bad in request.seeds for request in requests))
    cast = cast_of(tabular)
    cast = type(cast)(type(cast.student)(cast.student.model, engine), cast.teachers, cast.others)
    run = run_score(config, tmp_path / "r", cast=cast, questions=questions(8), effort=SMALL)
    aside = run.skipped[run.skipped.reason.str.startswith("set aside")]
    assert aside.question.tolist() == ["q3"]
    assert "device lost" in aside.detail.iloc[0]
    assert {*run.scores.question} == {f"q{i}" for i in range(8)} - {"q3"}


def test_where_everything_breaks_the_run_ends_with_the_reason(tabular, tmp_path):
    engine = Falling(tabular, lambda requests: True)
    cast = cast_of(tabular)
    cast = type(cast)(type(cast.student)(cast.student.model, engine), cast.teachers, cast.others)
    with pytest.raises(GradalignError, match=r"nothing can be scored.*device lost"):
        run_score(config_for(8, part_size=4), tmp_path / "r", cast=cast, questions=questions(8), effort=SMALL)
    found = status(tmp_path / "r")
    assert found.state == "failed"
    assert "device lost" in found.message


def test_an_engine_that_is_lost_in_mid_run_ends_it_and_what_is_left_is_scored_later(tabular, tmp_path):
    calls = []
    engine = Falling(tabular, lambda requests: bool(calls.append(1)) or len(calls) > 8)
    cast = cast_of(tabular)
    cast = type(cast)(type(cast.student)(cast.student.model, engine), cast.teachers, cast.others)
    config = config_for(24, part_size=4)
    with pytest.raises(GradalignError, match=r"no more can be scored.*device lost"):
        run_score(config, tmp_path / "r", cast=cast, questions=questions(24), effort=SMALL)
    assert 0 < len(RunFolder(tmp_path / "r").finished()) < 6
    run = run_score(config, tmp_path / "r", cast=cast_of(tabular), questions=questions(24), effort=SMALL)
    assert run.scores.question.nunique() == 24
    assert run.skipped.empty


def test_a_part_that_cannot_be_written_ends_the_run(tabular, tmp_path, monkeypatch):
    def broken(self, part, rows, note=None):
        raise ValueError("no such letter")

    monkeypatch.setattr(RunFolder, "write", broken)
    with pytest.raises(GradalignError, match="no such letter"):
        run_score(config_for(8, part_size=4), tmp_path / "r", cast=cast_of(tabular), questions=questions(8), effort=SMALL)


def test_status_tells_running_from_killed_and_forecasts_what_is_left(tmp_path):
    folder = RunFolder(tmp_path / "run")
    with folder.held():
        folder.open({"seed": 0}, {"versions": {}})
        assert status(folder.path).state == "starting"
        under_way = session(folder.path, questions=32, parts=4, to_do=4)
        log = under_way.__enter__()
        for part in range(2):
            log.write("part", part=part, questions=8, scored=8 * (part + 1), rollouts=10, tokens=100)
        found = status(folder.path)
        assert (found.state, found.questions, found.done, found.to_do) == ("running", 16, 2, 4)
        assert found.rate is not None
        assert found.left is not None
        assert not under_way.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert status(folder.path).state == "interrupted"
    log = RunLog(folder.path)
    log.write("began", pid=1, host="x", questions=32, parts=4, to_do=2)
    with log.file.open("a") as file:
        file.write('{"event": "part", "questi')
    found = status(folder.path)
    assert (found.state, found.questions, found.session) == ("killed", 16, 2)
    said = dict(found.sheets()[0].rows)
    assert said["state"].startswith("killed")
    assert said["questions"] == "16 of 32 scored"


def test_a_log_holds_what_the_library_warned_of(tmp_path):
    import logging

    folder = RunFolder(tmp_path / "run")
    with folder.held():
        folder.open({"seed": 0}, {"versions": {}})
        with session(folder.path, questions=1, parts=1, to_do=1):
            logging.getLogger("gradalign.models.memory").warning("out of memory in %s", "sampling")
    assert status(folder.path).warnings == ("out of memory in sampling",)
    assert folder.finished() == {}
    with pytest.raises(GradalignError, match="no finished part"):
        load_run(folder.path)
