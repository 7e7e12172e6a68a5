"""Training configurations: read from YAML with the place of every fault, and ranked from the rows of a run."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_pipeline_exact import cast_of, config_for, questions

from gradalign.api import run_score
from gradalign.configurations import (
    Configuration,
    QuestionWeighting,
    TokenWeighting,
    load_configurations,
    parse_questions,
    parse_tokens,
    unnamed_servers,
)
from gradalign.findings import break_down, rank, rank_configurations
from gradalign.objectives import parse_objective
from gradalign.pipeline import Budget, Effort
from gradalign.types import GradalignError

READY = Path(__file__).parents[1] / "configs"


def test_ready_configurations_are_read_and_name_known_objectives():
    found = load_configurations(READY)
    assert len(found) > 15
    assert len({c.name for c in found}) == len(found)
    for configuration in found:
        for objective in configuration.objectives:
            assert (configuration.teacher is None) == parse_objective(objective).teacherless


def test_a_configuration_is_read_as_written(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("configurations:\n- name: a\n  teacher: ctx:answer\n  objective: jsd:0.3\n  questions: paced:2:0.5\n"
                    "  tokens: entropy_top:0.2\n  temperature: 0.7\n- {name: b, objective: dr_grpo}\n")  # fmt: skip
    one, other = load_configurations(file)
    assert one == Configuration(
        "a",
        "jsd:0.3",
        "ctx:answer",
        questions=QuestionWeighting("paced", 2.0, 0.5),
        tokens=TokenWeighting("entropy_top", 0.2),
        temperature=0.7,
    )
    assert other.pairs == (("rewards", "dr_grpo"),)
    assert parse_questions(str(one.questions)) == one.questions
    assert parse_tokens(str(one.tokens)) == one.tokens


def test_servers_that_only_a_file_names_are_told():
    teachers = ("server:https://evil.example#m", "ctx:correct_demo@server:https://H:1#m", "model:x/y+ctx:answer", None)
    found = [Configuration(str(teacher), "reverse_kl", teacher) for teacher in teachers]
    assert unnamed_servers(found, ("ctx:answer", "auto")) == ("server:https://evil.example#m", "server:https://H:1#m")
    assert unnamed_servers(found, ("server:https://h:1/v1#other+ctx:answer",)) == ("server:https://evil.example#m",)
    assert unnamed_servers(found, ("ctx:answer", "server:https://evil.example")) == ("server:https://H:1#m",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- name: a\n  objectives: x\n", "line 2: no setting 'objectives'; did you mean objective?"),
        ("- name: a\n  objective: x\n  name: b\n", "line 3: setting 'name' is given twice"),
        ("- name: a\n  objective: x\n  questions: paced:1\n", "line 3: questions 'paced:1' is not understood"),
        ("- name: a\n  objective: x\n  tokens: entropy_top:2\n", "line 3: tokens 'entropy_top:2' is not understood"),
        ("- name: a\n  objective: x\n  teacher: ctx:nonsense\n", "line 3: teacher 'ctx:nonsense'"),
        ("- name: a\n  objective: x\n  temperature: warm\n", "line 3: temperature 'warm' is not a number"),
        ("- name: a\n  objective: x\n  temperature: 0\n", "temperature 0.0; it must be above 0"),
        ("- name: a\n  objective: [x, y, z]\n", "line 2: objective lists 3 stages; give one or two"),
        ("- name: [a]\n  objective: x\n", "line 1: name is one word or number"),
        ("- name: a\n  objective: x\n  step: -1\n", "step -1.0; it must be above 0"),
        ("- objective: x\n", "line 1: a configuration needs `name:`"),
        ("- name: a\n  objective: x\n- name: a\n  objective: y\n", "are named 'a'"),
        ("- just words\n", "line 1: a configuration is a mapping"),
        ("name: a\n", "no setting 'name'"),
        ("- name: 'a\n", "not YAML"),
        ("", "holds no list"),
        ("- !!python/object/apply:os.system {name: a, objective: x}\n", None),
    ],
)
def test_faults_are_named_with_their_line(tmp_path, text, message):
    """A tag that would run code elsewhere is plain data here."""
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    if message is None:
        assert load_configurations(file)[0].name == "a"
        return
    with pytest.raises(GradalignError) as caught:
        load_configurations(file)
    assert message in str(caught.value)
    assert "mine.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_paced_weights_have_mean_one_and_their_shape():
    p = np.array([0.0, 0.25, 0.5, 1.0])
    found = QuestionWeighting("paced", 1.0, 1.0).weights(p)
    assert found.mean() == pytest.approx(1)
    assert found[[0, 3]].tolist() == [0, 0]
    assert found[2] / found[1] == pytest.approx(0.25 / 0.1875)
    assert QuestionWeighting().weights(p).tolist() == [1, 1, 1, 1]


@pytest.fixture(scope="module")
def run(tabular, tmp_path_factory):
    objectives = ("reverse_kl", "forward_kl", "reverse_kl@forward_kl*0.5", "dr_grpo")
    config = replace(config_for(40), objectives=objectives, tokens=("incorrect_paths",))
    folder = tmp_path_factory.mktemp("run") / "r"
    return run_score(config, folder, cast=cast_of(tabular), questions=questions(40), effort=Effort(Budget(96)))


def configured(name: str, objective: str = "reverse_kl", **settings) -> Configuration:
    """A configuration of the tabular run's best teacher."""
    return Configuration(name, objective, "model:better", **settings)


