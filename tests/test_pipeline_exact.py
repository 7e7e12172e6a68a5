"""The whole pipeline, engine to ranking, on a tabular model whose every number is known."""

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from gradalign.api import run_score
from gradalign.findings import rank
from gradalign.models import LoadedModel
from gradalign.objectives import After, NodeSignals, ideal_direction, parse_objective
from gradalign.pipeline import Budget, Cast, Effort, Member, RunConfig
from gradalign.pipeline.result import QuestionResult
from gradalign.pipeline.samples import cast_teachers
from gradalign.testbed import TabularCodec, TabularModel
from gradalign.types import REWARDS, Completion, GradalignError, Grade, Question, Rollout, TeacherSpec

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


@pytest.mark.parametrize(
    ("objective", "taught", "fits"),
    [("reverse_kl", 0, True), ("success", 0, True), ("minillm:1", 0, False), ("pbsd:1", 2, False)],
)
def test_teachers_that_read_targeted_rollouts_have_room_for_the_longest(tabular, objective, taught, fits):
    """Base rollouts ended after two tokens; targeted ones may have four, which the teacher's window does not hold."""
    cast = cast_of(tabular, ["model:better"])
    cast.others["better"].model.language_model.context_window = 3
    completion = Completion(0, 0, np.array([0, 1]), np.zeros(2), "stop")
    result = QuestionResult(questions(1)[0], 0, [Rollout(0, completion, "", Grade(1.0, "right", "yes"))])
    objectives = tuple(dict.fromkeys(("reverse_kl", objective)))
    cast_teachers([result], cast, replace(config_for(1), objectives=objectives, teacher_rollouts=taught))
    assert bool(result.prompts) == fits


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


def test_stored_steps_are_unbiased(run, tabular):
    """D and G of every question against visitation times d h^T and g h^T, by enumeration, entry by entry; h are the logits here."""
    steps = run.steps
    assert steps.exact.all()
    exact = {key: np.zeros((4, 4)) for key in (("ideal", ""), ("model:better", "reverse_kl"), ("model:better", "forward_kl"))}
    teacher = tabular.tilted(TEACHERS["model:better"], "t")
    for prefix, row in tabular.prefixes.items():
        pi, tau = (torch.tensor(m.probabilities(prefix))[None].log() for m in (tabular, teacher))
        h, visits = tabular.logits_NV[row].numpy(), tabular.visitation(prefix)
        g = ideal_direction(pi, torch.tensor(tabular.success(prefix))[None])
        exact["ideal", ""] += visits * np.outer(g[0].numpy(), h)
        for name in ("reverse_kl", "forward_kl"):
            exact["model:better", name] += visits * np.outer(
                parse_objective(name).direction(NodeSignals(pi, tau))[0].numpy(), h
            )
    named = steps.fillna({"teacher": "ideal", "objective": ""})
    for (teacher_name, objective), truth in exact.items():
        mine = named[(named.teacher == teacher_name) & (named.objective == objective)]
        found = np.stack(mine.step.to_list()).reshape(-1, 4, 4)
        assert len(found) == 150
        spread = found.std(0) / np.sqrt(150)
        assert (np.abs(found.mean(0) - truth) < 4.5 * spread + 1e-6).all()
        assert np.abs(np.stack(mine.step_logits.to_list()).sum(1)).max() < 1e-5  # directions sum to 0


OUTCOMES = ("minillm:1", "minillm:1:normalised", "pbsd_target:0.5", "dr_grpo", "reverse_kl@forward_kl*0.5", "pbsd:0.5")


def exact_outcome(tabular: TabularModel, teacher: TabularModel, objective: str) -> tuple[float, np.ndarray]:
    """Sum of visitation <g, d> and of visitation d h^T by enumeration; of `dr_grpo` in expectation over groups of 16.

    For a second stage g is that at the policy after the first one's step.
    """
    total, step = 0.0, np.zeros((4, 4))
    pairs = exact_pairs(tabular, teacher, 0.5)
    for prefix, row in tabular.prefixes.items():
        pi, tau = (torch.tensor(m.probabilities(prefix))[None].log() for m in (tabular, teacher))
        success = torch.tensor(tabular.success(prefix))[None]
        future = torch.tensor([[later(tabular, teacher, (*prefix, k), objective) for k in range(4)]])
        weighed = {name: torch.tensor(values[row])[None] for name, values in pairs.items()}
        ratio = torch.tensor([np.log(teacher.visitation(prefix) / tabular.visitation(prefix))], dtype=torch.float64)
        signals = NodeSignals(pi, tau, success=success, future_return=future, sample_advantage=pi.exp() * success * 15 / 16,
                              log_prefix_ratio=ratio, **weighed)  # fmt: skip
        named = parse_objective(objective)
        after = named.moved(signals).student_logprobs if isinstance(named, After) else pi
        g, d = ideal_direction(after, success)[0].numpy(), named.direction(signals)[0].numpy()
        total += tabular.visitation(prefix) * float(g @ d)
        step += tabular.visitation(prefix) * np.outer(d, tabular.logits_NV[row].numpy())
    return total, step


