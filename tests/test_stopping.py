"""Budgets and their forms, looks and what they may conclude, runs that go on under a larger budget or stop early."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from test_pipeline_exact import cast_of, config_for, questions

from gradalign.api import run_forecast, run_score
from gradalign.findings import Standing, rank, standing_of
from gradalign.pipeline import Budget, Effort, parse_budget
from gradalign.pipeline.stopping import Watch, looks, passes
from gradalign.store import RunFolder, load_run
from gradalign.types import GradalignError


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("64", Budget(64)),
        ("64-rollouts-per-question", Budget(64)),
        ("200k-tokens", Budget(200_000, "tokens")),
        ("1.5M-tokens", Budget(1_500_000, "tokens")),
    ],
)
def test_budgets_are_read_as_written(text, budget):
    assert parse_budget(text) == budget
    assert parse_budget(str(budget)) == budget


@pytest.mark.parametrize("text", ["", "0", "-3", "many", "12-tokens-per-question", "0.5", "1e3"])
def test_other_budgets_are_refused(text):
    with pytest.raises(GradalignError, match="64-rollouts-per-question or 200k-tokens"):
        parse_budget(text)


def test_a_budget_of_tokens_leaves_what_is_not_spent_on_base_rollouts():
    assert Budget(1000, "tokens").allowance(10, 60).limit == 40
    assert Budget(1000, "tokens").allowance(10, 160).limit == 0
    assert Budget(7).allowance(10, 160).limit == 7


def test_looks_are_few_and_known_beforehand():
    assert looks(10) == [10]
    assert looks(64) == [32, 64]
    assert looks(100) == [32, 64, 100]
    assert passes(Effort(Budget(64))) == [Budget(64)]
    assert passes(Effort(Budget(64), decide=0.95)) == [Budget(16), Budget(32), Budget(64)]
    assert passes(Effort(Budget(2), precision=0.1)) == [Budget(1), Budget(2)] or passes(Effort(Budget(2), precision=0.1))[
        -1
    ] == Budget(2)


def standing(dot_MQ: np.ndarray) -> Standing:
    keys = tuple((f"t{m}", "reverse_kl") for m in range(len(dot_MQ)))
    names = tuple(f"q{q}" for q in range(dot_MQ.shape[1]))
    return Standing(keys, names, np.full(dot_MQ.shape, 10.0), dot_MQ, np.zeros(dot_MQ.shape), np.ones(dot_MQ.shape), dot_MQ)


def test_scores_and_influences_are_those_of_their_definitions():
    """The influence is the derivative of the score in the weight of a question, by finite differences."""
    rng = np.random.default_rng(0)
    parts = [rng.random((2, 7)) for _ in range(3)]
    found = Standing((("a", "o"), ("b", "o")), tuple("abcdefg"), parts[0], parts[1], parts[1], parts[2], parts[1])

    def score(by: str, weight: np.ndarray) -> np.ndarray:
        length, dot, norm2 = ((weight * part).sum(1) / weight.sum() for part in parts)
        return dot / np.sqrt(norm2) if by == "gain" else dot / length

    for by in ("drive", "gain", "teacher_advantage"):
        even = np.ones(7)
        np.testing.assert_allclose(found.score(by), score(by, even))
        for q in range(7):
            step = np.where(np.arange(7) == q, 1e-6, 0.0)
            slope = (score(by, even + step) - score(by, even - step)) / 2e-6
            np.testing.assert_allclose(found.influence(by)[:, q], 7 * slope, rtol=1e-5, atol=1e-8)


def test_a_winner_must_beat_every_other_at_a_level_shared_by_all_looks():
    rng = np.random.default_rng(1)
    clear = np.stack([np.full(32, 3.0), np.zeros(32), np.full(32, -1.0)]) + rng.standard_normal((3, 32))
    watch = Watch(Effort(decide=0.95), looks_in_all=5, pairs=3, questions=32)
    assert watch.look("first", standing(clear))
    assert watch.winner == ("t0", "reverse_kl")
    assert watch.dropped == {("t1", "reverse_kl"), ("t2", "reverse_kl")}
    near = np.stack([np.full(32, 0.45), np.zeros(32)]) + rng.standard_normal((2, 32))
    once, often = (Watch(Effort(decide=0.9), looks, 2, 32) for looks in (1, 15))
    assert not often.look("first", standing(near))
    assert once.look("first", standing(near + np.array([[0.5], [0.0]])))


def test_nothing_is_concluded_before_all_can_be_compared_on_enough_questions():
    clear = np.stack([np.full(40, 3.0), np.zeros(40)]) + np.random.default_rng(1).standard_normal((2, 40))
    assert not Watch(Effort(decide=0.95), 1, pairs=3, questions=64).look("a", standing(clear))
    assert not Watch(Effort(decide=0.95), 1, pairs=2, questions=64).look("a", standing(clear[:, :20]))
    assert Watch(Effort(decide=0.95), 1, pairs=2, questions=64).look("a", standing(clear))


def test_a_dropped_pair_that_leads_later_wins_nothing_and_stops_nothing():
    rng = np.random.default_rng(3)
    first = np.stack([np.zeros(40), np.full(40, 3.0)]) + rng.standard_normal((2, 40))
    third = np.vstack([first, np.full(40, 2.9) + rng.standard_normal(40)])
    watch = Watch(Effort(decide=0.95), 2, pairs=3, questions=200)
    assert not watch.look("a", standing(third))
    assert watch.dropped == {("t0", "reverse_kl")}
    assert not watch.look("b", standing(third + np.array([[9.0], [0.0], [0.0]])))
    assert watch.winner is None


def test_looks_are_taken_up_again_and_a_second_time_has_less_of_alpha():
    rng = np.random.default_rng(4)
    near = np.stack([np.full(40, 0.62), np.zeros(40)]) + rng.standard_normal((2, 40))
    effort = Effort(Budget(8), decide=0.9)
    first = Watch(effort, 3, 2, 40)
    first.look("a", standing(near))
    kept = first.verdict(standing(near), (0, 0), ended=False)
    again = Watch(effort, 3, 2, 40, kept)
    again.look("a", standing(-near))
    assert again.taken == first.taken
    asked = Watch(Effort(Budget(99), decide=0.9), 3, 2, 40, kept | {"ended": True})
    assert asked.time == first.time + 1
    assert asked.taken == {}


def test_repeated_looks_at_a_tie_rarely_name_a_winner():
    rng = np.random.default_rng(2)
    named = 0
    for _ in range(400):
        draws, watch = rng.exponential(size=(3, 128)), Watch(Effort(decide=0.9), 3, 3, 128)
        named += any(watch.look(str(count), standing(draws[:, :count])) for count in looks(128))
    assert named <= 0.1 * 400


def test_precision_stops_at_the_wanted_half_width():
    wide = standing(np.random.default_rng(0).standard_normal((2, 50)))
    low, high = wide.interval("gain")
    half = float(((high - low) / 2).max())
    assert not Watch(Effort(precision=half * 0.99), 1, 2, 50).look("a", wide)
    assert Watch(Effort(precision=half * 1.01), 1, 2, 50).look("a", wide)


def test_standing_uses_questions_that_all_teachers_share():
    rows = pd.DataFrame(
        [(q, t, "o", 4.0, 1.0, 0.1, 1.0, 0.5) for t, qs in {"a": "xyz", "b": "yz"}.items() for q in qs],
        columns=["question", "teacher", "objective", "length", "dot", "dot_se", "d_norm2", "advantage"],
    )
    found = standing_of(rows, ["a", "b", "absent"], ["o"])
    assert found.questions == ("y", "z")
    assert found.keys == (("a", "o"), ("b", "o"))


def score(tabular, folder, effort: Effort, count: int = 24):
    """Two objectives that differ: `sampled_kl` has the drive of `reverse_kl`, and nothing can decide between those."""
    settings = config_for(count, part_size=8, teacher_rollouts=4)
    config = replace(settings, objectives=("reverse_kl", "forward_kl"))
    return run_score(config, folder, cast=cast_of(tabular), questions=questions(count), effort=effort)


def forced(run) -> set[tuple]:
    rows = run.rollouts[run.rollouts.purpose == "targeted"]
    return {(r.question, r.node, r.token, tuple(r.tokens), tuple(r.logprobs)) for r in rows.itertuples()}


def test_a_larger_budget_goes_on_and_throws_nothing_away(tabular, tmp_path):
    small = score(tabular, tmp_path / "r", Effort(Budget(16)))
    before, base = forced(small), small.rollouts[small.rollouts.purpose != "targeted"].tokens.map(tuple).tolist()
    tokens = small.questions.sampled_tokens.sum()
    larger = score(tabular, tmp_path / "r", Effort(Budget(96)))
    assert (small.rollouts.purpose == "teacher").sum() == 24 * 3 * 4
    assert forced(larger) > before
    assert larger.rollouts[larger.rollouts.purpose != "targeted"].tokens.map(tuple).tolist() == base
    assert larger.questions.sampled_tokens.sum() > tokens
    again = score(tabular, tmp_path / "r", Effort(Budget(96)))
    assert forced(again) == forced(larger)
    files = list((tmp_path / "r" / "rollouts").glob("*.parquet"))
    assert len(files) == 3, "files of the smaller budget are gone"
    fewer = score(tabular, tmp_path / "r", Effort(Budget(8)))
    assert forced(fewer) == forced(larger)


@pytest.mark.slow
def test_gone_on_with_it_scores_as_well_as_at_once(tabular, tmp_path):
    score(tabular, tmp_path / "grown", Effort(Budget(16)), 120)
    grown = rank(score(tabular, tmp_path / "grown", Effort(Budget(96)), 120)).frame.set_index(["teacher", "objective"])
    once = rank(score(tabular, tmp_path / "once", Effort(Budget(96)), 120)).frame.set_index(["teacher", "objective"])
    width = once.drive_high - once.drive_low
    assert ((grown.drive - once.drive).abs() <= width).all()
    np.testing.assert_allclose((grown.drive_high - grown.drive_low)[width > 0], width[width > 0], rtol=0.5)


def test_a_pass_cut_short_leaves_the_earlier_one_whole(tabular, tmp_path, monkeypatch):
    score(tabular, tmp_path / "r", Effort(Budget(16)))
    rows = load_run(tmp_path / "r").scores
    real, written = RunFolder._place, []

    def failing(self, target, content):
        written.append(target)
        if len(written) == 5:
            raise KeyboardInterrupt
        real(self, target, content)

    with monkeypatch.context() as patched:
        patched.setattr(RunFolder, "_place", failing)
        with pytest.raises(KeyboardInterrupt):
            score(tabular, tmp_path / "r", Effort(Budget(96)))
    pd.testing.assert_frame_equal(load_run(tmp_path / "r").scores, rows)
    assert (score(tabular, tmp_path / "r", Effort(Budget(96))).questions.targeted_rollouts > 16).any()


def test_tokens_are_spent_to_about_the_budget(tabular, tmp_path):
    run = score(tabular, tmp_path / "r", Effort(Budget(6000, "tokens")), 30)
    assert 0.7 * 6000 < run.questions.sampled_tokens.sum() < 1.1 * 6000


def test_deciding_stops_early_says_so_and_can_go_on(tabular, tmp_path):
    run = score(tabular, tmp_path / "r", Effort(Budget(64), decide=0.95), 96)
    assert run.outcome["winner"] is not None
    assert run.outcome["winner"][0] == "model:better"
    assert len(run.questions) < 96
    assert any("were not needed" in note for note in rank(run).notes)
    whole = score(tabular, tmp_path / "r", Effort(Budget(64)), 96)
    assert len(whole.questions) == 96
    assert whole.outcome == {}


def test_another_unit_of_budget_is_refused(tabular, tmp_path):
    score(tabular, tmp_path / "r", Effort(Budget(8)))
    with pytest.raises(GradalignError, match="same unit"):
        score(tabular, tmp_path / "r", Effort(Budget(9000, "tokens")))


def test_files_that_a_killed_pass_left_are_swept(tabular, tmp_path, monkeypatch):
    score(tabular, tmp_path / "r", Effort(Budget(8)))
    with monkeypatch.context() as patched:
        patched.setattr(RunFolder, "_give_way", lambda self, part, before: None)
        rows = len(score(tabular, tmp_path / "r", Effort(Budget(64))).scores)
    assert len(pd.read_parquet(tmp_path / "r" / "scores")) == 2 * rows
    score(tabular, tmp_path / "r", Effort(Budget(64)))
    assert len(pd.read_parquet(tmp_path / "r" / "scores")) == rows


def test_an_unreachable_precision_spends_the_budget_and_says_what_is_left(tabular, tmp_path):
    run = score(tabular, tmp_path / "r", Effort(Budget(16), precision=1e-9), 16)
    assert run.outcome["stopped"] == ""
    assert run.outcome["gain_half_width"] > run.outcome["gain_half_width_left"] >= 0
    assert len(run.questions) == 16


def test_a_forecast_is_near_what_a_run_takes_and_keeps_nothing(tabular, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = config_for(40)
    found = run_forecast(config, cast=cast_of(tabular), questions=questions(40), effort=Effort(Budget(32)))
    assert not list(tmp_path.iterdir())
    run = run_score(config, tmp_path / "r", cast=cast_of(tabular), questions=questions(40), effort=Effort(Budget(32)))
    assert found.base_rollouts == run.questions.rollouts.sum()
    assert found.questions == 40
    assert found.seconds > 0
    assert 0.5 < found.tokens / run.questions.sampled_tokens.sum() < 1.5
    assert 0.5 < found.targeted_rollouts / run.questions.targeted_rollouts.sum() < 1.5
