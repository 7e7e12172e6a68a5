"""What is found for one question, before it is arranged in rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from gradalign.pipeline.outcomes import PairsSeen
from gradalign.pipeline.prompts import TeacherPrompt
from gradalign.pipeline.rollouts import Pool
from gradalign.pipeline.scoring import Evidence, Step, SupportScores, TotalScores
from gradalign.pipeline.survey import Survey
from gradalign.pipeline.targeted import Plan, TargetedRollout
from gradalign.tree import PrefixTree
from gradalign.types import Question, Rollout, Skip


@dataclass(eq=False)
class Scored:
    """Everything found for the nodes of one question."""

    tree: PrefixTree
    survey: Survey
    plan: Plan
    evidence: Evidence
    full: SupportScores
    visited: SupportScores
    totals: TotalScores
    dot_CO: np.ndarray
    d_norm2_CO: np.ndarray
    steps: Mapping[tuple[int, int, int], Step]
    ideal: Step | None
    pairs: Mapping[tuple[int, int], PairsSeen]
    visits_N: np.ndarray
    weight_M: np.ndarray
    token_texts: Mapping[int, str]


@dataclass(eq=False)
class QuestionResult:
    """Everything found for one question; `scored` is None where no teacher could be had or no rollout made."""

    question: Question
    order: int
    rollouts: list[Rollout] = field(default_factory=list)
    pieces: list[list[str]] = field(default_factory=list)
    pools: Mapping[str | None, Pool] = field(default_factory=dict)
    taught: dict[str, list[Rollout]] = field(default_factory=dict)
    prompts: Sequence[TeacherPrompt] = ()
    skips: list[Skip] = field(default_factory=list)
    other_tokens: int = 0
    targeted: Sequence[TargetedRollout] = ()
    scored: Scored | None = None
