"""A configuration in the terms of TRL: which trainer, its arguments, and in words what that trainer does not do."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gradalign.configurations import Configuration
from gradalign.contexts import parse_teacher
from gradalign.endpoint import PREFIX
from gradalign.models.names import resolve_model
from gradalign.types import GradalignError, TeacherSpec

TRL = ">=1.16,<1.17"
SEPARATOR = "\n\n"  # between prompt and context in SDFTTrainer's own template


@dataclass(frozen=True)
class Loss:
    """What TRL can train of an objective: a divergence (`beta` 0 forward KL, 1 reverse KL, between generalised JSD), the same at sampled
    tokens only, or rewards; and what is `lost` of it."""

    kind: Literal["divergence", "sampled", "rewards"]
    beta: float = 1.0
    lost: str | None = None


@dataclass(frozen=True)
class TrlPlan:
    """What trl.json says. `contexts` are the rows' privileged contexts, None where the trainer takes none."""

    description: dict[str, Any]
    contexts: list[str] | None


def loss_of(objective: str) -> Loss:
    """The nearest loss that TRL has for an objective as the user wrote it."""
    if "@" in objective:
        second, _, first = objective.partition("@")
        nearest = loss_of(second)
        lost = f"The objective {objective} starts from the policy that a step of {first} would give: trained is {second} from the start."
        return Loss(nearest.kind, nearest.beta, lost if nearest.lost is None else f"{lost} {nearest.lost}")
    name, _, parameter = objective.partition(":")
    if name in ("reverse_kl", "gkd", "forward_kl"):
        return Loss("divergence", 0.0 if name == "forward_kl" else 1.0)
    if name == "jsd":
        return Loss("divergence", float(parameter or 0.5))
    if name == "sampled_kl":
        return Loss("sampled")
    if name == "dr_grpo":
        return Loss("rewards")
    if name == "success":
        lost = (
            "The objective success knows how each token ends on average: trained is Dr. GRPO, which has the rewards of a group."
        )
        return Loss("rewards", lost=lost)
    if name == "minillm":
        lost = "counts what a token does to the log-ratios of the tokens after it: trained is reverse KL token by token, without that."
        return Loss("divergence", lost=f"The objective {objective} {lost}")
    if name == "pbsd_target":
        lost = "reweights the teacher by reward: trained is reverse KL to the teacher as it is, without any reward."
        return Loss("divergence", lost=f"The objective {objective} {lost}")
    if name == "pbsd":
        lost = (
            "prefers the teacher's rollouts to the student's, pair by pair: trained is forward KL to the teacher on the student's "
            "rollouts, which is its direction while all pairs are even."
        )
        return Loss("divergence", 0.0, f"The objective {objective} {lost}")
    return Loss(
        "divergence", lost=f"The objective {objective} is a function of your own, unknown to TRL: trained is reverse KL."
    )


