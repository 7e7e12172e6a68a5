"""The report without a browser: what it holds, how large it is, and that no run is too odd for it."""

import base64
import gzip
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hostile import WORDS, hostile_run
from test_pipeline_exact import cast_of, config_for, questions

import gradalign
from gradalign.api import run_score
from gradalign.findings import compare_runs, rank
from gradalign.findings.tokens import QuestionTokens, TokenRollout, question_tokens
from gradalign.pipeline import Cast
from gradalign.report import figures, write_report
from gradalign.report.explorer import _packet, pack_tokens
from gradalign.types import GradalignError, TeacherSpec

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    teachers = ["ctx:correct_demo", "ctx:answer"]
    folder = tmp_path_factory.mktemp("run") / "r"
    return gradalign.score(teachers=teachers, objectives=["reverse_kl", "dr_grpo"], limit=8, rollouts=16, budget=48, out=folder)


def opened(packet: str) -> dict:
    return json.loads(gzip.decompress(base64.b64decode(packet)))


def test_packets_hold_the_numbers_of_the_rows(run):
    explorer = pack_tokens(run)
    listed = {question["id"]: i for i, question in enumerate(explorer.index["questions"])}
    assert explorer.index["pairs"] == [
        ("ctx:correct_demo", "reverse_kl"), ("ctx:answer", "reverse_kl"), ("rewards", "dr_grpo"),
    ]  # fmt: skip
    assert explorer.index["teachers"] == ["ctx:correct_demo", "ctx:answer"]
    for view in question_tokens(run, list(listed)):
        data = opened(explorer.packets[listed[view.question["question"]]])
        assert 0 <= data["first"] < len(data["rollouts"])
        for shown in data["rollouts"]:
            rollout = next(r for r in view.rollouts if r.number == shown["number"])
            assert [data["nodes"]["node"][i] for i in shown["nodes"]] == rollout.nodes.tolist()
            assert shown["pieces"] == list(rollout.pieces)
            for name, pair in (("dot", 0), ("alignment", 1)):
                held = [data["pairs"][pair][name][i] for i in shown["nodes"]]
                wanted = view.values(rollout, name, *explorer.index["pairs"][pair])
                np.testing.assert_allclose(np.array(held, dtype=float), wanted, rtol=1e-4)
            held = [data["teachers"][1]["reverse_kl"][i] for i in shown["nodes"]]
            np.testing.assert_allclose(held, view.values(rollout, "reverse_kl", "ctx:answer", "reverse_kl"), rtol=6e-3)
        for place, tried in data["tried"].items():
            node = data["nodes"]["node"][int(place)]
            rows = view.branches.loc[node].sort_values("student_prob", ascending=False)
            assert tried["token"] == rows.index.tolist()
            np.testing.assert_allclose(tried["success"], rows["success"], rtol=1e-4)
            told = view.candidates(node, "ctx:answer", "reverse_kl")
            np.testing.assert_allclose(np.array(tried["d"][1], dtype=float), told["direction"], rtol=1e-4)
            np.testing.assert_allclose(np.array(tried["tau"][1], dtype=float), told["teacher_prob"], rtol=1e-4)


def test_rollouts_without_an_answer_have_none(tmp_path):
    run = gradalign.score(teachers=["ctx:answer"], limit=2, rollouts=8, budget=16, max_tokens=14, out=tmp_path / "r")
    stored = run.frame("rollouts", ["purpose", "read_answer"]).query("purpose == 'base'")["read_answer"]
    assert 0 < stored.isna().sum() < len(stored)
    shown = [rollout["answer"] for packet in pack_tokens(run).packets for rollout in opened(packet)["rollouts"]]
    assert sorted(answer for answer in shown if answer is not None) == sorted(stored.dropna())
    assert shown.count(None) == stored.isna().sum()


