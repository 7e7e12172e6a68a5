"""First steps of a run's configurations: gradients on some questions, held against the success of the others.

For a configuration D is the gradient that its training follows on the base rollouts of the questions it is taught, and v a step made of it:
Adam's expected first one, or D itself. What v does to the success of a question is its directional derivative, the policy gradient along v:

    slope = mean over rollouts of advantage x d log pi(rollout) / d step

with the derivative from two forward passes, a small step ahead and one back. Questions are split in halves, each taught to the other, so
that no question is scored on itself. For every configuration that is a backward pass and about six forward passes over its rollouts.
"""

# pandas types its results too widely for these rules.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false, reportReturnType=false

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.compute as pc
import torch

from gradalign.configurations import Configuration, QuestionWeighting, TokenWeighting
from gradalign.contexts import parse_teacher
from gradalign.endpoint import PREFIX
from gradalign.first_step.directions import Rollouts, advantages, rollout_direction, told_by_single_rollouts
from gradalign.first_step.moments import Moments, Parameters, Step
from gradalign.first_step.student import Text, Trainee
from gradalign.models import CausalLanguageModel
from gradalign.objectives import brought, parse_objective
from gradalign.pipeline import Cast, Execution, Progress, RunConfig, Silent, load_cast
from gradalign.pipeline.work import fitting_threads
from gradalign.store import FirstSteps, Place, Run, load_run
from gradalign.types import REWARDS, GradalignError

OPTIMISER_BATCH = 32
ROLLOUTS = 16
_FEWEST = 4  # questions, so that each half has two
_FIRST_TRY, _FEW = 1e-3, 16  # the length of the first small step, and the rollouts that it is tried on
_ROUNDING = 1e-5  # directions at a token below this length are none: Adam would make a whole step of them
_NUDGE = (
    0.05  # nats that a rollout's log-probability moves by, root mean square: far above rounding, and still as good as straight
)


@dataclass(frozen=True, eq=False)
class Taught:
    """A question: the student's prompt, its base rollouts and what they are worth."""

    question: str
    prompt: tuple[int, ...]
    rollouts: Rollouts
    pass_rate: float

    @property
    def texts(self) -> list[Text]:
        return [(self.prompt, tokens) for tokens in self.rollouts.tokens]

    @property
    def mixed(self) -> bool:
        """Do rewards differ? Where they do not, no step shows."""
        return bool(np.ptp(self.rollouts.reward_R) > 0)


@dataclass(frozen=True)
class Unit:
    """What one gradient is taken of: a teacher and an objective, and how questions and tokens count."""

    teacher: str
    objective: str
    questions: QuestionWeighting
    tokens: TokenWeighting

    @property
    def key(self) -> tuple[str, str, str, str]:
        return self.teacher, self.objective, str(self.questions), str(self.tokens)


def foretell(
    run: Run | str | Place,
    configurations: Sequence[Configuration] = (),
    objectives: Sequence[str] = (),
    rollouts: int = ROLLOUTS,
    batch: int = OPTIMISER_BATCH,
    trust_remote_code: bool = False,
    execution: Execution | None = None,
    progress: Progress | None = None,
    cast: Cast | None = None,
) -> pd.DataFrame:
    """Find what a first training step by each teacher and objective of a run, and by each configuration, does to other questions.

    The rows are kept in the run's folder (`gradalign.store.FIRST_STEPS` tells their meaning), where `rank` finds them, and returned. Of
    each question `rollouts` base rollouts are used; `batch` is how many of them an optimiser's step will take. What is there already is
    not done again. Models are loaded in float32 unless `cast` brings them, and memory is needed for about five times the student's
    weights, and for the teacher's hidden states at these rollouts.

    A run's folder may come from anyone: code beside a model's files is run only with `trust_remote_code`, and an objective that is a
    function is imported only if it is among `objectives`, which are all that is looked at where any are given.
    """
    run, progress = run if isinstance(run, Run) else load_run(run), progress or Silent()
    kept = FirstSteps(run.path, rollouts, batch)
    units = _units(run, configurations, objectives)
    known = kept.known(run.frame("questions", ["question"])["question"])
    wanted = [unit for unit in units if unit.key not in known]
    if wanted:
        progress.stage("loading models")
        if cast is None:
            config = _config(run, units, trust_remote_code)
            cast = load_cast(config, replace(execution or Execution(), engine="hf", unnamed=config.teachers))
        student = cast.student.model.language_model
        if not isinstance(student, CausalLanguageModel):
            raise GradalignError(f"{student.name} is served: its weights are not here to take gradients of")
        work = Foretelling(run, cast, Trainee(student), rollouts, batch)
        progress.begin(len(wanted) * len(work.taught), 0)
        with fitting_threads(cast):
            for unit in wanted:
                progress.stage(f"{unit.objective} under {unit.teacher}")
                kept.add(unit.key, work.rows(unit, progress))
    frame = kept.frame()
    keys = {unit.key for unit in units}
    return frame[[key in keys for key in zip(*(frame[name] for name in FirstSteps.KEYS), strict=True)]].reset_index(drop=True)


