"""Configurations handed over to trainers: weights of questions and tokens, what is left out, and what TRL is told."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from gradalign_cli.main import main
from test_pipeline_exact import cast_of, config_for, questions

import gradalign
from gradalign import Configuration, GradalignError, export_configuration, load_configurations
from gradalign.api import run_score
from gradalign.configurations import QuestionWeighting, parse_tokens
from gradalign.contexts import render_question
from gradalign.findings import rank_configurations
from gradalign.handover import default_folder
from gradalign.handover.mapping import loss_of, trl_plan
from gradalign.objectives import OBJECTIVES
from gradalign.pipeline import Budget, Effort
from gradalign.questions import load_questions
from gradalign.tree import build_tree

READY = load_configurations(Path(__file__).parents[1] / "configs")
JOIN = ["question", "rollout", "position"]


@pytest.fixture(scope="module")
def run(tabular, tmp_path_factory):
    config = config_for(40)
    folder = tmp_path_factory.mktemp("run") / "r"
    return run_score(config, folder, cast=cast_of(tabular), questions=questions(40), effort=Effort(Budget(96)))


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """The built-in student under every built-in context; with two demonstrations a question some contexts lack their material."""
    teachers = [
        f"ctx:{name}" for name in ("correct_demo", "correct_wrong_demo", "wrong_demo", "summary", "reference", "answer")
    ]
    folder = tmp_path_factory.mktemp("taught") / "r"
    own = folder.parent / "own.j2"
    own.write_text("The answer is {{ answer }}. {{ prompt }}")
    teachers += ["ctx:none", f"ctx:{own}", "model:builtin:medium", "model:builtin:medium+ctx:answer"]
    return gradalign.score(teachers=teachers, out=folder, limit=6, rollouts=8, budget=8, demonstrations=2)


def configured(name: str = "mine", objective: str = "reverse_kl", **settings) -> Configuration:
    return Configuration(name, objective, "model:better", **settings)


def tables(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    return pd.read_parquet(folder / "questions.parquet"), pd.read_parquet(folder / "tokens.parquet")


def test_tokens_join_the_runs_rollouts_and_nodes(run, tmp_path):
    """Every token of every base rollout once, at the node whose prefix it follows."""
    export_configuration(run, configured(), tmp_path / "x", "parquet")
    _, tokens = tables(tmp_path / "x")
    assert not tokens.duplicated(JOIN).any()
    base = run.rollouts[run.rollouts.purpose == "base"].set_index(["question", "rollout"]).tokens
    for key, mine in tokens.sort_values("position").groupby(["question", "rollout"]):
        assert mine.token.tolist() == base[key].tolist()
        assert mine.position.tolist() == list(range(len(mine)))
    assert len(tokens) == base.map(len).sum()
    visits = tokens.groupby(["question", "node"]).size()
    nodes = run.nodes.set_index(["question", "node"])
    assert visits.sort_index().to_dict() == nodes.visits.to_dict()
    joined = tokens.join(nodes[["depth", "parent", "token"]], on=["question", "node"], suffixes=("", "_of_node"))
    assert (joined.depth == joined.position).all()
    before = tokens.assign(position=tokens.position + 1).set_index(JOIN)
    inner = joined[joined.position > 0].join(before[["node", "token"]], on=JOIN, suffixes=("", "_before"))
    assert (inner.parent == inner.node_before).all()
    assert (inner.token_of_node == inner.token_before).all()


def test_node_numbers_are_those_of_the_tree_of_base_rollouts(run):
    for question, nodes in run.nodes.groupby("question"):
        mine = run.rollouts[(run.rollouts.question == question) & (run.rollouts.purpose == "base")].sort_values("rollout")
        tree = build_tree(mine.tokens.to_list())
        for name in ("parent", "token", "depth"):
            assert (getattr(tree, name)[nodes.node] == nodes[name]).all()


@pytest.mark.parametrize("text", ["incorrect_paths", "entropy_top:0.3", "entropy_top:1", "all"])
def test_token_weights_sum_to_those_that_ranked(run, tmp_path, text):
    """Any number of a node, summed over tokens with their weights, is the sum over nodes with the weights that rank a configuration;
    so the drive from the exported tokens is that of the ranking from the chosen nodes."""
    configuration = configured(tokens=parse_tokens(text))
    export_configuration(run, configuration, tmp_path / "x", "parquet")
    _, tokens = tables(tmp_path / "x")
    weight = tokens.groupby(["question", "node"]).weight.sum()
    rows = run.alignment[(run.alignment.teacher == "model:better") & (run.alignment.objective == "reverse_kl")]
    rows = rows.join(run.nodes.set_index(["question", "node"])[["visits", "visits_wrong"]], on=["question", "node"])
    if text == "incorrect_paths":
        assert rows.visits_wrong.to_numpy() == pytest.approx(weight.loc[list(zip(rows.question, rows.node, strict=True))])
    share = weight.loc[list(zip(rows.question, rows.node, strict=True))].to_numpy() / rows.visits
    length = run.scores.groupby("question").length.first().sum()
    plain = configured(tokens=parse_tokens("entropy_top:1")) if text == "all" else configuration
    ranked = rank_configurations(run, [plain], by="drive").frame.drive.item()
    assert (rows.weight * share * rows["dot"].fillna(0)).sum() / length == pytest.approx(ranked)
    if text.startswith("entropy_top:0"):
        assert 0 < tokens.weight.mean() < 0.8
        entropy = tokens.join(run.nodes.set_index(["question", "node"]).student_entropy, on=["question", "node"])
        for _, mine in entropy.groupby("question"):
            assert mine[mine.weight == 1].student_entropy.min() > mine[mine.weight == 0].student_entropy.max() - 1e-9


def test_alignment_is_missing_where_it_is_unknown(run, tmp_path):
    found = export_configuration(run, configured(tokens=parse_tokens("positive_alignment")), tmp_path / "x", "json")
    tokens = pd.read_json(tmp_path / "x" / "tokens.jsonl", lines=True)
    rows = run.alignment[(run.alignment.teacher == "model:better") & (run.alignment.objective == "reverse_kl")]
    known = rows.set_index(["question", "node"])["dot"]
    joined = tokens.join(known, on=["question", "node"])
    scored = pd.MultiIndex.from_arrays([tokens.question, tokens.node]).isin(known.index)
    assert (tokens.weight[scored] == (joined["dot"][scored] > 0)).all()
    assert tokens.weight[~scored].isna().all()
    assert "missing" in found.not_carried[-1]


def test_question_weights_have_mean_one_and_are_those_that_rank(run, tmp_path):
    weighting = QuestionWeighting("paced", 1.0, 2.0)
    found = export_configuration(run, configured(questions=weighting), tmp_path / "x", "json")
    frame = pd.read_json(tmp_path / "x" / "questions.jsonl", lines=True, dtype={"question": str})
    assert found.questions == len(frame) == 40
    assert frame.weight.mean() == pytest.approx(1)
    assert frame.weight.to_numpy() == pytest.approx(weighting.weights(frame.pass_rate.to_numpy()))
    rows = run.scores[(run.scores.teacher == "model:better") & (run.scores.objective == "reverse_kl")].set_index("question")
    weight = frame.set_index("question").weight
    drive = rank_configurations(run, [configured(questions=weighting)], by="drive").frame.drive.item()
    assert (weight * rows["dot"]).sum() / (weight * rows.length).sum() == pytest.approx(drive)


def test_skipped_questions_are_counted(taught, tmp_path):
    for teacher in ("ctx:wrong_demo", "ctx:correct_wrong_demo"):
        skipped = taught.skipped[taught.skipped.teacher == teacher]
        configuration = Configuration("w", "reverse_kl", teacher)
        found = export_configuration(taught, configuration, tmp_path / teacher[4:])
        frame, tokens = tables(found.folder)
        assert found.left_out == skipped.reason.value_counts().to_dict()
        assert {*frame.question} == {*tokens.question} == {*taught.questions.question} - {*skipped.question}
        written = json.loads((found.folder / "configuration.json").read_text())
        assert written["left_out"] == found.left_out
    assert taught.skipped.teacher.isin(["ctx:wrong_demo", "ctx:correct_wrong_demo"]).any()


@pytest.mark.parametrize("to", ["trl", "json", "parquet"])
@pytest.mark.parametrize("configuration", READY, ids=lambda c: c.name)
def test_ready_configurations_are_exported(taught, tmp_path, configuration, to):
    found = export_configuration(taught, configuration, tmp_path / "x", to)
    assert {file.name for file in found.folder.iterdir()} == {*found.files}
    written = json.loads((found.folder / "configuration.json").read_text())
    assert written["configuration"]["name"] == configuration.name
    assert written["not_carried"] == [*found.not_carried]
    assert all(lost.endswith(".") for lost in found.not_carried)
    if to == "trl":
        told = json.loads((found.folder / "trl.json").read_text())
        assert told["not_carried"] == written["not_carried"]
        stages = told["arguments"] if configuration.then else [told["arguments"]]
        assert len(stages) == len(configuration.objectives)
        rows = [json.loads(line) for line in (found.folder / "train.jsonl").read_text().splitlines()]
        assert [row["question"] for row in rows] == tables(found.folder)[0].question.tolist()
        compile((found.folder / "train.py").read_text(), "train.py", "exec")
        known = ("reverse_kl", "forward_kl", "jsd", "sampled_kl", "dr_grpo")
        assert any("objective" in lost for lost in found.not_carried) == (configuration.objective.split(":")[0] not in known)
        assert any("Token weights" in lost for lost in found.not_carried) == (configuration.tokens.kind != "all")


CONTEXTS = ["ctx:reference", "ctx:answer", "ctx:none", "own", "model:builtin:medium+ctx:answer", "model:builtin:medium"]


@pytest.mark.parametrize("spec", CONTEXTS)
def test_the_trainer_shows_the_teacher_what_it_saw_in_the_run(taught, small, tmp_path, spec):
    """Prompts composed as TRL composes them, token by token."""
    own = next(teacher for teacher in taught.identity["teachers"] if teacher.endswith(".j2"))
    teacher = own if spec == "own" else spec
    found = export_configuration(taught, Configuration("c", "reverse_kl", teacher), tmp_path / "x")
    told = json.loads((found.folder / "trl.json").read_text())
    assert told["trainer"] == ("DistillationTrainer" if spec == "model:builtin:medium" else "SDFTTrainer")
    assert (told["teacher"] is not None) == spec.startswith("model:")
    template = told["arguments"].get("teacher_prompt_template", "{prompt}\n\n{privileged_context}")
    seen = taught.contexts[taught.contexts.teacher == teacher].set_index("question").prompt_tokens
    student = {
        question.id: small.codec.prompt(render_question(question)) for question in load_questions("builtin:arithmetic", 6)
    }
    for line in (found.folder / "train.jsonl").read_text().splitlines():
        row = json.loads(line)
        prompt = row["prompt"][0]["content"]
        assert small.codec.prompt(prompt) == student[row["question"]]
        if spec == "model:builtin:medium":
            text = prompt
        elif told["teacher_sees"] == "context":
            text = row["privileged_context"]
        else:
            text = template.format(prompt=prompt, privileged_context=row["privileged_context"])
        assert small.codec.prompt(text) == tuple(seen[row["question"]])
    assert (told["teacher_sees"] == "context") == (spec == "own")


def test_every_objective_has_its_nearest_loss():
    """Objectives that TRL has are not said to lose anything; all others are."""
    exact = {"reverse_kl", "gkd", "forward_kl", "sampled_kl", "dr_grpo", "jsd:0.3"}
    for spec in OBJECTIVES:
        name = spec.replace("BETA", "0.3").replace("GAMMA", "0.9").replace("SECOND@FIRST*ETA", "forward_kl@reverse_kl*1")
        loss = loss_of(name)
        assert (loss.lost is None) == (name in exact), name
        assert loss.lost is None or "function of your own" not in loss.lost
    assert loss_of("jsd:0.3").beta == 0.3
    assert loss_of("forward_kl@reverse_kl*1").beta == 0
    assert "function of your own" in str(loss_of("mine:softened").lost)


def test_a_served_teacher_is_named_and_not_loaded():
    configuration = Configuration("mine", "reverse_kl", "server:http://127.0.0.1:8000#better")
    identity = {"temperature": 1.0, "max_tokens": 64, "seed": 0, "student": "builtin:small", "thinking": False}
    description = trl_plan(configuration, identity, ["a question"], ["a question"]).description
    assert description["teacher"] == {"model": "server:http://127.0.0.1:8000#better", "gguf_file": None}
    assert any("is served, and trainers load weights" in lost for lost in description["not_carried"])


def test_names_never_lead_out_of_the_run(run, tmp_path):
    for name, slug in (
        ("../x", "x"),
        ("/etc/passwd", "etc-passwd"),
        ("..", "configuration"),
        ("a/../../b", "a-..-..-b"),
        ("ä" * 300, "configuration"),
        ("PACED, two stages", "PACED-two-stages"),
        ("x\n\0y", "x-y"),
    ):
        folder = default_folder(run, configured(name))
        assert folder == run.path / "export" / slug
        assert folder.resolve().parent == (run.path / "export").resolve()


def test_a_folder_with_something_in_it_is_refused(run, tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(GradalignError, match="not empty"):
        export_configuration(run, configured(), tmp_path)
    export_configuration(run, configured(), tmp_path, "trl", force=True)
    found = export_configuration(run, configured(), tmp_path, "json", force=True)
    assert {file.name for file in tmp_path.iterdir()} == {*found.files, "mine.txt"}
    with pytest.raises(GradalignError, match="cannot write"):
        export_configuration(run, configured(), tmp_path / "mine.txt")


@pytest.mark.parametrize(
    ("configuration", "message"),
    [
        (configured(temperature=0.5), "--temperature 0.5"),
        (Configuration("c", "reverse_kl", "ctx:answer"), "--teacher ctx:answer"),
        (Configuration("c", "reverse_kl"), "needs a teacher"),
        (configured(objective="dr_grpo", then="reverse_kl"), "cannot be a stage"),
    ],
)
def test_faults_are_one_line(run, tmp_path, configuration, message):
    with pytest.raises(GradalignError, match=message) as caught:
        export_configuration(run, configuration, tmp_path / "x")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "x").exists()
    with pytest.raises(GradalignError, match="trl, json, parquet"):
        export_configuration(run, configured(), tmp_path / "x", "verl")


def test_questions_are_asked_as_in_the_run(tabular, tmp_path):
    """Options and all, from the run alone: the set may be gone."""
    source = tmp_path / "set.jsonl"
    record = {"id": "q0", "question": "which?", "answer": "B", "kind": "choice", "choices": ["red", "blue"]}
    source.write_text(json.dumps(record))
    config = replace(config_for(1), questions=str(source))
    one = run_score(config, tmp_path / "r", cast=cast_of(tabular), effort=Effort(Budget(8)))
    source.unlink()
    found = export_configuration(one, configured(), tmp_path / "x")
    row = json.loads((found.folder / "train.jsonl").read_text())
    assert row["choices"] == ["red", "blue"]
    assert "A) red\nB) blue" in row["prompt"][0]["content"]


def test_the_command_writes_and_says_how_to_train(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    listed = (
        "- {name: '[bold]best', teacher: 'model:better', objective: 'minillm:1', tokens: incorrect_paths}\n"
        "- {name: b, objective: dr_grpo}\n"
    )

    def command(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["gradalign", "export", str(run.path), *arguments])
        try:
            main()
        except SystemExit as leaving:
            code = int(leaving.code or 0)
        else:
            code = 0
        captured = capsys.readouterr()
        return code, " ".join((captured.out + captured.err).split())

    assert command("--config", "b") == (
        2,
        "error: no configurations: there is no folder configs/ here; give a file or folder with --configs",
    )
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "mine.yaml").write_text(listed)
    code, text = command()
    assert code == 2
    assert "'[bold]best', 'b'" in text
    code, text = command("--config", "[bold]bast")
    assert code == 2
    assert "did you mean '[bold]best'?" in text
    code, text = command("--config", "[bold]best")
    assert code == 0
    assert "[bold]best: 40 questions" in text
    assert "not carried over: The objective minillm:1" in text
    assert "train.py --model" in text
    assert (run.path / "export" / "bold-best" / "train.py").is_file()
    assert command("--config", "[bold]best")[0] == 2
    assert command("--config", "[bold]best", "--force", "--to", "json")[0] == 0


def test_numbers_of_json_and_parquet_are_the_same(run, tmp_path):
    listed = configured(questions=QuestionWeighting("paced"), tokens=parse_tokens("incorrect_paths"))
    export_configuration(run, listed, tmp_path / "p", "parquet")
    export_configuration(run, listed, tmp_path / "j", "json")
    for name in ("questions", "tokens"):
        binary = pd.read_parquet(tmp_path / "p" / f"{name}.parquet")
        text = pd.read_json(tmp_path / "j" / f"{name}.jsonl", lines=True, dtype={"question": str})
        assert text.columns.tolist() == binary.columns.tolist()
        assert np.allclose(text.weight, binary.weight, atol=1e-12)
        assert text.question.tolist() == binary.question.tolist()
