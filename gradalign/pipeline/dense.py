"""What walks over the whole vocabulary at N nodes, for the student and one teacher: tensors in, tensors out, nothing else.

Everything of `vocabulary.chunk_numbers` that reads or writes arrays of (nodes x vocabulary) is here: sums over the vocabulary, maxima of
blocks of tokens, and directions.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.linalg import vecdot

from gradalign.objectives import After, NodeSignals, Objective

BLOCK = 128
LARGEST = 1e6


class Moved(NamedTuple):
    """How an objective moves the logits: its direction, the one that is expected, and sums over tokens of these.

    `lift_NV` is what makes sum_k pi_k lift_k S_k the product with the ideal direction; where it is None, the expected direction less
    `pull`, its mean under pi. `maxima` are of the expected direction's absolute values.
    """

    direction_NV: Tensor
    direction_norm2_N: Tensor
    expected_NV: Tensor
    expected_norm2_N: Tensor
    pull_N: Tensor
    lift2_N: Tensor
    lift_NV: Tensor | None
    maxima_NB: Tensor


class Look(NamedTuple):
    """Student and teacher at N nodes: what tells them apart, maxima of blocks, and how each objective moves the student."""

    student_entropy_N: Tensor
    teacher_entropy_N: Tensor
    reverse_kl_N: Tensor
    forward_kl_N: Tensor
    jsd_N: Tensor
    distance_N: Tensor
    similarity_N: Tensor
    ratio2_N: Tensor
    teacher_maxima_NB: Tensor
    distance_maxima_NB: Tensor
    moved: list[Moved]


def look(
    objectives: Sequence[Objective],
    student_NV: Float[Tensor, "N V"],
    teacher_NV: Float[Tensor, "N V"],
    best_N: Int[Tensor, " N"],
    *sampled_NV: Float[Tensor, "N V"],
) -> Look:
    """All of it, from log-probabilities, the student's likeliest tokens and, where an objective asks for them, how often rollouts took
    each token and their advantage."""
    frequency_NV, advantage_NV = sampled_NV or (None, None)
    signals = NodeSignals(student_NV, teacher_NV, frequency_NV, sample_advantage=advantage_NV)
    pi, tau, log_ratio, tiny = (
        signals.student_probs,
        signals.teacher_probs,
        signals.log_ratio,
        torch.finfo(student_NV.dtype).tiny,
    )
    mixture = (pi + tau).mul_(0.5).clamp_min_(tiny).log_()
    distance_maxima = block_maxima(signals.difference.abs())
    return Look(
        student_entropy_N=-vecdot(pi, student_NV),
        teacher_entropy_N=-vecdot(tau, teacher_NV),
        reverse_kl_N=-vecdot(pi, log_ratio),
        forward_kl_N=vecdot(tau, log_ratio),
        jsd_N=0.5 * (vecdot(pi, student_NV - mixture) + vecdot(tau, teacher_NV - mixture)),
        distance_N=vecdot(signals.difference, signals.difference).sqrt(),
        similarity_N=vecdot(pi, tau) / (vecdot(pi, pi) * vecdot(tau, tau)).sqrt(),
        ratio2_N=((tau * tau).div_(pi.clamp_min(tiny)).clamp_max_(LARGEST).sum(-1) - 1).clamp_min(0),
        teacher_maxima_NB=block_maxima(teacher_NV),
        distance_maxima_NB=distance_maxima,
        moved=[_moved(objective, signals, best_N, distance_maxima) for objective in objectives],
    )


def _moved(objective: Objective, signals: NodeSignals, best_N: Tensor, distance_maxima_NB: Tensor) -> Moved:
    """The sums are taken around the direction at the likeliest token, where most of their weight may lie: nothing large cancels."""
    pi, d = signals.student_probs, objective.known_direction(signals)
    expected = d if objective.expected is None else objective.expected_direction(signals)
    norm2_N = vecdot(expected, expected)
    direction_norm2_N = norm2_N if d is expected else vecdot(d, d)
    maxima_NB = distance_maxima_NB if expected is signals.difference else block_maxima(expected.abs())
    if isinstance(objective, After):
        lift = objective.lift(signals)
        return Moved(d, direction_norm2_N, expected, norm2_N, vecdot(pi, expected), vecdot(pi * lift, lift), lift, maxima_NB)
    middle_N1 = expected.gather(1, best_N[:, None])
    around = expected - middle_N1
    weighted = pi * around
    rest_N = weighted.sum(-1)
    lift2_N = (weighted.mul_(around).sum(-1) - rest_N**2).clamp_min(0)
    return Moved(d, direction_norm2_N, expected, norm2_N, middle_N1[:, 0] + rest_N, lift2_N, None, maxima_NB)


def block_maxima(score_NV: Float[Tensor, "N V"]) -> Float[Tensor, "N B"]:
    """The maximum of every `BLOCK` tokens in a row, of the rest at the end too."""
    whole = score_NV.shape[1] // BLOCK * BLOCK
    maxima = [score_NV[:, :whole].unflatten(1, (-1, BLOCK)).amax(-1)] if whole else []
    rest = [score_NV[:, whole:].amax(-1, keepdim=True)] if whole < score_NV.shape[1] else []
    return torch.cat([*maxima, *rest], dim=1)