def _units(run: Run, configurations: Sequence[Configuration], objectives: Sequence[str]) -> list[Unit]:
    """Every pair that the run has scores of and every stage of the configurations, where single rollouts tell of it, by teacher."""
    scored = run.frame("scores", ["teacher", "objective"]).drop_duplicates()
    asked = [pair for pair in zip(scored["teacher"], scored["objective"], strict=True) if _asked(pair[1], objectives)]
    alike = [(*pair, QuestionWeighting(), TokenWeighting()) for pair in asked]
    weighted = [(*pair, c.questions, c.tokens) for c in configurations for pair in c.pairs if pair in asked]
    units = [Unit(*each) for each in (*alike, *weighted) if each[3].kind != "positive_alignment"]
    if not units:
        raise GradalignError(
            f"run {run.path} has no objective whose first step single rollouts tell; score with --objective reverse_kl"
        )
    place = {teacher: i for i, teacher in enumerate(dict.fromkeys(unit.teacher for unit in units))}
    return sorted(dict.fromkeys(units), key=lambda unit: place[unit.teacher])


def _asked(objective: str, objectives: Sequence[str]) -> bool:
    wanted = objective in objectives if objectives else not brought(objective)
    return wanted and told_by_single_rollouts(parse_objective(objective))


def _config(run: Run, units: Sequence[Unit], trust_remote_code: bool) -> RunConfig:
    """What of the run's settings says how its student and teaching models are loaded; weights in float32."""
    teaching = dict.fromkeys(parse_teacher(unit.teacher).model for unit in units if unit.teacher != REWARDS)
    names = [name if name.startswith(PREFIX) else f"model:{name}" for name in teaching if name is not None]
    kept = ("student", "questions", "temperature", "chat_template", "thinking", "attention", "teacher_top_k", "cross_tokenizer")
    settings = {name: run.identity[name] for name in kept}
    return RunConfig(teachers=tuple(names) or ("ctx:none",), dtype="float32", trust_remote_code=trust_remote_code, **settings)


