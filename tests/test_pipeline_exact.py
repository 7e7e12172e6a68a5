"""The whole pipeline, engine to ranking, on a tabular model whose every number is known."""

from collections.abc import Sequence

import numpy as np
import pytest

from gradalign.api import run_score
from gradalign.findings import rank
from gradalign.models import LoadedModel
from gradalign.pipeline import Budget, Cast, Effort, Member, RunConfig
from gradalign.testbed import TabularCodec, TabularModel
from gradalign.types import GradalignError, Question, TeacherSpec

TEACHERS = {"model:better": 3.0, "model:worse": -3.0, "model:same": 0.0}


def loaded(model: TabularModel) -> Member:
    return Member(LoadedModel(model, TabularCodec(model), f"table {model.name}"), model)


def cast_of(tabular: TabularModel, teachers: Sequence[str] = tuple(TEACHERS)) -> Cast:
    others = {spec.removeprefix("model:"): tabular.tilted(TEACHERS[spec], spec) for spec in teachers}
    specs = tuple(TeacherSpec(spec, "none", spec.removeprefix("model:")) for spec in teachers)
    return Cast(loaded(tabular), specs, {name: loaded(model) for name, model in others.items()})


def questions(count: int) -> list[Question]:
    return [Question(f"q{i}", "which?", "yes", "boolean") for i in range(count)]


SPENT = Effort(Budget(128))


def config_for(count: int, **changes) -> RunConfig:
    settings = {"rollouts": 16, "max_tokens": 4, "demonstrations": 1, "part_size": 50} | changes
    objectives = ("reverse_kl", "forward_kl", "jsd:0.5", "sampled_kl")
    return RunConfig("tabular", f"{count} questions", tuple(TEACHERS), objectives, **settings)


@pytest.fixture(scope="module")
def run(tabular, tmp_path_factory):
    return run_score(
        config_for(150), tmp_path_factory.mktemp("run") / "r", cast=cast_of(tabular), questions=questions(150), effort=SPENT
    )


def test_success_is_unbiased_and_its_intervals_cover(run, tabular):
    """Branch by branch against the exact success, all valid rollouts counted, over 150 independent questions."""
    prefixes = prefixes_of(run)
    branches = run.branches
    truth = np.array(
        [tabular.success(prefixes[q, n])[t] for q, n, t in zip(branches.question, branches.node, branches.token, strict=True)]
    )
    supported = branches.in_support & ~branches.exact
    error = (branches.success - truth)[supported]
    noise = np.sqrt((truth * (1 - truth) / branches.n)[supported])
    assert abs((error / np.sqrt((noise**2).mean())).mean()) < 4 / np.sqrt(150)
    inside = ((branches.lower <= truth + 1e-12) & (truth <= branches.upper + 1e-12))[supported]
    uncertain = (truth[supported] > 0.02) & (truth[supported] < 0.98)
    assert 0.93 <= inside[uncertain].mean() <= 0.97
    exact = branches[branches.exact]
    assert len(exact) > 100
    assert (exact.success == truth[branches.exact]).all()


def test_drive_equals_its_exact_expectation(run, tabular):
    """drive estimates sum over nodes of visitation <g, d> over mean length, computed here by enumeration."""
    import torch

    from gradalign.objectives import NodeSignals, ideal_direction, parse_objective

    frame = rank(run).frame.set_index(["teacher", "objective"])
    for spec, tilt in TEACHERS.items():
        teacher = tabular.tilted(tilt, spec)
        for name in ("reverse_kl", "forward_kl", "jsd:0.5"):
            total, visits = 0.0, 0.0
            for prefix in tabular.prefixes:
                pi, tau = (torch.tensor(m.probabilities(prefix))[None].log() for m in (tabular, teacher))
                g = ideal_direction(pi, torch.tensor(tabular.success(prefix))[None])
                d = parse_objective(name).direction(NodeSignals(pi, tau))
                total += tabular.visitation(prefix) * float((g * d).sum())
                visits += tabular.visitation(prefix)
            row = frame.loc[(spec, name)]
            spread = (row.drive_high - row.drive_low) / 3.92
            assert abs(row.drive - total / visits) < 4 * spread + 1e-12, (spec, name)