def test_plain_configurations_score_as_their_pairs(run):
    found = rank_configurations(run, [configured("a"), configured("b", "forward_kl"), Configuration("c", "dr_grpo")])
    pairs = rank(run).frame.set_index(["teacher", "objective"])
    frame = found.frame.set_index("configuration")
    for name, key in {
        "a": ("model:better", "reverse_kl"),
        "b": ("model:better", "forward_kl"),
        "c": ("rewards", "dr_grpo"),
    }.items():
        for column in (
            "transfer_drive",
            "transfer",
            "drive",
            "drive_low",
            "drive_high",
            "gain",
            "pooled_cosine",
            "mean_cosine",
        ):
            assert frame.loc[name][column] == pytest.approx(pairs.loc[key][column]), (name, column)
    assert frame.loc["c"].teacher_tokens == 0
    assert frame.loc["a"].teacher_tokens > 4


def test_question_weights_are_those_of_pass_rates(run):
    weighting = QuestionWeighting("paced", 1.0, 1.0)
    frame = rank_configurations(run, [configured("a", questions=weighting), configured("b")]).frame.set_index("configuration")
    rows = run.scores[(run.scores.teacher == "model:better") & (run.scores.objective == "reverse_kl")].set_index("question")
    weight = weighting.weights(run.questions.set_index("question").loc[rows.index, "pass_rate"].to_numpy())
    assert frame.loc["a"].drive == pytest.approx((weight * rows["dot"]).sum() / (weight * rows.length).sum())
    assert frame.loc["a"].gain == pytest.approx((weight * rows["dot"]).mean() / np.sqrt((weight * rows.d_norm2).mean()))
    steps = (
        run.steps[run.steps.tokens == "all"]
        .fillna({"teacher": "", "objective": ""})
        .set_index(["question", "teacher", "objective"])
        .step
    )
    taught = {q: w * steps[q, "model:better", "reverse_kl"] for q, w in zip(rows.index, weight, strict=True)}
    pairs = [taught[q] @ steps[p, "", ""] for q in rows.index for p in rows.index if p != q]
    assert frame.loc["a"].transfer_drive == pytest.approx(np.mean(pairs), rel=1e-4)


def test_two_stages_share_the_training(run):
    """Scores are the means of both stages', those for a unit of step too; the second stands at the policy after a step of the first."""
    two = configured("two", "forward_kl", then="reverse_kl", step=0.5)
    frame = rank_configurations(run, [two, configured("one", "forward_kl")]).frame.set_index("configuration")
    pairs = rank(run).frame.set_index(["teacher", "objective"])
    stages = [pairs.loc["model:better", objective] for objective in ("forward_kl", "reverse_kl@forward_kl*0.5")]
    for column in ("drive", "transfer_drive", "teacher_advantage", "gain", "transfer", "pooled_cosine"):
        assert frame.loc["two"][column] == pytest.approx(np.mean([stage[column] for stage in stages]))
    assert frame.loc["two"].objective == "forward_kl then reverse_kl@forward_kl*0.5"
    plain = pairs.loc["model:better", "reverse_kl"]
    assert stages[1].drive != pytest.approx(plain.drive, rel=1e-3)


