"""Questions left out by pass rate: by rollouts of their own, once, counted, and the same whatever the parts or the passes."""

import re

import numpy as np
import pytest
from test_pipeline_exact import cast_of, config_for, questions
from test_resume import assert_same_rows

from gradalign.api import configure, run_score
from gradalign.findings import rank
from gradalign.pipeline import Budget, Effort, RunConfig
from gradalign.pipeline.pass_rates import parse_filter
from gradalign.report import write_report
from gradalign.seeds import seed_of
from gradalign.types import GradalignError, Question

SMALL = Effort(Budget(16))
KEPT = "pass_rate:0.3-0.7"


class Asked:
    """The engine that it is given, and the seeds that were asked of it."""

    kind = "tabular"

    def __init__(self, inner):
        self.inner, self.seeds = inner, []

    def rest(self) -> None: ...

    def complete(self, requests):
        self.seeds += [seed for request in requests for seed in request.seeds]
        yield from self.inner.complete(requests)


def scored(tabular, place, effort=SMALL, count=12, asked=None, **changes):
    cast = cast_of(tabular)
    cast = type(cast)(type(cast.student)(cast.student.model, asked or Asked(tabular)), cast.teachers, cast.others)
    settings = {"part_size": 4, "filter": KEPT, "filter_rollouts": 6} | changes
    return run_score(config_for(count, **settings), place, cast=cast, questions=questions(count), effort=effort)


def filter_seeds(count: int, rollouts: int = 6) -> dict[str, set[int]]:
    return {f"q{i}": {seed_of(0, f"q{i}", "filter", r) for r in range(rollouts)} for i in range(count)}


def test_questions_outside_are_skipped_with_what_was_counted_and_the_others_have_the_rows_of_a_run_without_a_filter(
    tabular, tmp_path
):
    asked = Asked(tabular)
    run = scored(tabular, tmp_path / "r", asked=asked)
    skipped = run.skipped.set_index("question")
    assert 0 < len(skipped) < 12
    assert {*skipped.reason} == {"pass rate outside 0.3-0.7"}
    right = skipped.detail.str.extract(r"^(\d) of 6 right$")[0].astype(int)
    assert ((right / 6 < 0.3) | (right / 6 > 0.7)).all()
    table = run.questions.set_index("question")
    assert len(table) == 12
    assert (table.rollouts[skipped.index] == 0).all()
    assert (table.sampled_tokens[skipped.index] > 0).all()
    kept = sorted({*table.index} - {*skipped.index})
    assert (table.rollouts[kept] == 16).all()
    assert {*run.scores.question} == {*kept}
    plain = scored(tabular, tmp_path / "p", filter=None)
    for name in ("rollouts",):
        mine, whole = run.frame(name), plain.frame(name)
        base = [frame[(frame.purpose == "base") & frame.question.isin(kept)] for frame in (mine, whole)]
        assert base[0].tokens.map(tuple).tolist() == base[1].tokens.map(tuple).tolist()
    seeds = filter_seeds(12)
    assert {*asked.seeds} >= {seed for mine in seeds.values() for seed in mine}
    assert not {*asked.seeds} & {seed_of(0, question, "base", 0) for question in skipped.index}
    more = table.sampled_tokens - plain.questions.set_index("question").sampled_tokens
    assert (more[kept] != 0).any()


def test_parts_do_not_matter_to_who_is_left_out(tabular, tmp_path):
    one, other = (scored(tabular, tmp_path / str(size), part_size=size) for size in (3, 12))
    assert {*one.skipped.question} == {*other.skipped.question}
    columns = ["question", "reason", "detail"]
    assert (
        one.skipped[columns].sort_values("question").values.tolist()
        == other.skipped[columns].sort_values("question").values.tolist()
    )


def test_a_larger_budget_asks_the_filter_nothing_again(tabular, tmp_path):
    asked = Asked(tabular)
    first = scored(tabular, tmp_path / "r")
    tokens = first.questions.set_index("question").sampled_tokens
    run = scored(tabular, tmp_path / "r", effort=Effort(Budget(64)), asked=asked)
    again = {seed for mine in filter_seeds(12).values() for seed in mine} & {*asked.seeds}
    assert not again
    assert {*run.skipped.question} == {*first.skipped.question}
    assert run.skipped.detail.tolist() == first.skipped.detail.tolist()
    after = run.questions.set_index("question").sampled_tokens
    assert (after[run.skipped.question] == tokens[run.skipped.question]).all()
    assert (after >= tokens).all()
    straight = scored(tabular, tmp_path / "s", effort=Effort(Budget(64)))
    assert {*straight.skipped.question} == {*run.skipped.question}


