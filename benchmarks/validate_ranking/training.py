"""Real on-policy distillation of a student by a configuration, small enough to be read whole: rollouts of the student as it is, the
direction of the objective at every token of them, one step of Adam.

What the teacher sees of a question is what the scored run stored. The direction is the library's own (`objectives.Objective.direction`),
handed to automatic differentiation as what the logits are to move by, summed over a rollout's tokens and averaged over rollouts.
"""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from settings import MAX_TOKENS
from torch import Tensor

from gradalign.configurations import Configuration
from gradalign.contexts import parse_teacher, render_question
from gradalign.engines import HFEngine
from gradalign.models import CausalLanguageModel, LoadedModel, LoadOptions, load_model
from gradalign.objectives import NodeSignals, parse_objective
from gradalign.questions import grade, load_questions
from gradalign.seeds import seed_of
from gradalign.store import Run
from gradalign.types import CompletionRequest, Question

BATCH = 32  # questions of a step, a rollout each


@dataclass(frozen=True, eq=False)
class Lesson:
    """A question, the student's prompt and the teacher's, and how much the question counts."""

    question: Question
    prompt: tuple[int, ...]
    teacher_prompt: tuple[int, ...]
    weight: float = 1.0


@cache
def load(name: str) -> LoadedModel:
    """A built-in model, loaded once; whoever changes it takes a copy."""
    return load_model(f"builtin:{name}", LoadOptions(device="cpu"))


def lessons_of(run: Run, configuration: Configuration, student: LoadedModel) -> list[Lesson]:
    """The questions that this configuration's teacher could be built for, weighted by their pass rates."""
    contexts = run.frame("contexts", ["question", "teacher", "prompt_tokens"])
    seen = contexts[contexts["teacher"] == configuration.teacher].set_index("question")["prompt_tokens"]
    rates = run.questions.set_index("question")["pass_rate"]
    questions = [question for question in load_questions(run.identity["questions"]) if question.id in seen.index]
    weights = configuration.questions.weights(np.array([rates[question.id] for question in questions]))
    return [
        Lesson(question, student.codec.prompt(render_question(question)), tuple(seen[question.id]), float(weight))
        for question, weight in zip(questions, weights, strict=True)
    ]


class Trainee:
    """A copy of the student, and the engine that samples from it as it is."""

    def __init__(self, student: LoadedModel):
        original = student.language_model
        assert isinstance(original, CausalLanguageModel)
        self.codec = student.codec
        self.language_model = CausalLanguageModel(deepcopy(original.model), original.name, original.vocabulary_size)
        self.engine = HFEngine(self.language_model, student.codec.stop_ids)

    def sample(self, prompts: Sequence[tuple[int, ...]], seeds: Sequence[tuple[int, ...]]) -> list[list[np.ndarray]]:
        """Rollouts of each prompt, one for each of its seeds."""
        requests = [CompletionRequest(prompt, own, MAX_TOKENS) for prompt, own in zip(prompts, seeds, strict=True)]
        found: list[list[np.ndarray]] = [[np.zeros(0, dtype=np.int64)] * len(own) for own in seeds]
        for completion in self.engine.complete(requests):
            found[completion.request][completion.replicate] = completion.tokens
        return found


class Exam:
    """Questions, each answered with the same seeds by whoever takes the same exam, so that what has not changed answers alike."""

    def __init__(self, questions: Sequence[Question], student: LoadedModel, rollouts: int, number: int = 0):
        self.questions = list(questions)
        self.prompts = [student.codec.prompt(render_question(question)) for question in self.questions]
        self.seeds = [
            tuple(seed_of("exam", number, i, replicate) for replicate in range(rollouts)) for i in range(len(self.questions))
        ]

    def right(self, trainee: Trainee) -> np.ndarray:
        """How many answers to each question are right: (Q,)."""
        answered = trainee.sample(self.prompts, self.seeds)
        return np.array([
            sum(grade(question, trainee.codec.text(tokens)).outcome == "right" for tokens in rollouts)
            for question, rollouts in zip(self.questions, answered, strict=True)
        ])  # fmt: skip