def trl_plan(
    configuration: Configuration, identity: dict[str, Any], prompts: Sequence[str], messages: Sequence[str | None]
) -> TrlPlan:
    """How TRL trains a configuration of a run with this identity; `messages` are what the teacher sees for each of the `prompts`."""
    stages = [configuration.objective, *([configuration.then] if configuration.then else [])]
    losses = [loss_of(objective) for objective in stages]
    rewards = [loss.kind == "rewards" for loss in losses]
    if any(rewards) and len(losses) > 1:
        raise GradalignError(f"configuration {configuration.name!r}: {stages[rewards.index(True)]} cannot be a stage of two")
    if configuration.teacher is None and not rewards[0]:
        raise GradalignError(f"configuration {configuration.name!r}: objective {stages[0]} needs a teacher; give it one")
    shared = {
        "temperature": float(identity["temperature"]),
        "top_p": 1.0,
        "top_k": 0,
        "max_completion_length": identity["max_tokens"],
        "chat_template_kwargs": {"enable_thinking": identity["thinking"]},
        "seed": identity["seed"],
    }
    lost = [loss.lost for loss in losses if loss.lost is not None]
    notes: list[str] = []
    student = _located(str(identity["student"]))
    if student["gguf_file"] is not None:
        lost.append(
            f"The student is the GGUF file {student['gguf_file']}: give --model the folder of the model it was made from."
        )
    contexts, teacher, sees = None, None, "prompt"
    if rewards[0]:
        trainer = "GRPOTrainer"
        arguments = [_grpo(configuration, identity, lost, notes) | shared]
    else:
        assert configuration.teacher is not None
        spec = parse_teacher(configuration.teacher)
        teacher = None if spec.model is None else _located(spec.model)
        if spec.model is not None and spec.model.startswith(PREFIX):
            lost.append(
                f"The teacher {spec.model} is served, and trainers load weights: put their folder or hub id in its place."
            )
        if spec.model is not None and spec.context == "none" and all(loss.kind == "divergence" for loss in losses):
            trainer = "DistillationTrainer"
            arguments = [
                {"beta": loss.beta, "teacher_model_name_or_path": teacher["model"]} | shared for loss in losses if teacher
            ]
        else:
            trainer = "SDFTTrainer"
            sees, template, contexts = _composed(prompts, [message or "" for message in messages])
            arguments = [_sdft(loss, teacher, template) | shared for loss in losses]
            lost.append(
                "SDFTTrainer takes the mean over the tokens of each rollout first, so a token of a short rollout counts more than one of "
                "a long rollout; in the run all tokens count alike."
            )
        if spec.place == "system":
            lost.append(
                "The teacher's system message: trained is with its text before the question, in the user message, since the trainers put "
                "what the teacher sees there."
            )
        notes.append(_teacher_note(spec))
        if spec.model is not None:
            lost.append(
                f"The teacher {spec.model} reads its prompt in the student's chat template: in the run it read it in its own. "
                "That is the same for models of one family with one template."
            )
    if configuration.then is not None:
        lost.append(
            f"The step size {configuration.step:g} of the first stage: trained is each stage with half of the steps and an optimiser of "
            "its own; how far the first one leads is up to the learning rate."
        )
    if configuration.tokens.kind != "all" and not (rewards[0] and configuration.tokens.kind == "entropy_top"):
        lost.append(
            f"Token weights ({configuration.tokens}): trained are all tokens of fresh rollouts alike. tokens.parquet has the weights of "
            "the run's own rollouts."
        )
    description = {
        "trl": TRL,
        "trainer": trainer,
        "student": student,
        "teacher": teacher,
        "teacher_sees": sees,
        "arguments": arguments if len(arguments) > 1 else arguments[0],
        "not_carried": lost,
        "notes": notes,
    }
    return TrlPlan(description, contexts)


def _located(name: str) -> dict[str, str | None]:
    """Where the model of that name lies, as transformers take it; the name itself where that is not known here."""
    try:
        source = resolve_model(name)
    except GradalignError:
        return {"model": name, "gguf_file": None}
    if source.kind == "server":
        return {"model": name, "gguf_file": None}
    location = source.location if source.kind == "hub" else str(Path(source.location).resolve())
    return {"model": location, "gguf_file": source.gguf_file}


def _teacher_note(spec: TeacherSpec) -> str:
    if spec.model is not None:
        return f"The teacher is {spec.model}, held fixed."
    return "The teacher is the student as it was before training, held fixed, as in the run (teacher_model_kind base)."


def _composed(prompts: Sequence[str], messages: Sequence[str]) -> tuple[str, str | None, list[str]]:
    """How the teacher's messages come of the prompts: what the teacher sees, a template (None is TRL's own), and the rows' contexts."""
    pairs = list(zip(prompts, messages, strict=True))
    for template, between in ((None, SEPARATOR), ("{prompt}{privileged_context}", "")):
        if all(message.startswith(prompt + between) for prompt, message in pairs):
            return "prompt and context", template, [message[len(prompt + between) :] for prompt, message in pairs]
    return "context", None, [*messages]


def _sdft(loss: Loss, teacher: dict[str, Any] | None, template: str | None) -> dict[str, Any]:
    """Arguments of SDFTTrainer. Its prompts may be as long as they are, and each question gets one rollout, as in DistillationTrainer."""
    found: dict[str, Any] = {
        "distillation_mode": "full_logits" if loss.kind == "divergence" else "sampled_token",
        "distillation_alpha": loss.beta,
        "teacher_model_kind": "base" if teacher is None else "live",  # train.py then puts the other model in its place
        "max_prompt_length": None,
        "num_generations": 1,
    }
    return found | ({} if template is None else {"teacher_prompt_template": template})


def _grpo(configuration: Configuration, identity: dict[str, Any], lost: list[str], notes: list[str]) -> dict[str, Any]:
    """Arguments of GRPOTrainer as Dr. GRPO: no division by lengths or deviations, no reference model."""
    found: dict[str, Any] = {"loss_type": "dr_grpo", "scale_rewards": "none", "beta": 0.0}
    if configuration.teacher is not None:
        lost.append(
            f"The teacher {configuration.teacher}: {configuration.objective} looks at rewards alone, and trained is that."
        )
    if configuration.tokens.kind == "entropy_top":
        found["top_entropy_quantile"] = configuration.tokens.share
        notes.append("The share of tokens of highest entropy is taken of each batch; in the run of each question's rollouts.")
    lost.append(
        f"Groups of {identity['rollouts']} rollouts: trained is with TRL's groups of 8 (num_generations), whose mean reward is noisier."
    )
    return found
