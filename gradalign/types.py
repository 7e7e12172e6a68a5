"""The nouns that every other room speaks: frozen records and the axis letters, nothing else.

Array names end in the letters of their axes:

    Q questions · R rollouts · T positions of a rollout · N nodes (prefixes) · K candidate tokens of a node
    V vocabulary · C teachers · O objectives · S statistics · B bootstrap draws

This module knows no model, no file and no terminal.
"""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

AnswerKind = Literal["numeric", "boolean", "choice", "exact", "math", "regex", "function"]
StopReason = Literal["stop", "length"]
Outcome = Literal["right", "wrong", "ungradable"]


REWARDS = "rewards"  # stands for the teacher of objectives that look at rewards alone


class GradalignError(Exception):
    """A fault that the user can mend: one line that names the thing and the mend (exit code 2, no traceback)."""


@dataclass(frozen=True)
class Question:
    """A question with a checkable answer. `solution` is the data set's own worked solution, where it has one.

    `grader` is the user's own function as `MODULE:FUNCTION`, for the kind `function`. It comes from a run's settings, never from a file.
    """

    id: str
    text: str
    answer: str
    kind: AnswerKind = "exact"
    choices: tuple[str, ...] = ()
    solution: str | None = None
    difficulty: str | None = None
    grader: str | None = None


@dataclass(frozen=True)
class CompletionRequest:
    """Sample `len(seeds)` completions of one prefix, each with its own seed (64 bits, from its identity)."""

    prefix: tuple[int, ...]
    seeds: tuple[int, ...]
    max_tokens: int


@dataclass(frozen=True, eq=False)
class Completion:
    """One sampled continuation: `tokens` (T,) with the stop token if there is one, `logprobs` (T,) of the sampler, in nats."""

    request: int
    replicate: int
    tokens: np.ndarray
    logprobs: np.ndarray
    stop: StopReason


@dataclass(frozen=True)
class Grade:
    """What a grader says of a text: reward in [0, 1], the outcome, the answer it read (None where it found none), why it is ungradable."""

    reward: float
    outcome: Outcome
    answer: str | None
    reason: str | None = None


@dataclass(frozen=True, eq=False)
class Rollout:
    """A graded base rollout of a question, sampled on-policy from the question's own prompt."""

    index: int
    completion: Completion
    text: str
    grade: Grade


@dataclass(frozen=True)
class TeacherSpec:
    """Who teaches: the student itself (`model` None) or another model, under `context`; demonstrations come from `source`.

    Written `ctx:NAME`, `model:NAME`, `model:NAME+ctx:NAME` or `ctx:NAME@model:NAME`; a served model is `server:URL#MODEL` where another one
    is `model:NAME`, and keeps its `server:` in `model` and `source`.
    """

    name: str
    context: str = "none"
    model: str | None = None
    source: str | None = None


@dataclass(frozen=True)
class Skip:
    """Something left out of a run, and why: unknown is not zero."""

    question: str
    teacher: str | None
    reason: str
    detail: str = field(default="")