def test_the_page_is_one_file_with_every_section(run):
    made = write_report(run, draws=100)
    page = made.path.read_text()
    assert made.size == len(page.encode()) < 2_000_000
    assert re.findall(r"(?:src|href)=\"(?!#|data:image/png)", page) == []
    assert 'http-equiv="Content-Security-Policy" content="default-src \'none\'' in page
    for title in (
        "In short",
        "Ranking",
        "Correct and incorrect paths",
        "Depth",
        "Divergence",
        "Difficulty",
        "Pass rates",
        "Contexts",
        "Tokens",
    ):
        assert f">{title}</h2>" in page
    assert len({*re.findall(r'id="([^"]+)"', page)}) == len(re.findall(r' id="([^"]+)"', page))
    assert not list(made.path.parent.glob(".*.partial"))


def test_hostile_text_never_stands_as_markup(tabular, tmp_path):
    made = write_report(hostile_run(tabular, tmp_path / "r"), draws=100)
    page = made.path.read_text()
    for word in (*WORDS, "<svg onload", "</script><b>", "</textarea>"):
        assert word not in page
    assert not {*page} & {*"\u202e\u2066\x1b\x07"}


def test_a_run_of_which_nothing_was_scored_says_so_everywhere(tmp_path):
    settings = {"limit": 4, "rollouts": 4, "budget": 1, "teachers": ["ctx:none"]}
    run = gradalign.score(out=tmp_path / "r", **settings)
    page = write_report(run, draws=100).path.read_text()
    assert "Not available for this run" in page
    if not run.nodes.scored.any():
        with pytest.raises(GradalignError, match="no scored node"):
            gradalign.alignment_findings(run)


def test_top_nodes_are_reported_but_not_ranked(tabular, tmp_path):
    run = run_score(config_for(4, node_selection="top"), tmp_path / "r", cast=cast_of(tabular), questions=questions(4))
    page = write_report(run, draws=100).path.read_text()
    assert "took the top nodes" in page
    assert 'class="packet"' in page


def test_rewards_alone_are_refused_and_beside_a_teacher_leave_the_figures_to_it(run, tmp_path):
    with pytest.raises(GradalignError, match="looks at rewards alone"):
        gradalign.score(objectives=["dr_grpo"], limit=4, out=tmp_path / "r")
    page = write_report(run, tmp_path / "page.html", draws=100).path.read_text()
    assert "Mean cosine by depth in tokens, reverse_kl" in page


def test_more_teachers_than_colours_are_counted(tabular, tmp_path):
    names = [f"model:t{i}" for i in range(figures.MOST + 2)]
    base = cast_of(tabular)
    others = {name.removeprefix("model:"): base.others["better"] for name in names}
    cast = Cast(base.student, tuple(TeacherSpec(name, "none", name.removeprefix("model:")) for name in names), others)
    config = replace(config_for(6), teachers=tuple(names), objectives=("reverse_kl",))
    run = run_score(config, tmp_path / "r", cast=cast, questions=questions(6))
    page = write_report(run, draws=100).path.read_text()
    assert f"{figures.MOST} of {len(names)} teachers are drawn, best first" in page


def long_view(count: int, length: int, teachers: list[str]) -> QuestionTokens:
    """A question with rollouts of their own, right and wrong in turn, and a scored node in each."""
    nodes = np.arange(count * length)
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({
        "depth": nodes % length, "visits": 1, "inclusion": 0.1, "scored": nodes % length == 3,
        "student_entropy": rng.exponential(1, len(nodes)), "value": np.nan, "informative": None, "g_norm2": np.nan,
    }, index=pd.Index(nodes, name="node"))  # fmt: skip
    keys = pd.MultiIndex.from_product([nodes, teachers], names=["node", "teacher"])
    told = pd.DataFrame({name: rng.exponential(1, len(keys)) for name in ("reverse_kl", "forward_kl", "advantage")}, index=keys)
    empty = pd.MultiIndex.from_arrays([[], [], []], names=["node", "teacher", "objective"])
    pairs = pd.DataFrame(columns=["alignment", "dot", "dot_se"], index=empty, dtype=float)
    directions = pd.DataFrame(columns=["token", "teacher_prob", "direction"], index=empty, dtype=float)
    branches = pd.DataFrame(
        columns=["token_text", "student_prob", "n", "success", "lower", "upper", "ideal"],
        index=pd.MultiIndex.from_arrays([[], []], names=["node", "token"]), dtype=float,
    )  # fmt: skip
    rollouts = [
        TokenRollout(i, float(i % 2), "right" if i % 2 else "wrong", "stop", None, [" word"] * length, np.zeros(length, dtype=int),
                     nodes[i * length : (i + 1) * length])
        for i in range(count)
    ]  # fmt: skip
    return QuestionTokens({"prompt": "?", "answer": "!"}, {}, rollouts, frame, told, pairs, branches, directions)