def test_token_weights_take_their_nodes(run):
    tokens = {"wrong": "incorrect_paths", "half": "entropy_top:0.5", "whole": "entropy_top:1", "oracle": "positive_alignment"}
    listed = [configured(name, tokens=parse_tokens(text)) for name, text in tokens.items()]
    found = rank_configurations(run, [*listed, configured("all")])
    frame = found.frame.set_index("configuration")
    nodes = run.nodes.set_index(["question", "node"])
    rows = run.alignment[(run.alignment.teacher == "model:better") & (run.alignment.objective == "reverse_kl")]
    rows = rows.join(nodes[["visits", "visits_wrong", "student_entropy"]], on=["question", "node"])
    length = run.scores.groupby("question").length.first().sum()
    wrong = (rows.weight * rows.visits_wrong / rows.visits * rows["dot"].fillna(0)).sum() / length
    assert frame.loc["wrong"].drive == pytest.approx(wrong)
    assert frame.loc["whole"].drive == pytest.approx((rows.weight * rows["dot"].fillna(0)).sum() / length)
    higher = []
    for row in rows.itertuples():
        of = run.nodes[run.nodes.question == row.question]
        higher.append(of.visits[of.student_entropy.round(9) > round(row.student_entropy, 9)].sum() / of.visits.sum())
    half = rows[np.array(higher) < 0.5]
    assert frame.loc["half"].drive == pytest.approx((half.weight * half["dot"].fillna(0)).sum() / length)
    assert frame.loc["oracle"].drive >= frame.loc["whole"].drive
    assert bool(frame.loc["oracle"].oracle)
    assert frame.loc["oracle"].p_best == 0
    assert not frame.loc["oracle"].tied
    assert frame.loc[["half", "whole", "oracle"], "transfer_drive"].isna().all()
    kept = run.steps[(run.steps.teacher == "model:better") & (run.steps.objective == "reverse_kl")]
    kept = kept[kept.tokens == "incorrect_paths"].set_index("question").step
    ideal = run.steps[run.steps.teacher.isna()].set_index("question").step
    pairs = [kept[q] @ ideal[p] for q in kept.index for p in kept.index if p != q]
    assert frame.loc["wrong", "transfer_drive"] == pytest.approx(np.mean(pairs), rel=1e-4)
    assert found.frame.configuration.iloc[0] in ("all", "wrong")
    by_drive = rank_configurations(run, [*listed, configured("all")], by="drive").frame
    assert by_drive.drive.notna().all()
    assert by_drive.loc[by_drive.configuration == "oracle", "p_best"].item() == 0


def test_windows_and_paths_share_out_the_drive_and_difficulties_the_questions(run):
    """Their drives add up to that of all chosen nodes; one difficulty is the whole ranking again."""
    listed = [configured("a"), configured("b", "forward_kl", questions=QuestionWeighting("paced"))]
    whole = rank_configurations(run, [replace(c, tokens=parse_tokens("entropy_top:1")) for c in listed], by="drive").frame
    whole = whole.set_index("configuration").drive
    for by, groups in (("window", ["[0, 1)", "[1, 2)", "[2, 4)"]), ("path", ["correct", "incorrect"])):
        frame = break_down(run, listed, by).frame
        assert frame.group.unique().tolist() == groups
        assert (frame.by == by).all()
        for name in "ab":
            assert frame[frame.configuration == name].drive.sum() == pytest.approx(whole[name])
        assert frame.transfer_drive.isna().all()
    frame = break_down(run, listed, "difficulty").frame.set_index("configuration")
    ranked = rank_configurations(run, listed).frame.set_index("configuration")
    assert (frame.group == "not stated").all()
    for column in ("drive", "gain", "transfer_drive", "drive_low"):
        assert frame.loc["b", column] == pytest.approx(ranked.loc["b", column])
    with pytest.raises(GradalignError, match="difficulty, window, path"):
        break_down(run, listed, "colour")


def test_what_has_no_teacher_has_no_advantage(run):
    """Not even where its sums come from the chosen nodes alone."""
    listed = [Configuration("rewards", "dr_grpo", tokens=parse_tokens("incorrect_paths")), configured("taught")]
    frame = rank_configurations(run, listed, by="drive").frame.set_index("configuration")
    assert np.isnan(frame.loc["rewards", "teacher_advantage"])
    assert np.isfinite(frame.loc["taught", "teacher_advantage"])
    broken = break_down(run, listed, "path").frame
    assert broken[broken.configuration == "rewards"].teacher_advantage.isna().all()


def test_what_the_run_cannot_tell_of_is_named_with_its_mend(run):
    listed = [
        configured("a"),
        configured("b", "jsd:0.5"),
        Configuration("c", "reverse_kl", "ctx:answer"),
        configured("d", temperature=0.5),
    ]
    found = rank_configurations(run, listed)
    assert found.frame.configuration.tolist() == ["a"]
    assert "--objective 'jsd:0.5'" in found.unscored["b"]
    assert "--teacher ctx:answer" in found.unscored["c"]
    assert "--temperature 0.5" in found.unscored["d"]
    with pytest.raises(GradalignError, match="can tell of none"):
        rank_configurations(run, listed[1:])


def test_a_second_ranking_is_the_same_bit_for_bit(run):
    listed = [configured("a"), configured("b", "forward_kl"), configured("c", questions=QuestionWeighting("paced"))]
    one, two = (rank_configurations(run, listed, seed=3).frame for _ in range(2))
    pd.testing.assert_frame_equal(one, two, check_exact=True)
