"""Objectives whose direction rests on what rollouts bring: later log-ratios (MiniLLM), rewards, weights of preference pairs (PBSD)."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Float

from gradalign.models import Batches, LanguageModel
from gradalign.objectives import Objective, Outcome
from gradalign.pipeline.scoring import Brought, Evidence, Gathered, Step, step_along, steps_of
from gradalign.pipeline.survey import Survey
from gradalign.pipeline.targeted import TargetedRollout
from gradalign.returns import (
    align_outcome,
    align_pairs,
    branch_returns,
    effective_share,
    future_returns,
    pair_returns,
    pair_weights,
    return_coefficients,
    success_as_returns,
)
from gradalign.types import Rollout

_CELLS = 1 << 25


@torch.inference_mode()
def later_logprobs(model: LanguageModel, prompt: tuple[int, ...], rollouts: Sequence[TargetedRollout]) -> list[np.ndarray]:
    """Log-probabilities under the model of what targeted rollouts sampled after their forced tokens; one forward pass a rollout."""
    longest = max((len(rollout.tokens) for rollout in rollouts), default=1)
    batches = Batches(max(1, _CELLS // (model.vocabulary_size * longest)), "forward passes over targeted rollouts")

    def work(start: int, stop: int) -> list[np.ndarray]:
        chunk = rollouts[start:stop]
        firsts = [len(rollout.branch.path) for rollout in chunk]
        states = model.hidden_states(prompt, [rollout.tokens for rollout in chunk])
        later = torch.cat([state[first:] for state, first in zip(states, firsts, strict=True)])
        tokens = np.concatenate([rollout.tokens[first:] for rollout, first in zip(chunk, firsts, strict=True)])
        chosen = torch.from_numpy(tokens.astype(np.int64)).to(later.device)[:, None]
        values = model.logprobs(later).gather(1, chosen)[:, 0].double().cpu().numpy() if len(tokens) else np.zeros(0)
        return np.split(values, np.cumsum([len(r.tokens) - first for r, first in zip(chunk, firsts, strict=True)])[:-1])

    return [values for part in batches.over(len(rollouts), work) for values in part]


def log_ratios(survey: Survey, teacher: int, gathered: Gathered, later: Sequence[np.ndarray]) -> Float[np.ndarray, "R T"]:
    """log tau - log pi of every step of every rollout; `later` are the teacher's log-probabilities after forced tokens."""
    path_RT = gathered.flow.tree.path_RT
    there = gathered.place_NK >= 0
    by_node = np.zeros(len(gathered.flow.tree))
    by_node[gathered.place_NK[there]] = (survey.teacher_logprobs_CNK[teacher] - survey.student_logprobs_NK)[there]
    base = len(path_RT) - len(gathered.targeted)
    ratio_RT = np.where(path_RT >= 0, by_node[np.maximum(path_RT, 0)], 0.0)
    for row, (rollout, logprobs) in enumerate(zip(gathered.targeted, later, strict=True), start=base):
        first = len(rollout.branch.path)
        ratio_RT[row, first : first + len(logprobs)] = logprobs - rollout.completion.logprobs
    return ratio_RT


@dataclass(frozen=True, eq=False)
class Teaching:
    """A teacher of a question: its model, its prompt, and the rollouts that it sampled itself, if any were wanted."""

    model: LanguageModel
    prompt: tuple[int, ...]
    rollouts: Sequence[Rollout] = ()


@dataclass(frozen=True)
class PairsSeen:
    """How much pairs of a teacher's and the student's rollouts tell: see `effective_share` and `PairWeights`."""

    effective: float
    information: float


@dataclass(frozen=True, eq=False)
class Outcomes:
    """What rollouts bring to pairs of teacher and objective, by their places, and what is to be known of preference pairs."""

    brought: dict[tuple[int, int], Brought]
    pairs: dict[tuple[int, int], PairsSeen]


def outcomes_of(
    objectives: Sequence[Objective],
    teachers: Sequence[Teaching],
    survey: Survey,
    gathered: Gathered,
    evidence: Evidence,
    ideal_W: Sequence[Step],
    student: Teaching,
) -> Outcomes:
    """What rollouts bring to each pair of teacher and objective that asks for it."""
    found = Outcomes({}, {})
    rollouts = int((gathered.flow.forced_R < 0).sum())
    for c, teacher in enumerate(teachers):
        asked = {o: objective.outcome for o, objective in enumerate(objectives) if objective.outcome is not None}
        ratio_RT = read = None
        for o, outcome in asked.items():
            if outcome.kind == "success":
                scale = outcome.scale * (1 - 1 / rollouts if outcome.sampled else 1.0)
                aligned = partial(align_outcome, returns=success_as_returns(evidence.success), scale=scale)
                found.brought[c, o] = Brought(aligned, outcome.sampled, [ideal.times(scale) for ideal in ideal_W])
                continue
            if ratio_RT is None:
                later = later_logprobs(teacher.model, teacher.prompt, gathered.targeted)
                ratio_RT = log_ratios(survey, c, gathered, later)
            if outcome.kind == "future_return":
                found.brought[c, o] = _later(outcome, ratio_RT, survey, gathered, evidence, student.model)
                continue
            if read is None:
                read = _read(teacher.rollouts, student)
            before = Step(survey.step_WCOL[0, c, o], survey.shift_WCOF[0, c, o])
            pairs = _pairs(outcome.scale, ratio_RT, read, before, survey, gathered, evidence, student.model)
            found.brought[c, o], found.pairs[c, o] = pairs
    return found


