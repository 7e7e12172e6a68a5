"""What an objective hands to backpropagation at the tokens of single rollouts. Torch in, torch out.

N tokens of all rollouts, one rollout behind the other · V vocabulary · R rollouts
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gradalign.objectives import NodeSignals, Objective
from gradalign.returns import future_returns


@dataclass(frozen=True, eq=False)
class Rollouts:
    """Rollouts as they were sampled: tokens (T,) of each, its reward, and that less the mean reward of the question's other rollouts."""

    tokens: Sequence[np.ndarray]
    reward_R: Float[np.ndarray, " R"]
    advantage_R: Float[np.ndarray, " R"]

    @property
    def lengths(self) -> list[int]:
        return [len(tokens) for tokens in self.tokens]


def advantages(reward_R: Float[np.ndarray, " R"]) -> Float[np.ndarray, " R"]:
    """Rewards of a question's rollouts, each less the mean of the others (leave-one-out baseline; Kool et al., 2019)."""
    return (reward_R - reward_R.mean()) * len(reward_R) / (len(reward_R) - 1)


def told_by_single_rollouts(objective: Objective) -> bool:
    """Does one rollout tell its part of an objective's direction? Not if the objective compares pairs of them."""
    return objective.outcome is None or objective.outcome.kind != "pair_weight"


def rollout_direction(
    objective: Objective, student_NV: Float[Tensor, "N V"], teacher_NV: Float[Tensor, "N V"], rollouts: Rollouts
) -> Float[Tensor, "N V"]:
    """The direction in the logits at each token, from log-probabilities of student and teacher; its mean over rollouts is `direction`'s.

    What an objective wants to know of the rest of a rollout is taken from this rollout: the reward, by its advantage, or later log-ratios.
    That part is (e_token - pi) times it, the policy gradient (Williams 1992).
    """
    taken_N1 = torch.from_numpy(np.concatenate(rollouts.tokens)).to(student_NV.device)[:, None]
    outcome = objective.outcome
    if outcome is None:
        once = torch.zeros_like(student_NV).scatter_(1, taken_N1, 1.0) if objective.expected else None
        return objective.direction(NodeSignals(student_NV, teacher_NV, once))
    signals = NodeSignals(student_NV, teacher_NV)
    known = objective.known_direction(signals) if objective.known else torch.zeros_like(student_NV)
    if outcome.kind == "success":
        weight_N = np.repeat(rollouts.advantage_R, rollouts.lengths)
    else:
        there_RT = np.arange(max(rollouts.lengths)) < np.array(rollouts.lengths)[:, None]
        ratio_RT = np.zeros(there_RT.shape)
        ratio_RT[there_RT] = signals.log_ratio.gather(1, taken_N1)[:, 0].double().cpu().numpy()
        weight_N = future_returns(ratio_RT, there_RT, outcome.gamma, outcome.normalised)[there_RT]
    weight_N1 = torch.from_numpy(outcome.scale * weight_N)[:, None].to(student_NV)
    return (known - weight_N1 * signals.student_probs).scatter_add_(1, taken_N1, weight_N1)
