"""What is handed over, against the TRL that is installed: argument names, losses by autodiff, and one real training step of each kind."""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import gradalign
from gradalign import Configuration, export_configuration, load_configurations
from gradalign.builtin import builtin_path
from gradalign.configurations import QuestionWeighting, parse_tokens
from gradalign.handover.mapping import TRL, loss_of
from gradalign.objectives import NodeSignals, parse_objective

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("default")]

READY = load_configurations(Path(__file__).parents[1] / "configs")
LARGE = "model:builtin:large"
STUDENT = str(builtin_path("students") / "small")
OTHERS = (
    Configuration("larger", "jsd:0.3", LARGE, questions=QuestionWeighting("paced")),
    Configuration("larger, sampled", "sampled_kl", LARGE),
    Configuration("larger, context", "reverse_kl", f"{LARGE}+ctx:answer"),
    Configuration("larger, stages", "forward_kl", LARGE, then="reverse_kl"),
    Configuration("itself", "reverse_kl", "ctx:none"),
    Configuration("rewards, uncertain", "dr_grpo", tokens=parse_tokens("entropy_top:0.2")),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    own = folder / "own.j2"
    own.write_text("{{ answer }} it is. {{ prompt }}")
    contexts = ("correct_demo", "correct_wrong_demo", "wrong_demo", "summary", "reference", "answer", "none", str(own))
    teachers = [f"ctx:{name}" for name in contexts] + [LARGE, f"{LARGE}+ctx:answer"]
    return gradalign.score(teachers=teachers, out=folder / "r", limit=6, rollouts=8, budget=8, demonstrations=8)


def own_template(run) -> Configuration:
    return Configuration("own", "reverse_kl", next(t for t in run.identity["teachers"] if t.endswith(".j2")))


def script(folder: Path):
    """The exported train.py as a module."""
    spec = importlib.util.spec_from_file_location("exported_train", folder / "train.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def settings_of(module, told: dict, arguments: dict, folder: Path):
    return module.CONFIGS[told["trainer"]](**arguments, output_dir=str(folder), bf16=False, max_steps=1)


@pytest.mark.parametrize("configuration", [*READY, *OTHERS], ids=lambda c: c.name)
def test_arguments_are_those_of_the_trainer(run, tmp_path, configuration):
    """Every name is a field of the config class, and the class takes every value."""
    found = export_configuration(run, configuration, tmp_path / "x")
    told = json.loads((found.folder / "trl.json").read_text())
    module = script(found.folder)
    for arguments in told["arguments"] if isinstance(told["arguments"], list) else [told["arguments"]]:
        assert {*arguments} <= {field.name for field in dataclasses.fields(module.CONFIGS[told["trainer"]])}
        made = settings_of(module, told, arguments, tmp_path / "out")
        assert made.max_completion_length == run.identity["max_tokens"]
        assert made.seed == run.identity["seed"]
        assert getattr(made, "beta", 0.0) == arguments.get("beta", 0.0)


def test_the_installed_version_is_the_one_that_is_named():
    from packaging.specifiers import SpecifierSet
    from trl import __version__

    assert __version__ in SpecifierSet(TRL)


TRAINERS = {"Dr. GRPO": "GRPOTrainer", "larger": "DistillationTrainer", "larger, stages": "DistillationTrainer"}


@pytest.mark.parametrize("name", [*(c.name for c in [*READY, *OTHERS]), "own"])
def test_the_script_trains(run, tmp_path, name):
    """One step of each stage on the built-in student moves its weights (a group may be all right: rewards get three)."""
    configuration = next(c for c in [*READY, *OTHERS, own_template(run)] if c.name == name)
    found = export_configuration(run, configuration, tmp_path / "x")
    assert found.trainer == TRAINERS.get(name, "GRPOTrainer" if configuration.teacher is None else "SDFTTrainer")
    steps = "3" if found.trainer == "GRPOTrainer" else str(len(configuration.objectives))
    command = [sys.executable, str(found.folder / "train.py"), "--model", STUDENT, "--max-steps", steps]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--output-dir", str(tmp_path / "out")], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert all(lost in done.stdout for lost in found.not_carried)
    before, after = load_file(f"{STUDENT}/model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    shared = {*before} & {*after}
    assert len(shared) > 10
    assert all(torch.isfinite(after[key]).all() for key in shared)
    assert max(float((after[key].float() - before[key].float()).abs().max()) for key in shared) > 0


def test_the_teacher_of_the_second_stage_is_the_student_before_training(run, tmp_path):
    found = export_configuration(run, next(c for c in READY if c.name == "PACED, two stages"), tmp_path / "x")
    told, module = json.loads((found.folder / "trl.json").read_text()), script(found.folder)
    rows = [json.loads(line) for line in (found.folder / "train.jsonl").read_text().splitlines()]
    tokenizer = module.AutoTokenizer.from_pretrained(STUDENT, padding_side="left")
    moved = module.AutoModelForCausalLM.from_pretrained(STUDENT)
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter.add_(0.1)
    settings = settings_of(module, told, told["arguments"][1], tmp_path / "out")
    trainer = module.build(told, moved, settings, module.Dataset.from_list(rows), tokenizer)
    before = load_file(f"{STUDENT}/model.safetensors")
    teacher = trainer.teacher_model.state_dict()
    assert all(torch.equal(teacher[key], before[key]) for key in before)


@pytest.mark.parametrize("name", ["own", "self, reference solution", "itself", "larger, context"])
def test_the_trainers_teacher_sees_what_it_saw_in_the_run(run, tmp_path, name):
    configuration = next(c for c in [*READY, *OTHERS, own_template(run)] if c.name == name)
    found = export_configuration(run, configuration, tmp_path / "x")
    told, module = json.loads((found.folder / "trl.json").read_text()), script(found.folder)
    rows = [json.loads(line) for line in (found.folder / "train.jsonl").read_text().splitlines()]
    tokenizer = module.AutoTokenizer.from_pretrained(STUDENT, padding_side="left")
    settings = settings_of(module, told, told["arguments"], tmp_path / "out")
    trainer = module.build(told, STUDENT, settings, module.Dataset.from_list(rows), tokenizer)
    seen = run.contexts[run.contexts.teacher == configuration.teacher].set_index("question").prompt_tokens
    none = torch.zeros(len(rows), 0, dtype=torch.long)
    built = trainer.teacher_context_builder.build(
        [row["prompt"] for row in rows], [row["privileged_context"] for row in rows], none, none
    )
    for row, ids, mask in zip(rows, built["teacher_input_ids"], built["teacher_attention_mask"], strict=True):
        assert ids[mask.bool()].tolist() == seen[row["question"]].tolist()
    width = sum(p.numel() for p in trainer.teacher_model.parameters())
    assert (width > sum(p.numel() for p in trainer.model.parameters())) == name.startswith("larger")


def test_questions_are_drawn_by_weight(run, tmp_path):
    found = export_configuration(run, OTHERS[0], tmp_path / "x")
    draw = script(found.folder).draw
    rows = [{"name": name, "weight": weight} for name, weight in (("a", 0.5), ("b", 0.0), ("c", 2.0), ("d", 1.5))]
    drawn = [row["name"] for row in draw(rows, 80, 0)]
    assert [drawn.count(name) for name in "abcd"] == [10, 0, 40, 30]
    counts = [[row["name"] for row in draw(rows, 3, seed)].count("a") for seed in range(800)]
    assert sum(counts) / 800 == pytest.approx(3 * 0.5 / 4, abs=0.06)
    assert {*counts} <= {0, 1}


def distributions() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return tuple(2 * torch.randn(6, 11, generator=generator, dtype=torch.float64) for _ in range(2))  # type: ignore[return-value]


@pytest.mark.parametrize("spec", ["reverse_kl", "forward_kl", "gkd", "jsd:0.1", "jsd:0.5", "jsd:0.9"])
def test_trl_moves_the_logits_as_the_objective_does(spec):
    """Descent of TRL's losses in the student's logits, by autodiff, against the direction; both trainers, with the exported number."""
    from trl.experimental.sdft.loss_utils import compute_full_logit_self_distillation_loss
    from trl.trainer.distillation_trainer import _chunked_divergence_loss

    student, teacher = distributions()
    wanted = parse_objective(spec).direction(NodeSignals(student.log_softmax(-1), teacher.log_softmax(-1)))
    beta = loss_of(spec).beta

    logits = student.clone().requires_grad_()
    compute_full_logit_self_distillation_loss(logits, teacher, distillation_alpha=beta).sum().backward()
    assert logits.grad is not None
    torch.testing.assert_close(-logits.grad, wanted, rtol=1e-6, atol=1e-9)

    hidden, head = student.float()[None].requires_grad_(), torch.eye(11)
    loss, _, count = _chunked_divergence_loss(
        hidden, teacher.float()[None], head.clone().requires_grad_(), head, torch.ones(1, 6), beta
    )
    (loss * count).backward()
    assert hidden.grad is not None
    torch.testing.assert_close(-hidden.grad[0].double(), wanted, rtol=1e-4, atol=1e-5)


def test_trl_moves_the_logits_at_sampled_tokens_as_sampled_kl_does():
    from trl.experimental.sdft.loss_utils import compute_sampled_token_self_distillation_loss

    student, teacher = distributions()
    tokens = torch.tensor([0, 3, 10, 3, 7, 1])
    frequency = torch.nn.functional.one_hot(tokens, 11).double()
    signals = NodeSignals(student.log_softmax(-1), teacher.log_softmax(-1), sample_frequency=frequency)
    logits = student[None].clone().requires_grad_()
    loss = compute_sampled_token_self_distillation_loss(logits, teacher[None], tokens[None], distillation_alpha=1.0)
    loss.sum().backward()
    assert logits.grad is not None
    torch.testing.assert_close(-logits.grad[0], parse_objective("sampled_kl").direction(signals), rtol=1e-6, atol=1e-9)


def test_preference_pairs_begin_as_forward_kl():
    """The nearest loss of `pbsd` is its direction where every pair is even, up to its length."""
    student, teacher = distributions()
    signals = NodeSignals(student.log_softmax(-1), teacher.log_softmax(-1))
    even = parse_objective("pbsd:0.3").known_direction(signals)
    forward = parse_objective("forward_kl").direction(signals)
    torch.testing.assert_close(even, 0.15 * forward)
    assert loss_of("pbsd:0.3").beta == loss_of("forward_kl").beta