def _later(
    outcome: Outcome,
    ratio_RT: Float[np.ndarray, "R T"],
    survey: Survey,
    gathered: Gathered,
    evidence: Evidence,
    student: LanguageModel,
) -> Brought:
    """Returns of later log-ratios at the chosen nodes, and the step they make over all nodes."""
    return_RT = future_returns(ratio_RT, gathered.flow.tree.path_RT >= 0, outcome.gamma, outcome.normalised)
    place_MK = gathered.place_NK[evidence.rows]
    returns = branch_returns(gathered.flow, gathered.reward_R, return_RT, _ending(gathered, place_MK), place_MK)
    aligned = partial(align_outcome, returns=returns, scale=outcome.scale)
    steps = _steps_of_returns(return_RT, survey, gathered, student)
    return Brought(aligned, False, [step.times(outcome.scale) for step in steps])


def _ending(gathered: Gathered, place: np.ndarray) -> np.ndarray:
    """Branches whose token ends the rollout."""
    return (place >= 0) & gathered.terminal_W[place]


def _steps_of_returns(
    return_RT: Float[np.ndarray, "R T"], survey: Survey, gathered: Gathered, student: LanguageModel
) -> list[Step]:
    """The step of pi (X - mean X) over all nodes, under each token weighting."""
    place_NK = gathered.place_NK
    mean_NK = branch_returns(gathered.flow, gathered.reward_R, return_RT, _ending(gathered, place_NK), place_NK).mean
    coefficients = return_coefficients(gathered.flow, return_RT, mean_NK, place_NK, gathered.nodes_N)
    return steps_of(survey, coefficients, student)


@dataclass(frozen=True, eq=False)
class _Read:
    """P rollouts of a teacher as the student reads them: their tokens, log tau - log pi of each (0 past the end), and hidden states."""

    sequences: Sequence[np.ndarray]
    ratio_PT: Float[np.ndarray, "P T"]
    states_NH: Float[torch.Tensor, "N H"]


@torch.inference_mode()
def _read(rollouts: Sequence[Rollout], student: Teaching) -> _Read:
    sequences = [rollout.completion.tokens for rollout in rollouts]
    states = torch.cat(student.model.hidden_states(student.prompt, sequences))
    tokens = np.concatenate(sequences)
    batches = Batches(max(1, _CELLS // student.model.vocabulary_size), "forward passes over a teacher's rollouts")

    def work(start: int, stop: int) -> np.ndarray:
        chosen = torch.from_numpy(tokens[start:stop].astype(np.int64)).to(states.device)[:, None]
        return student.model.logprobs(states[start:stop]).gather(1, chosen)[:, 0].double().cpu().numpy()

    mine = np.concatenate(list(batches.over(len(tokens), work)))
    lengths = np.array([len(sequence) for sequence in sequences])
    there = np.arange(lengths.max()) < lengths[:, None]
    ratio_PT = np.zeros(there.shape)
    ratio_PT[there] = np.concatenate([rollout.completion.logprobs for rollout in rollouts]) - mine
    return _Read(sequences, ratio_PT, states.cpu())


def _pairs(
    beta: float,
    ratio_RT: Float[np.ndarray, "R T"],
    read: _Read,
    before: Step,
    survey: Survey,
    gathered: Gathered,
    evidence: Evidence,
    student: LanguageModel,
) -> tuple[Brought, PairsSeen]:
    """What pairs with the teacher's rollouts make of a direction at the chosen nodes, and of the step, less what was there `before`.

    The teacher's side of the step is taken along its own rollouts, so it needs no ratio of prefixes; that of the student along its own.
    """
    flow, tree = gathered.flow, gathered.flow.tree
    base_R = flow.forced_R < 0
    weights = pair_weights(ratio_RT.sum(1), base_R, read.ratio_PT.sum(1), beta)
    prefix_RT = np.cumsum(ratio_RT, 1) - ratio_RT
    later_RT, later_PT = (ratio.sum(1, keepdims=True) - np.cumsum(ratio, 1) for ratio in (ratio_RT, read.ratio_PT))
    place_MK = gathered.place_NK[evidence.rows]
    followed = tree.follow(read.sequences)
    seen = pair_returns(flow, gathered.reward_R, weights, later_RT, followed, later_PT, _ending(gathered, place_MK), place_MK)
    log_prefix = np.zeros(len(tree))
    origin_RT = tree.origin_RT()
    log_prefix[origin_RT[base_R][origin_RT[base_R] >= 0]] = prefix_RT[base_R][origin_RT[base_R] >= 0]
    aligned = partial(align_pairs, pairs=seen, log_prefix_ratio_M=log_prefix[gathered.nodes_N[evidence.rows]], beta=beta)
    lost = _steps_of_returns(np.broadcast_to(weights.student_R[:, None], ratio_RT.shape), survey, gathered, student)[0]
    lengths = [len(sequence) for sequence in read.sequences]
    pull = np.repeat(weights.teacher_P, lengths)[:, None] / len(lengths)
    won = step_along(survey, read.states_NH, np.concatenate(read.sequences)[:, None].astype(np.int64), pull, student)
    step = (won + lost.times(-1.0)).times(beta) + before.times(-1.0)
    there = tree.path_RT[base_R] >= 0
    unknown = [None] * (len(survey.factor_WN) - 1)  # a weighting of the student's tokens says nothing of the teacher's
    return Brought(aligned, False, [step, *unknown]), PairsSeen(effective_share(prefix_RT[base_R], there), weights.information)
