"""What alignment goes with: correlations against scipy and slow definitions, groups and selection against their rows by hand."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import rankdata, spearmanr
from test_pipeline_exact import cast_of, config_for, questions

from gradalign.api import run_score
from gradalign.findings import alignment_findings
from gradalign.findings.associations import across_questions, over_nodes, weighted_ranks, within_questions
from gradalign.inference import bootstrap_counts
from gradalign.pipeline import Budget, Effort
from gradalign.types import GradalignError


def nodes(rng: np.random.Generator, questions: int = 12, each: int = 15) -> tuple[np.ndarray, ...]:
    question = np.repeat(np.arange(questions), each)
    x = rng.integers(0, 6, len(question)) + question / 3
    return x.astype(float), x + rng.normal(0, 3, len(question)) - question, rng.uniform(0.5, 2, len(question)), question


def test_ranks_of_equal_weights_are_those_of_scipy():
    rng = np.random.default_rng(0)
    x, _, _, question = nodes(rng)
    found = weighted_ranks(x, np.ones(len(x)), question)
    for q in range(12):
        at = question == q
        np.testing.assert_allclose(found[at], (rankdata(x[at]) - 0.5) / at.sum())


def test_whole_weights_are_repetitions():
    rng = np.random.default_rng(1)
    x, y, _, question = nodes(rng)
    weight = rng.integers(1, 4, len(x))
    counts = np.ones((3, 12))
    for correlate in (within_questions, over_nodes, across_questions):
        once = correlate(x, y, weight.astype(float), question, counts).value
        again = [np.repeat(values, weight) for values in (x, y, question)]
        assert once == pytest.approx(correlate(*again[:2], np.ones(weight.sum()), again[2], counts).value)


def test_correlations_are_spearmans():
    rng = np.random.default_rng(2)
    x, y, _, question = nodes(rng)
    counts, one = np.ones((3, 12)), np.ones(len(x))
    assert over_nodes(x, y, one, question, counts).value == pytest.approx(spearmanr(x, y).statistic)
    means = [np.bincount(question, values) / 15 for values in (x, y)]
    assert across_questions(x, y, one, question, counts).value == pytest.approx(spearmanr(*means).statistic)
    single = question == 3
    alone = within_questions(x[single], y[single], one[single], question[single], counts)
    assert alone.value == pytest.approx(spearmanr(x[single], y[single]).statistic)
    assert np.isnan(alone.low)  # one question says nothing of how questions differ


def test_what_differs_between_questions_is_out_of_the_correlation_within_them():
    rng = np.random.default_rng(3)
    question = np.repeat(np.arange(200), 10)
    x, y = (10.0 * question + rng.standard_normal(2000) for _ in range(2))
    counts, one = bootstrap_counts(200, 400, 0).astype(float), np.ones(2000)
    within = within_questions(x, y, one, question, counts)
    assert within.low < 0 < within.high
    assert abs(within.value) < 0.1
    assert across_questions(x, y, one, question, counts).value > 0.99


def test_intervals_cover_where_questions_differ():
    """Within a question y = slope of the question * x + noise; the mean correlation is known from many questions."""
    rng = np.random.default_rng(4)

    def draw(count: int) -> tuple[np.ndarray, ...]:
        question = np.repeat(np.arange(count), 12)
        x = rng.standard_normal(len(question))
        y = rng.normal(0.4, 0.5, count)[question] * x + rng.standard_normal(len(question))
        return x, y, rng.exponential(1, len(question)), question

    truth = within_questions(*draw(20_000), np.ones((2, 20_000))).value
    counts = bootstrap_counts(40, 300, 0).astype(float)
    found = [within_questions(*draw(40), counts) for _ in range(400)]
    assert 0.91 <= np.mean([each.low <= truth <= each.high for each in found]) <= 0.98


@pytest.fixture(scope="module")
def run(tabular, tmp_path_factory):
    config = replace(config_for(30), objectives=("reverse_kl", "forward_kl"))
    folder = tmp_path_factory.mktemp("run") / "r"
    return run_score(config, folder, cast=cast_of(tabular), questions=questions(30), effort=Effort(Budget(128)))


def test_profiles_and_selection_are_sums_of_their_rows(run):
    found = alignment_findings(run, draws=200)
    rows = run.alignment[(run.alignment.teacher == "model:worse") & (run.alignment.objective == "reverse_kl")]
    rows = rows.join(run.nodes.set_index(["question", "node"])[["depth", "informative"]], on=["question", "node"])
    mean_length = run.scores.groupby("question").length.first()
    share = rows.depth / rows.question.map(mean_length)
    useful = rows.informative.astype(bool) & rows.alignment.notna()
    profiles = found.profiles[(found.profiles.teacher == "model:worse") & (found.profiles.objective == "reverse_kl")]
    low, high = 0.4, 0.6
    at = useful & (share >= low) & (share < high)
    row = profiles[(profiles.by == "depth") & (profiles.group == "0.4 to 0.6")].iloc[0]
    assert row.nodes == at.sum()
    if at.any():
        expected = (rows.weight * rows.alignment)[at].sum() / rows.weight[at].sum()
        assert row.mean_cosine == pytest.approx(expected)
    for by in ("depth", "window", "pass_rate"):
        assert profiles[profiles.by == by].nodes.sum() == useful.sum()
    chosen = found.selective[(found.selective.teacher == "model:worse") & (found.selective.objective == "reverse_kl")].iloc[0]
    known = rows[rows["dot"].notna() & (rows["dot"] != 0)]
    assert chosen.known == pytest.approx(known.weight.sum() / rows[rows["dot"].notna()].weight.sum())
    assert chosen.kept == pytest.approx(known.weight[known["dot"] > 0].sum() / known.weight.sum())
    kept = known[known["dot"] > 0]
    assert chosen.drive_kept == pytest.approx((kept.weight * kept["dot"]).sum() / known.weight.sum())
    assert chosen.kept_low <= chosen.kept <= chosen.kept_high
    association = found.associations.set_index(["teacher", "objective", "quantity"]).loc[
        "model:worse", "reverse_kl", "reverse_kl"
    ]
    assert association.nodes == useful.sum()
    assert -1 <= association.within <= 1


def test_findings_show_themselves(run):
    found = alignment_findings(run, draws=100)
    html = found._repr_html_()
    assert html.count("<table>") == len(found.sheets())
    assert "model:worse" in html


def test_supports_and_chosen_nodes_are_checked(run, tabular, tmp_path):
    with pytest.raises(GradalignError, match="visited or full"):
        alignment_findings(run, support="half")
    top = run_score(
        config_for(4, rollouts=2, node_selection="top"), tmp_path / "r", cast=cast_of(tabular), questions=questions(4)
    )
    with pytest.raises(GradalignError, match="top nodes"):
        alignment_findings(top)
