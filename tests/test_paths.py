"""Correct against incorrect paths: the table by hand, and tests that hold their level where nodes of a question are alike."""

import itertools
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_ind
from test_pipeline_exact import cast_of, config_for, questions

from gradalign.api import run_score
from gradalign.findings import compare_paths
from gradalign.findings.paths import compare_rows
from gradalign.inference import sign_flip_p
from gradalign.pipeline import Budget, Effort
from gradalign.types import GradalignError


@pytest.fixture(scope="module")
def run(tabular, tmp_path_factory):
    config = replace(config_for(30), objectives=("reverse_kl", "forward_kl"))
    folder = tmp_path_factory.mktemp("run") / "r"
    return run_score(config, folder, cast=cast_of(tabular), questions=questions(30), effort=Effort(Budget(128)))


def test_the_table_by_hand(run):
    """Row by row, question by question, for one teacher and objective."""
    found = compare_paths(run, draws=500)
    row = found.frame.set_index(["teacher", "objective", "cosine"]).loc["model:worse", "forward_kl"]
    nodes = run.nodes.set_index(["question", "node"])
    mine = run.alignment[(run.alignment.teacher == "model:worse") & (run.alignment.objective == "forward_kl")]
    sums: dict[tuple[str, str], np.ndarray] = {}
    for each in mine.itertuples():
        node = nodes.loc[each.question, each.node]
        for path, share in (("correct", 1 - node.visits_wrong / node.visits), ("incorrect", node.visits_wrong / node.visits)):
            w = each.weight * share
            useful = bool(node.informative) and not np.isnan(each.alignment)
            lengths = np.sqrt(node.g_norm2_visited_raw * each.d_norm2_visited)
            add = np.array([w * each.alignment if useful else 0, w if useful else 0, w * each.dot_visited, w * lengths])
            sums[path, each.question] = sums.get((path, each.question), np.zeros(4)) + np.nan_to_num(add)
    for path in ("correct", "incorrect"):
        total = sum(part for (kind, _), part in sums.items() if kind == path)
        assert row.loc["mean", path] == pytest.approx(total[0] / total[1])
        assert row.loc["weighted", path] == pytest.approx(total[2] / total[3])
    apart = [
        sums["incorrect", q][0] / sums["incorrect", q][1] - sums["correct", q][0] / sums["correct", q][1]
        for q in run.questions.question
        if ("correct", q) in sums and sums["correct", q][1] > 0 and sums["incorrect", q][1] > 0
    ]
    assert row.loc["mean", "questions"] == len(apart)
    assert row.loc["mean", "paired"] == pytest.approx(np.mean(apart))
    assert row.loc["mean", "effect"] == pytest.approx(np.mean(apart) / np.std(apart, ddof=1))
    assert row.loc["mean", "paired_low"] < np.mean(apart) < row.loc["mean", "paired_high"]
    assert row.loc["pooled", "difference_low"] < row.loc["pooled", "difference"] < row.loc["pooled", "difference_high"]
    assert (found.frame.p_adjusted.dropna() >= found.frame.p.dropna() - 1e-12).all()
    assert found.one_kind == run.questions.pass_rate.isin([0, 1]).sum()
    assert found.frame[found.frame.cosine == "pooled"].p.isna().all()


def test_sign_flips_agree_with_all_of_them():
    rng = np.random.default_rng(0)
    difference = rng.standard_normal((3, 8)) + 0.4
    difference[2, :3] = np.nan
    found = sign_flip_p(difference, draws=40_000)
    for row, p in zip(difference, found, strict=True):
        known = row[np.isfinite(row)]
        every = [abs(np.dot(signs, known)) for signs in itertools.product((1, -1), repeat=len(known))]
        assert p == pytest.approx(np.mean(np.array(every) >= abs(known.sum()) - 1e-9), abs=0.012)
    assert np.isnan(sign_flip_p(np.array([[1.0, np.nan]]))).all()


def test_without_a_difference_the_test_by_question_keeps_its_level_and_that_by_node_does_not():
    """2,000 simulations of 40 questions of skewed size, whose nodes share what is peculiar to their question and path."""
    rng = np.random.default_rng(1)
    by_question, by_node = [], []
    for _ in range(2000):
        apart, kinds = [], ([], [])
        for _ in range(40):
            values = [rng.standard_normal() + rng.standard_normal(rng.integers(2, 20)) for _ in range(2)]
            apart.append(values[1].mean() - values[0].mean())
            for kind, value in zip(kinds, values, strict=True):
                kind.append(value)
        by_question.append(apart)
        by_node.append(ttest_ind(np.concatenate(kinds[0]), np.concatenate(kinds[1]), equal_var=False).pvalue)
    rejected = (sign_flip_p(np.array(by_question), draws=2000) < 0.05).mean()
    assert 0.035 <= rejected <= 0.065
    assert np.mean(np.array(by_node) < 0.05) > 0.3


def test_questions_with_one_kind_of_path_are_counted_and_top_nodes_refused(tabular, tmp_path, run):
    few = run_score(
        config_for(6, rollouts=2, node_selection="top"), tmp_path / "r", cast=cast_of(tabular), questions=questions(6)
    )
    with pytest.raises(GradalignError, match="top nodes"):
        compare_paths(few)
    with pytest.raises(GradalignError, match="visited or full"):
        compare_paths(run, support="all")
    small = run_score(config_for(6, rollouts=2), tmp_path / "s", cast=cast_of(tabular), questions=questions(6))
    found = compare_paths(small, draws=100)
    assert found.one_kind == small.questions.pass_rate.isin([0, 1]).sum() > 0
    assert isinstance(found.frame, pd.DataFrame)


def test_few_questions_with_both_paths_give_no_interval():
    """Twenty questions, three of which have both kinds of path: the mean of their differences, and no interval."""
    rng = np.random.default_rng(0)
    rows = pd.DataFrame({"question": np.repeat([f"q{i}" for i in range(20)], 4), "wrong": 0.0, "weight": 1.0, "informative": True,
                         "cos": rng.uniform(-1, 1, 80)})  # fmt: skip
    rows.loc[rows["question"].isin(["q0", "q1", "q2"]) & (rows.index % 2 == 0), "wrong"] = 1.0
    rows = rows.assign(cos_dot=rows["cos"], cos_d2=1.0, g_norm2=1.0, g_norm2_raw=1.0, teacher="t", objective="o")
    frame, _ = compare_rows(rows, draws=200, flips=100, seed=0)
    mean = frame.set_index("cosine").loc["mean"]
    assert mean.questions == 3
    assert np.isfinite([mean.paired, mean.p]).all()
    assert np.isnan([mean.paired_low, mean.paired_high, mean.difference_low, mean.difference_high]).all()