def logits_of(model: torch.nn.Module, prompts: Sequence[tuple[int, ...]], rollouts: Sequence[np.ndarray]) -> Tensor:
    """Logits that predict the tokens of the rollouts, one rollout after the other: (N, V)."""
    width = max(len(prompt) + len(tokens) for prompt, tokens in zip(prompts, rollouts, strict=True))
    ids = torch.zeros((len(prompts), width), dtype=torch.long)
    predicts = torch.zeros((len(prompts), width), dtype=torch.bool)
    for i, (prompt, tokens) in enumerate(zip(prompts, rollouts, strict=True)):
        ids[i, : len(prompt) + len(tokens)] = torch.from_numpy(np.concatenate([prompt, tokens]))
        predicts[i, len(prompt) - 1 : len(prompt) + len(tokens) - 1] = True
    return model(input_ids=ids, use_cache=False).logits[predicts].float()  # causal: what is padded behind is never seen


def train(
    trainee: Trainee,
    teacher: torch.nn.Module,
    lessons: Sequence[Lesson],
    how: Configuration,
    rate: float,
    steps: int,
    seed: int,
) -> Iterator[int]:
    """Train, and yield the number of steps done after each."""
    body, objective = trainee.language_model.model, parse_objective(how.objective)
    optimiser = torch.optim.Adam(body.parameters(), lr=rate)
    for step, batch in enumerate(batches(lessons, steps, seed)):
        rollouts = [
            found[0]
            for found in trainee.sample(
                [lesson.prompt for lesson in batch], [(seed_of("training", seed, step, i),) for i in range(len(batch))]
            )
        ]
        with torch.enable_grad():
            logits = logits_of(body, [lesson.prompt for lesson in batch], rollouts)
        with torch.no_grad():
            taught = logits_of(teacher, [lesson.teacher_prompt for lesson in batch], rollouts)
            student_logprobs = logits.log_softmax(-1)
            direction = objective.direction(NodeSignals(student_logprobs, taught.log_softmax(-1)))
            told = [
                (lesson.weight, _wrong(trainee, lesson, tokens, how)) for lesson, tokens in zip(batch, rollouts, strict=True)
            ]
            direction *= token_weights(how, student_logprobs, told, rollouts)[:, None] / len(batch)
        optimiser.zero_grad()
        logits.backward(-direction)
        optimiser.step()
        yield step + 1


def batches(lessons: Sequence[Lesson], steps: int, seed: int) -> Iterator[list[Lesson]]:
    """Questions in a random order, every one of them before any comes again."""
    rng = np.random.default_rng(seed_of("order of lessons", seed))
    waiting: list[int] = []
    for _ in range(steps):
        while len(waiting) < min(BATCH, len(lessons)):
            waiting += rng.permutation(len(lessons)).tolist()
        yield [lessons[i] for i in waiting[:BATCH]]
        del waiting[:BATCH]


def token_weights(
    how: Configuration, logprobs: Tensor, told: Sequence[tuple[float, float]], rollouts: Sequence[np.ndarray]
) -> Tensor:
    """How much each token counts, from the weight of each rollout's question and whether it went wrong (1) or not (0): (N,)."""
    entropy = -(logprobs.exp() * logprobs).sum(-1).double().numpy()
    found, start = [], 0
    for (weight, wrong), tokens in zip(told, rollouts, strict=True):
        own = entropy[start : start + len(tokens)]
        found.append(weight * how.tokens.factors(own, np.ones(len(own)), np.full(len(own), wrong)))
        start += len(tokens)
    return torch.from_numpy(np.concatenate(found)).float()


def _wrong(trainee: Trainee, lesson: Lesson, tokens: np.ndarray, how: Configuration) -> float:
    """Did a rollout go wrong? Asked only where tokens are weighted by it."""
    return 1 - grade(lesson.question, trainee.codec.text(tokens)).reward if how.tokens.kind == "incorrect_paths" else 0.0


def external(how: Configuration) -> str | None:
    """The built-in model that teaches; None where it is the student as it was."""
    name = None if how.teacher is None else parse_teacher(how.teacher).model
    return None if name is None else name.removeprefix("builtin:")