def test_steps_under_token_weightings_are_sums_over_the_tokens_they_keep(tabular, tmp_path):
    """Every question's step against the sum over its own nodes: on wrong paths, and at the most uncertain tokens."""
    weightings = ("incorrect_paths", "entropy_top:0.3")
    config = replace(
        config_for(12, teacher_rollouts=4), objectives=("reverse_kl", "pbsd_target:1", "pbsd:1"), tokens=weightings
    )
    run = run_score(config, tmp_path / "r", cast=cast_of(tabular), questions=questions(12))
    prefixes, teacher = prefixes_of(run), tabular.tilted(TEACHERS["model:better"], "t")
    steps = run.steps[run.steps.teacher == "model:better"].set_index(["question", "objective", "tokens"]).step
    for question, nodes in run.nodes.groupby("question"):
        rest = nodes.sort_values("student_entropy", ascending=False)
        higher = (rest.visits.cumsum() - rest.visits) / rest.visits.sum()
        factors = {
            "all": 1.0 + 0 * nodes.visits,
            "incorrect_paths": nodes.visits_wrong / nodes.visits,
            "entropy_top:0.3": (higher < 0.3) * 1.0,
        }
        for name, factor in factors.items():
            expected = np.zeros((4, 4))
            for node in nodes.itertuples():
                prefix = prefixes[question, node.node]
                pi, tau = (torch.tensor(m.probabilities(prefix))[None].log() for m in (tabular, teacher))
                d = parse_objective("reverse_kl").direction(NodeSignals(pi, tau))[0].numpy()
                h = tabular.logits_NV[tabular.prefixes[prefix]].numpy()
                expected += factor[node.Index] * node.visits / 16 * np.outer(d, h)
            np.testing.assert_allclose(steps[question, "reverse_kl", name].reshape(4, 4), expected, atol=1e-5)
        wrong, every = (
            steps[question, "pbsd_target:1", name] - steps[question, "reverse_kl", name] for name in ("incorrect_paths", "all")
        )
        assert not np.allclose(wrong, every) or nodes.visits_wrong.sum() in (0, nodes.visits.sum())
    assert {*run.steps[run.steps.objective == "pbsd:1"].tokens} == {"all"}, "the teacher's own tokens have no such weights"


def exact_pairs(tabular: TabularModel, teacher: TabularModel, beta: float) -> dict[str, np.ndarray]:
    """W- and W+ of every node and token, over all pairs of whole rollouts."""
    sequences = list(itertools.product(range(4), repeat=4))
    pi, tau = (np.array([m.visitation(s[:3]) * m.probabilities(s[:3])[s[3]] for s in sequences]) for m in (tabular, teacher))
    rho = np.log(pi / tau)
    w = 1 / (1 + np.exp(beta * (rho[:, None] - rho[None, :])))
    found = {}
    for name, weight, mean in (("student_pair_weight", pi, tau @ w), ("teacher_pair_weight", tau, w @ pi)):
        found[name] = np.zeros((len(tabular.prefixes), 4))
        for prefix, row in tabular.prefixes.items():
            for k in range(4):
                through = np.array([s[: len(prefix) + 1] == (*prefix, k) for s in sequences])
                found[name][row, k] = (weight * mean)[through].sum() / weight[through].sum()
    return found


def later(tabular: TabularModel, teacher: TabularModel, prefix: tuple[int, ...], objective: str) -> float:
    """Expected sum, or mean, of the log-ratios from a prefix on."""
    if len(prefix) == 4:
        return 0.0
    pi, tau = tabular.probabilities(prefix), teacher.probabilities(prefix)
    total = sum(
        p * (np.log(t / p) + later(tabular, teacher, (*prefix, k), "")) for k, (p, t) in enumerate(zip(pi, tau, strict=True))
    )
    return total / (4 - len(prefix)) if objective.endswith("normalised") else total


@pytest.mark.slow
def test_what_rollouts_bring_is_counted_without_bias(tabular, tmp_path):
    """Sums and steps of objectives whose direction is itself estimated, over 160 questions; all tokens tried where anything is."""
    config = replace(config_for(160, candidate_mass=1.0, min_visits=2, teacher_rollouts=32), objectives=OUTCOMES)
    run = run_score(config, tmp_path / "r", cast=cast_of(tabular), questions=questions(160), effort=Effort(Budget(256)))
    teacher = tabular.tilted(TEACHERS["model:better"], "t")
    for objective in OUTCOMES:
        name = REWARDS if objective == "dr_grpo" else "model:better"
        total, step = exact_outcome(tabular, teacher, objective)
        dot = run.scores[(run.scores.teacher == name) & (run.scores.objective == objective)]["dot"]
        assert len(dot) == 160
        assert abs(dot.mean() - total) < 3.5 * dot.std() / np.sqrt(160), objective
        steps = run.steps[(run.steps.teacher == name) & (run.steps.objective == objective)].step
        found = np.stack(steps.to_list()).reshape(-1, 4, 4)
        assert (np.abs(found.mean(0) - step) < 4.5 * found.std(0) / np.sqrt(160) + 1e-6).all(), objective
    frame = rank(run).frame.set_index(["teacher", "objective"])
    assert frame.loc[(REWARDS, "dr_grpo")].drive_low > 0
    assert frame.loc[(REWARDS, "dr_grpo")].transfer_drive_low > 0
    assert (REWARDS, "minillm:1") not in frame.index
    assert ("model:better", "dr_grpo") not in frame.index


