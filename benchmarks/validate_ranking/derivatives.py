"""Directional derivatives in all parameters of the student: what a configuration's first step does to success on other questions.

D is the gradient that training by a configuration descends on the run's base rollouts (one backward pass, its directions as cotangents at
the logits), G that of expected success (policy gradient with leave-one-out baselines; Williams 1992, Kool et al. 2019). Questions are split
in halves, and a step on one is held against the success of the other, so that no question is scored on itself:

    full_drive      <D, G>                  gain for one unit of learning rate of plain gradient descent
    full_transfer   <D, G> / |D|            gain for one unit of step
    full_adam       <E sign(batch), G>      gain for one unit of Adam's learning rate at its first step, whose every coordinate has size 1

Adam's first step is the sign of a batch's gradient; its expectation, erf(D / sqrt(2 Var)) if batches are normal, is small where they
disagree.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd
import pyarrow.compute as pc
import torch
from settings import Setting, configurations
from torch import Tensor
from training import BATCH, Lesson, external, lessons_of, load, logits_of, token_weights

from gradalign.configurations import Configuration
from gradalign.models import CausalLanguageModel, LoadedModel
from gradalign.objectives import NodeSignals, parse_objective
from gradalign.store import Run

FULL = ("full_drive", "full_transfer", "full_adam")
_ROLLOUTS = 4 if os.environ.get("SMALL") == "1" else 16  # of each question, for a configuration's step; success takes all
_AT_ONCE = 64


@dataclass(frozen=True, eq=False)
class Step:
    """The mean gradient over batches of a training step, and its variance from batch to batch: (P,) each."""

    mean: Tensor
    variance: Tensor

    def directions(self) -> dict[str, Tensor]:
        """What training moves along, for each name of `FULL`."""
        noise = self.variance.sqrt().clamp_min(torch.finfo(torch.float64).tiny)
        return {
            "full_drive": self.mean,
            "full_transfer": self.mean / self.mean.norm().clamp_min(torch.finfo(torch.float64).tiny),
            "full_adam": torch.erf(self.mean / noise / 2**0.5),
        }


def derivatives(setting: Setting, run: Run) -> pd.DataFrame:
    """A row a configuration, with the columns of `FULL`."""
    student = load(setting.student)
    assert isinstance(student.language_model, CausalLanguageModel)
    rollouts = base_rollouts(run)
    halves = [set(list(rollouts)[half::2]) for half in range(2)]
    wanted = {how.name: lessons_of(run, how, student) for how in configurations()}
    every = {lesson.question.id: lesson for lessons in wanted.values() for lesson in lessons}
    success = [success_gradient(student, [every[name] for name in sorted(half & {*every})], rollouts) for half in halves]
    rows = []
    for how in configurations():
        steps = [
            training_step(student, how, [lesson for lesson in wanted[how.name] if lesson.question.id in half], rollouts)
            for half in halves
        ]
        found = [step.directions() for step in steps]
        gains = {name: float(sum(found[i][name] @ success[1 - i] for i in range(2))) / 2 for name in FULL}
        rows.append({"questions": setting.questions, "student": setting.student, "configuration": how.name} | gains)
    return pd.DataFrame(rows)


def base_rollouts(run: Run) -> dict[str, list[tuple[np.ndarray, float]]]:
    """Tokens and reward of every base rollout, by question."""
    frame = run.frame("rollouts", ["question", "rollout", "tokens", "reward"], pc.field("purpose") == "base")
    return {
        str(question): [(np.array(row.tokens), float(row.reward)) for row in mine.sort_values("rollout").itertuples()]
        for question, mine in frame.groupby("question", sort=True)
    }


def success_gradient(
    student: LoadedModel, lessons: Sequence[Lesson], rollouts: dict[str, list[tuple[np.ndarray, float]]]
) -> Tensor:
    """Gradient of mean success over questions: (P,)."""
    prompts, tokens, advantages = [], [], []
    for lesson in lessons:
        mine = rollouts[lesson.question.id]
        rewards = np.array([reward for _, reward in mine])
        prompts += [lesson.prompt] * len(mine)
        tokens += [sampled for sampled, _ in mine]
        advantages += list(rewards - (rewards.sum() - rewards) / (len(mine) - 1))
    body, total = _body(student), 0.0
    for start in range(0, len(prompts), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)

        def cotangent(logits: Tensor, part: slice = part) -> Tensor:
            taken, lengths = torch.from_numpy(np.concatenate(tokens[part])), [len(sampled) for sampled in tokens[part]]
            direction = -logits.softmax(-1)
            direction[torch.arange(len(taken)), taken] += 1
            return direction * torch.from_numpy(np.repeat(advantages[part], lengths)).float()[:, None]

        total = total + pulled_back(body, prompts[part], tokens[part], cotangent)
    return torch.as_tensor(total) / len(prompts)


def training_step(
    student: LoadedModel,
    how: Configuration,
    lessons: Sequence[Lesson],
    rollouts: dict[str, list[tuple[np.ndarray, float]]],
) -> Step:
    """What a batch of training by this configuration moves the parameters along, over batches of base rollouts of about that size."""
    name = external(how)
    body, teacher = _body(student), _body(student if name is None else load(name))
    objective = parse_objective(how.objective)
    items = [(lesson, *rollouts[lesson.question.id][i]) for i in range(_ROLLOUTS) for lesson in lessons]
    found, edges = [], np.linspace(0, len(items), 1 + max(2, len(items) // BATCH)).astype(int)
    for start, stop in pairwise(edges.tolist()):
        batch = items[start:stop]
        tokens = [sampled for _, sampled, _ in batch]

        def cotangent(logits: Tensor, batch=batch, tokens=tokens) -> Tensor:
            taught = logits_of(teacher, [lesson.teacher_prompt for lesson, _, _ in batch], tokens)
            logprobs = logits.log_softmax(-1)
            direction = objective.direction(NodeSignals(logprobs, taught.log_softmax(-1)))
            counts = token_weights(how, logprobs, [(lesson.weight, 1 - reward) for lesson, _, reward in batch], tokens)
            return direction * counts[:, None] / len(batch)

        found.append(pulled_back(body, [lesson.prompt for lesson, _, _ in batch], tokens, cotangent))
    every = torch.stack(found)
    return Step(every.mean(0), every.var(0) * len(items) / len(found) / BATCH)


def pulled_back(
    body: torch.nn.Module,
    prompts: Sequence[tuple[int, ...]],
    rollouts: Sequence[np.ndarray],
    cotangent: Callable[[Tensor], Tensor],
) -> Tensor:
    """The sum over tokens of J^T d, with J the Jacobian of the logits in the parameters and d the `cotangent` of these: (P,)."""
    parameters = [parameter for parameter in body.parameters() if parameter.requires_grad]
    with torch.enable_grad():
        logits = logits_of(body, prompts, rollouts)
    with torch.no_grad():
        direction = cotangent(logits.detach())
    gradients = torch.autograd.grad(logits, parameters, direction)
    return torch.cat([gradient.flatten() for gradient in gradients]).double()


def _body(model: LoadedModel) -> torch.nn.Module:
    assert isinstance(model.language_model, CausalLanguageModel)
    return model.language_model.model