def test_better_ranks_first_and_the_harmful_teacher_is_negative(run):
    ranking = rank(run)
    frame = ranking.frame.set_index(["teacher", "objective"])
    assert ranking.frame.teacher[0] == "model:better"
    for objective in ("reverse_kl", "forward_kl", "jsd:0.5", "sampled_kl"):
        worse = frame.loc[("model:worse", objective)]
        assert worse.drive_high < 0
        assert worse.gain < 0
        assert worse.pooled_cosine < 0
        assert worse.teacher_advantage < 0
        assert frame.loc[("model:better", objective)].drive_low > 0
        assert abs(frame.loc[("model:same", objective)].drive) < 1e-12
    assert frame.loc[("model:better", "reverse_kl")].pooled_cosine == pytest.approx(1, abs=0.1)


def test_sampled_kl_agrees_with_reverse_kl_in_expectation(run):
    frame = rank(run).frame.set_index(["teacher", "objective"])
    one, other = frame.loc[("model:better", "sampled_kl")], frame.loc[("model:better", "reverse_kl")]
    assert one.drive == pytest.approx(other.drive)
    assert one.gain < other.gain


def test_no_rollout_is_counted_twice_and_the_budget_is_kept(run):
    rollouts = run.rollouts
    targeted = rollouts[rollouts.purpose == "targeted"]
    assert targeted[targeted.tokens.map(len) > 0].groupby("question").size().max() <= 128
    root = run.branches[run.branches.node == 0].groupby("question").n.sum()
    forced_at_root = targeted[targeted.node == 0].groupby("question").size()
    assert (root == 16 + forced_at_root).all()


def test_a_tiny_budget_is_kept_and_unbiased(tabular, tmp_path, run):
    few = run_score(config_for(400), tmp_path / "r", cast=cast_of(tabular), questions=questions(400), effort=Effort(Budget(12)))
    forced = few.rollouts[(few.rollouts.purpose == "targeted") & (few.rollouts.tokens.map(len) > 0)]
    assert forced.groupby("question").size().max() <= 12
    weights = few.nodes[few.nodes.scored].groupby("question").weight.sum().reindex(few.questions.question, fill_value=0.0)
    assert abs(weights.mean() - 4) < 4 * weights.std() / np.sqrt(len(weights))
    row, reference = (rank(r).frame.set_index(["teacher", "objective"]).loc[("model:better", "reverse_kl")] for r in (few, run))
    assert abs(row.drive - reference.drive) < row.drive_high - row.drive_low


def test_one_question_has_no_interval(tabular, tmp_path):
    run = run_score(config_for(1), tmp_path / "r", cast=cast_of(tabular), questions=questions(1))
    frame = rank(run).frame
    assert frame.drive.notna().all()
    assert frame.drive_low.isna().all()
    assert frame.p_best.isna().all()
    assert frame.tied.all()


def test_weights_put_averages_back_on_policy(run):
    """The weights of scored nodes sum, on average, to the mean number of tokens of a rollout."""
    weights = run.nodes[run.nodes.scored].groupby("question").weight.sum().reindex(run.questions.question, fill_value=0.0)
    assert abs(weights.mean() - 4) < 4 * weights.std() / np.sqrt(len(weights))


def test_rows_do_not_depend_on_how_questions_are_grouped(run, tabular, tmp_path):
    small = config_for(150, part_size=3)
    other = run_score(small, tmp_path / "r", cast=cast_of(tabular), questions=questions(150), effort=SPENT)
    for table in ("questions", "nodes", "branches", "teachers", "alignment"):
        one, two = run.frame(table), other.frame(table)
        assert len(one) == len(two) > 0
        for column in one.columns:
            if one[column].dtype.kind == "f":
                np.testing.assert_allclose(one[column], two[column], rtol=1e-9, atol=1e-12)
            else:
                assert one[column].equals(two[column]), column


def test_top_selection_is_refused_for_ranking(tabular, tmp_path):
    config = config_for(2, node_selection="top")
    run = run_score(config, tmp_path / "r", cast=cast_of(tabular), questions=questions(2))
    assert run.alignment.weight.isna().all()
    with pytest.raises(GradalignError, match="node-selection pps"):
        rank(run)


def prefixes_of(run) -> dict[tuple[str, int], tuple[int, ...]]:
    nodes = run.nodes
    step = {(q, n): (p, t) for q, n, p, t in zip(nodes.question, nodes.node, nodes.parent, nodes.token, strict=True)}
    found: dict[tuple[str, int], tuple[int, ...]] = {}
    for question, node in step:
        path, at = [], node
        while at > 0:
            at, token = step[question, at]
            path.append(token)
        found[question, node] = tuple(reversed(path))
    return found
