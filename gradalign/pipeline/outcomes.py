"""Objectives whose direction rests on what rollouts bring: MiniLLM's later log-ratios, rewards of the group, reward-reweighted targets."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float

from gradalign.models import Batches, LanguageModel
from gradalign.objectives import Objective, Outcome
from gradalign.pipeline.scoring import Brought, Evidence, Gathered, Step, step_of
from gradalign.pipeline.survey import Survey
from gradalign.pipeline.targeted import TargetedRollout
from gradalign.returns import branch_returns, future_returns, return_coefficients, success_as_returns

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
    """log tau - log pi of every step of every rollout; 0 at the steps of a targeted rollout up to its forced token."""
    path_RT = gathered.flow.tree.path_RT
    there = gathered.place_NK >= 0
    by_node = np.zeros(len(gathered.flow.tree))
    by_node[gathered.place_NK[there]] = (survey.teacher_logprobs_CNK[teacher] - survey.student_logprobs_NK)[there]
    base = len(path_RT) - len(gathered.targeted)
    ratio_RT = np.where(path_RT >= 0, by_node[np.maximum(path_RT, 0)], 0.0)
    ratio_RT[base:] = 0.0
    for row, (rollout, logprobs) in enumerate(zip(gathered.targeted, later, strict=True), start=base):
        first = len(rollout.branch.path)
        ratio_RT[row, first : first + len(logprobs)] = logprobs - rollout.completion.logprobs
    return ratio_RT


def brought_by(
    objectives: Sequence[Objective],
    teachers: Sequence[tuple[LanguageModel, tuple[int, ...]]],
    survey: Survey,
    gathered: Gathered,
    evidence: Evidence,
    ideal: Step | None,
    student: LanguageModel,
) -> dict[tuple[int, int], Brought]:
    """What rollouts bring to each pair of teacher and objective (by their places) that asks for it."""
    found: dict[tuple[int, int], Brought] = {}
    rollouts = int((gathered.flow.forced_R < 0).sum())
    for c, (model, prompt) in enumerate(teachers):
        asked = {o: objective.outcome for o, objective in enumerate(objectives) if objective.outcome is not None}
        ratio_RT = None
        for o, outcome in asked.items():
            if outcome.kind == "success":
                scale = outcome.scale * (1 - 1 / rollouts if outcome.sampled else 1.0)
                found[c, o] = Brought(success_as_returns(evidence.success), scale, outcome.sampled, ideal)
                continue
            if ratio_RT is None:
                ratio_RT = log_ratios(survey, c, gathered, later_logprobs(model, prompt, gathered.targeted))
            found[c, o] = _later(outcome, ratio_RT, survey, gathered, evidence, student)
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
    flow, reward_R = gathered.flow, gathered.reward_R
    return_RT = future_returns(ratio_RT, flow.tree.path_RT >= 0, outcome.gamma, outcome.normalised)
    place_NK = gathered.place_NK
    exact = (place_NK >= 0) & gathered.terminal_W[place_NK]
    returns = branch_returns(flow, reward_R, return_RT, exact[evidence.rows], place_NK[evidence.rows])
    mean_NK = branch_returns(flow, reward_R, return_RT, exact, place_NK).mean
    step = step_of(survey, return_coefficients(flow, return_RT, mean_NK, place_NK, gathered.nodes_N), student)
    return Brought(returns, outcome.scale, False, step)