class Foretelling:
    """The run's questions in two halves, the models, and the work on one unit after another."""

    def __init__(self, run: Run, cast: Cast, trainee: Trainee, rollouts: int, batch: int):
        self.cast, self.trainee, self.batch = cast, trainee, batch
        self.questions = [str(question) for question in run.frame("questions", ["question"])["question"]]
        self.taught = list(_taught(run, cast, rollouts))
        if len(self.taught) < _FEWEST:
            raise GradalignError(
                f"run {run.path} has {len(self.taught)} questions with two rollouts each; first steps need {_FEWEST}"
            )
        contexts = run.frame("contexts", ["question", "teacher", "prompt_tokens"])
        self.prompts: dict[str, dict[str, tuple[int, ...]]] = {}
        for row in contexts.itertuples():
            self.prompts.setdefault(str(row.teacher), {})[str(row.question)] = tuple(row.prompt_tokens.tolist())
        self._read: tuple[str | None, dict[str, list[torch.Tensor]]] = (None, {})

    def rows(self, unit: Unit, progress: Progress) -> list[dict[str, Any]]:
        """A row for each question: the slopes of its success along the steps that the other half's questions make."""
        found = {question: {"question": question, "adam": None, "plain": None, "norm2": None} for question in self.questions}
        for half in range(2):
            lessons, others = self.taught[half::2], self.taught[1 - half :: 2]
            step = self.step(unit, lessons)
            if step is not None:
                slopes = [self.slopes(along, others) for along in (step.expected_sign(self.batch), step.mean)]
                for other, adam, plain in zip(others, *slopes, strict=True):
                    found[other.question] |= {"adam": float(adam), "plain": float(plain), "norm2": step.norm2}
            progress.advance(len(others))
        return list(found.values())

    def step(self, unit: Unit, lessons: Sequence[Taught]) -> Step | None:
        """The gradient of the unit's training on those of the questions that its teacher has a prompt for; None where it has too few."""
        if unit.teacher != REWARDS:
            lessons = [lesson for lesson in lessons if lesson.question in self.prompts[unit.teacher]]
        weight_Q = unit.questions.weights(np.array([lesson.pass_rate for lesson in lessons]))
        items = [(q, i) for q, lesson in enumerate(lessons) for i in range(len(lesson.rollouts.tokens))]
        items.sort(key=lambda item: (item[1], item[0]))  # a batch holds as many questions as it can
        if len(items) < 2 or np.isnan(weight_Q).any():
            return None
        edges = np.linspace(0, len(items), 1 + max(2, len(items) // self.batch)).astype(int).tolist()
        moments = Moments(self.trainee.parameters)
        for start, stop in pairwise(edges):
            chosen = items[start:stop]
            gradient = self._gradient(unit, [(lessons[q], i, float(weight_Q[q])) for q, i in chosen])
            moments.add([each / len(chosen) for each in gradient], len(chosen))
        return moments.step()

    def _gradient(self, unit: Unit, batch: Sequence[tuple[Taught, int, float]]) -> Parameters:
        """The sum of what the batch's rollouts move the parameters by."""
        objective = parse_objective(unit.objective)

        def cotangent(places: Sequence[int], student_NV: torch.Tensor) -> torch.Tensor:
            mine = [batch[place] for place in places]
            rollouts = Rollouts(
                [lesson.rollouts.tokens[i] for lesson, i, _ in mine],
                *(
                    np.array([getattr(lesson.rollouts, name)[i] for lesson, i, _ in mine])
                    for name in ("reward_R", "advantage_R")
                ),
            )
            asked = [(lesson, i) for lesson, i, _ in mine]
            taught = student_NV if unit.teacher == REWARDS else self._taught_logprobs(unit.teacher, asked).to(student_NV)
            direction = rollout_direction(objective, student_NV, taught, rollouts)
            count_N = _counts(unit, student_NV, rollouts, [weight for *_, weight in mine])
            return direction * torch.where(direction.norm(dim=-1) < _ROUNDING, 0.0, count_N)[:, None]

        return self.trainee.gradient([lesson.texts[i] for lesson, i, _ in batch], cotangent)

    def _taught_logprobs(self, teacher: str, asked: Sequence[tuple[Taught, int]]) -> torch.Tensor:
        """The teacher's log-probabilities at every token of the rollouts, one behind the other: (N, V).

        Its hidden states of all rollouts of a question are made at once, and kept until another teacher is asked.
        """
        model = self.cast.member(parse_teacher(teacher).model).model.language_model
        if self._read[0] != teacher:
            self._read = teacher, {}
        states = self._read[1]
        for lesson, _ in asked:
            if lesson.question not in states:
                prompt = self.prompts[teacher][lesson.question]
                states[lesson.question] = model.hidden_states(prompt, lesson.rollouts.tokens)
        return model.logprobs(torch.cat([states[lesson.question][i] for lesson, i in asked]))

    def slopes(self, step: Parameters, questions: Sequence[Taught]) -> np.ndarray:
        """d success / d step of each question: (Q,)."""
        mixed = [place for place, question in enumerate(questions) if question.mixed]
        texts = [text for place in mixed for text in questions[place].texts]
        slopes = np.zeros(len(questions))
        if not texts or not any(bool(each.any()) for each in step):
            return slopes
        changes, at = self._changes(step, texts), 0
        for place in mixed:
            advantage = questions[place].rollouts.advantage_R
            slopes[place] = (advantage * changes[at : at + len(advantage)]).mean()
            at += len(advantage)
        return slopes

    def _changes(self, step: Parameters, texts: Sequence[Text]) -> np.ndarray:
        """d log pi of each rollout along the step, by central differences of a size that a few of them settle."""
        length = sum(float(each.double().square().sum()) for each in step) ** 0.5
        size, few = _FIRST_TRY / length, texts[:: -(-len(texts) // _FEW)]
        for _ in range(6):
            seen = float(np.sqrt(np.mean(self._difference(step, few, size) ** 2)))
            if 0.5 * _NUDGE < seen < 2 * _NUDGE:
                break
            size *= np.clip(_NUDGE / max(seen, 1e-12), 0.02, 50)
        return self._difference(step, texts, size) / size

    def _difference(self, step: Parameters, texts: Sequence[Text], size: float) -> np.ndarray:
        """Half of what log pi differs by between a step of this size and one back."""
        found = []
        for sign in (1, -1):
            with self.trainee.moved(step, sign * size):
                found.append(self.trainee.loglikelihoods(texts))
        return (found[0] - found[1]) / 2


def _taught(run: Run, cast: Cast, most: int) -> Iterator[Taught]:
    """The run's questions that have at least two base rollouts, in the order of their set."""
    every = run.frame("rollouts", ["question", "rollout", "tokens", "reward"], pc.field("purpose") == "base")
    groups = {question: rows.sort_values("rollout") for question, rows in every.groupby("question", sort=False)}
    for row in run.frame("questions", ["question", "order", "prompt", "pass_rate"]).sort_values("order").itertuples():
        mine = groups.get(row.question)
        if mine is None or len(mine) < 2:
            continue
        mine = mine.head(most)
        reward = mine["reward"].to_numpy(dtype=np.float64)
        rollouts = Rollouts([np.asarray(each, dtype=np.int64) for each in mine["tokens"]], reward, advantages(reward))
        prompt = cast.student.model.codec.prompt(str(row.prompt))
        yield Taught(str(row.question), prompt, rollouts, float(row.pass_rate))


def _counts(unit: Unit, student_NV: torch.Tensor, rollouts: Rollouts, weights: Sequence[float]) -> torch.Tensor:
    """How much each token counts: its question's weight, times what the weighting of tokens gives it within its rollout. (N,)"""
    entropy_N = -torch.where(student_NV > -torch.inf, student_NV.exp() * student_NV, 0.0).sum(-1).double().cpu().numpy()
    found = [
        weight * unit.tokens.factors(mine, np.ones(len(mine)), np.full(len(mine), 1 - reward))
        for weight, reward, mine in zip(
            weights, rollouts.reward_R, np.split(entropy_N, np.cumsum(rollouts.lengths)[:-1]), strict=True
        )
    ]
    return torch.from_numpy(np.concatenate(found)).to(student_NV)