def test_transfer_is_what_a_step_does_to_all(run):
    """All questions are alike here, so a helpful teacher's steps help the others as much as their own."""
    frame = rank(run).frame.set_index(["teacher", "objective"])
    assert rank(run).by == "transfer_drive"
    assert frame.loc[("model:better", "reverse_kl")].transfer_drive_low > 0
    assert frame.loc[("model:worse", "reverse_kl")].transfer_drive_high < 0
    assert abs(frame.loc[("model:same", "reverse_kl")].transfer_drive) < 1e-12
    assert (frame.transfer_drive_sketch == 0).all()
    assert not rank(run).warnings


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
    assert (targeted.tokens.map(len) > 0).sum() <= 128 * 150
    root = run.branches[run.branches.node == 0].groupby("question").n.sum()
    forced_at_root = targeted[targeted.node == 0].groupby("question").size()
    assert (root == 16 + forced_at_root).all()


@pytest.mark.slow
def test_a_tiny_budget_is_kept_and_unbiased(tabular, tmp_path, run):
    few = run_score(config_for(400), tmp_path / "r", cast=cast_of(tabular), questions=questions(400), effort=Effort(Budget(12)))
    forced = few.rollouts[(few.rollouts.purpose == "targeted") & (few.rollouts.tokens.map(len) > 0)]
    assert len(forced) <= 12 * 400
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


def test_the_smallest_parts_score_as_the_largest(run, tabular, tmp_path):
    """Base rollouts do not depend on how questions are grouped; the design, measured by a part's other questions, moves no expectation."""
    other = run_score(
        config_for(150, part_size=2), tmp_path / "r", cast=cast_of(tabular), questions=questions(150), effort=SPENT
    )
    one, two = (r.rollouts[r.rollouts.purpose == "base"] for r in (run, other))
    assert one.tokens.map(tuple).tolist() == two.tokens.map(tuple).tolist()
    pd.testing.assert_series_equal(run.questions.pass_rate, other.questions.pass_rate)
    frames = [rank(r).frame.set_index(["teacher", "objective"]) for r in (run, other)]
    width = frames[0].drive_high - frames[0].drive_low
    assert ((frames[0].drive - frames[1].drive).abs() <= width + 1e-12).all()


def test_what_lies_below_a_node_does_not_move_its_term(tmp_path):
    """One token leads to forks that matter, the other to nothing: a design that saw what rollouts found below would be biased."""
    rng = np.random.default_rng(0)
    logits, taught = {}, {}
    for depth in range(4):
        for prefix in itertools.product(range(3), repeat=depth):
            logits[prefix] = (
                np.array([-0.8, 0.8, -6]) if not prefix else np.zeros(3) if prefix[0] == 0 else np.array([8.0, 0, 0])
            )
            taught[prefix] = np.array([0.3, -0.3, -6]) if not prefix else logits[prefix].copy()
            if prefix and prefix[0] == 0:
                taught[prefix] = rng.standard_normal(3)
    rewards = {s: float((s[0] == 0) == (sum(s) % 10 != 0)) for s in itertools.product(range(3), repeat=4)}
    student, teacher = TabularModel(logits, rewards, 4), TabularModel(taught, rewards, 4, "t")
    exact = 0.0
    for prefix in student.prefixes:
        pi, tau = (torch.tensor(m.probabilities(prefix))[None].log() for m in (student, teacher))
        g = ideal_direction(pi, torch.tensor(student.success(prefix))[None])
        d = parse_objective("reverse_kl").direction(NodeSignals(pi, tau))
        exact += student.visitation(prefix) * float((g * d).sum())
    cast = Cast(loaded(student), (TeacherSpec("model:t", "none", "t"),), {"t": loaded(teacher)})
    config = RunConfig("s", "q", ("model:t",), ("reverse_kl",), rollouts=2, max_tokens=4, demonstrations=1, part_size=50)
    run = run_score(config, tmp_path / "r", cast=cast, questions=questions(1000), effort=Effort(Budget(4)))
    error = run.scores["dot"] - exact
    assert abs(error.mean()) < 3 * error.std() / np.sqrt(1000)


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