def test_an_interrupted_run_with_a_filter_ends_with_the_same_rows(tabular, tmp_path):
    whole = scored(tabular, tmp_path / "w")
    scored(tabular, tmp_path / "c")
    (tmp_path / "c" / "finished" / "part-00001.json").unlink()
    assert_same_rows(whole, scored(tabular, tmp_path / "c"), tolerance=0)


@pytest.mark.slow
def test_choosing_by_other_rollouts_leaves_the_pass_rate_of_those_kept_unbiased(tabular, tmp_path):
    """All questions are alike, so whoever is kept has the same true pass rate; by their scored rollouts it would be drawn to the middle."""
    truth = float(np.dot(tabular.probabilities(()), tabular.success(())))
    low = f"pass_rate:{min(truth + 0.1, 0.9):.2f}-1"
    run = scored(tabular, tmp_path / "r", count=80, filter=low, part_size=40, filter_rollouts=4)
    table = run.questions
    rates = table.pass_rate[table.rollouts > 0].astype(float)
    assert 10 < len(rates) < 75
    assert abs(rates.mean() - truth) < 4 * np.sqrt(truth * (1 - truth) / (16 * len(rates)))


def test_where_all_are_left_out_every_reader_says_so_in_a_line(tabular, tmp_path):
    run = scored(tabular, tmp_path / "r", filter="pass_rate:0.99-1", filter_rollouts=16)
    assert len(run.skipped) == len(run.questions) == 12
    with pytest.raises(
        GradalignError, match=r"no question could be scored .*12 questions skipped, pass rate outside 0\.99-1"
    ) as caught:
        rank(run)
    assert "\n" not in str(caught.value)
    assert "pass rate outside 0.99-1" in write_report(run).path.read_text()


HOSTILE = (
    "../../x",
    "/etc/passwd",
    "C:\\x",
    "a/b",
    "..",
    "\x1b[31mred",
    "a\nb",
    "con",
    "x" * 256,
    "\u202ex",
    "-rf",
    "~",
    "%2e%2e",
)


def test_ids_that_look_like_paths_name_no_file(tabular, tmp_path):
    """Whatever a question is called, nothing is written outside the run, and no file of the run is called after it."""
    asked = [Question(name, "which?", "yes", "boolean") for name in HOSTILE]
    place = tmp_path / "outer" / "run"
    run = run_score(config_for(len(asked), part_size=4), place, cast=cast_of(tabular), questions=asked, effort=SMALL)
    assert {*run.questions.question} == {*HOSTILE}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["outer"]
    assert sorted(path.name for path in place.parent.iterdir()) == ["run"]
    ours = re.compile(r"\w+/part-\d{5}\.(parquet|json)|(run|outcome)\.json|\.lock|log/[\w.-]+|\.partial/?")
    written = [path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file()]
    assert len(written) > 10
    assert [name for name in written if not ours.fullmatch(name)] == []
    write_report(run)
    assert sorted(path.name for path in place.parent.iterdir()) == ["run"]


@pytest.mark.parametrize(
    "text", ["pass_rate", "pass_rate:0.9-0.1", "pass_rate:0-2", "length:1-2", "pass_rate:0.1", "pass_rate:-1-1", ""]
)
def test_filters_that_cannot_be_meant_are_refused(text):
    with pytest.raises(GradalignError, match="write pass_rate:LOW-HIGH"):
        configure(filter=text)


def test_both_ends_of_a_filter_belong_to_it():
    found = parse_filter("pass_rate:0.25-.75")
    assert (found.low, found.high, found.text) == (0.25, 0.75, "0.25-.75")


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ({"sample": 0}, "sample is 0; it must be at least 1"),
        ({"filter_rollouts": 0}, "filter_rollouts is 0"),
        ({"columns": ("quest=x",)}, "did you mean question"),
    ],
)
def test_settings_that_make_no_sense_are_refused(setting, says):
    with pytest.raises(GradalignError, match=says):
        configure(**setting)


def test_a_built_in_set_is_cut_to_its_first_questions_unless_a_sample_is_asked_for():
    assert configure().limit == 64
    assert configure(sample=10).limit is None
    assert configure(columns={"question": "Q"}).columns == ("question=Q",)
    assert isinstance(configure(split="heldout"), RunConfig)