def test_long_rollouts_are_left_out_until_the_packet_fits():
    teachers = ["a", "b", "c"]
    view = long_view(6, 400, teachers)
    whole, shown = _packet(view, teachers, [(t, "reverse_kl") for t in teachers], 10**9, wrong_first=True)
    assert shown == 6
    part, fewer = _packet(view, teachers, [(t, "reverse_kl") for t in teachers], len(whole) // 3, wrong_first=True)
    assert 1 <= fewer < 6
    assert len(part) <= len(whole) // 3
    for wrong_first in (True, False):
        one, count = _packet(view, teachers, [], 1, wrong_first)
        assert count == 1
        assert opened(one)["rollouts"][0]["outcome"] == ("wrong" if wrong_first else "right")


def test_a_large_run_keeps_to_its_size_and_says_what_it_shows(tmp_path):
    from synthetic import write_run

    run = write_run(tmp_path / "r", 30, 12, rollouts=8, length=24)
    whole = pack_tokens(run)
    assert whole.questions == len(whole.packets) == 30
    assert whole.whole
    some = pack_tokens(run, most_bytes=sum(map(len, whole.packets)) // 4)
    assert sum(map(len, some.packets)) <= sum(map(len, whole.packets)) // 4
    assert not some.whole
    made = write_report(run, token_questions=5, draws=100)
    assert made.token_questions == 5
    assert "Tokens of 5 of 30 questions are here, taken at random" in made.path.read_text()


def test_two_runs_are_compared_on_the_questions_that_they_share(tabular, tmp_path):
    one = run_score(config_for(20), tmp_path / "one", cast=cast_of(tabular), questions=questions(20))
    two = run_score(config_for(20, seed=1), tmp_path / "two", cast=cast_of(tabular), questions=questions(12))
    found = compare_runs(one, two, draws=200)
    assert found.shared == 12
    assert found.settings.set_index("setting").loc["seed"].tolist() == [0, 1]
    rows = found.frame.set_index(["teacher", "objective"])
    frame = rank(two, draws=200).frame.set_index(["teacher", "objective"])
    key = ("model:better", "reverse_kl")
    assert rows.loc[key, "other"] == pytest.approx(frame.loc[key, found.by])
    sums = []
    for each in (one, two):
        scores = each.scores[(each.scores.teacher == key[0]) & (each.scores.objective == key[1])].set_index("question")
        mine = scores.loc[[f"q{i}" for i in range(12)]]
        sums.append(mine["dot"].sum() / mine.length.sum())
    assert rows.loc[key, "difference"] == pytest.approx(sums[1] - sums[0])
    assert rows.loc[key, "difference_low"] < rows.loc[key, "difference"] < rows.loc[key, "difference_high"]
    assert "paired over 12 questions" in found._repr_html_()
    apart = run_score(
        config_for(5), tmp_path / "three", cast=cast_of(tabular), questions=[q for q in questions(30) if int(q.id[1:]) >= 25]
    )
    assert compare_runs(one, apart, draws=200).frame["difference"].isna().all()
