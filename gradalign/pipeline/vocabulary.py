"""What the whole vocabulary tells of a chunk of nodes: numbers per node, values at a few kept tokens, and sums of steps.

Arrays of (nodes x vocabulary) live here, for one chunk. Each costs a walk over memory, so they are few: a sum over tokens reads what is
there already, and the best tokens are looked for only in the blocks whose maxima are best.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.linalg import vecdot, vector_norm

from gradalign.objectives import After, NodeSignals, Objective
from gradalign.sketch import OuterSketch

DIVERGENCES = (
    "reverse_kl", "forward_kl", "jsd", "l2", "similarity", "teacher_entropy", "top_overlap", "student_mass_on_teacher_top",
    "teacher_mass_on_student_top",
)  # fmt: skip
TOP = 10
LARGEST = 1e6
SHORTEST = 1e-6  # directions below this length are rounding, and rank nothing
_BLOCK = 128


@dataclass(frozen=True, eq=False)
class Taken:
    """Tokens that base rollouts took at each node, most taken first (-1 pads), the share of rollouts that took them, and the mean over
    all that passed of advantage x (took the token)."""

    tokens_NS: Int[np.ndarray, "N S"]
    share_NS: Float[np.ndarray, "N S"]
    advantage_NS: Float[np.ndarray, "N S"]

    def part(self, nodes: slice) -> "Taken":
        return Taken(self.tokens_NS[nodes], self.share_NS[nodes], self.advantage_NS[nodes])


@dataclass(frozen=True, eq=False)
class Stepping:
    """The student's hidden states at a chunk of nodes, their weights in steps, and what keeps steps short.

    Where directions are sketched by rows, `flat` (width 1) hashes rows as `sketch` does, so that one look at them serves both.
    """

    sketch: OuterSketch
    flat: OuterSketch
    states_NH: Float[Tensor, "N H"]
    weight_WN: Float[Tensor, "W N"]

    @property
    def by_rows(self) -> bool:
        """Are a direction's sketched rows all that steps want to know of it?"""
        return not self.sketch.by_matrix and not self.flat.exact and self.flat.length == self.sketch.length

    def part(self, nodes: slice) -> "Stepping":
        return Stepping(self.sketch, self.flat, self.states_NH[nodes], self.weight_WN[:, nodes])

    def of_directions(self, directions: Sequence[Sequence[Float[Tensor, "N V"]]]) -> dict[str, Tensor]:
        """Parts of sum_u w_u d_u h_u^T and of sum_u w_u d_u, for every weight, teacher and objective: (W, C, O, ...)."""
        rows = [[self.sketch.rows(d) for d in row] for row in directions]
        if self.by_rows:
            return self.of_rows(rows)
        ones = directions[0][0].new_ones(len(self.states_NH), 1)
        return {"step": self._parts(self.sketch, rows, self.states_NH), "shift": self._parts(self.flat, directions, ones)}

    def of_rows(self, rows: Sequence[Sequence[Float[Tensor, "N L"]]]) -> dict[str, Tensor]:
        """The same from directions whose rows are sketched."""
        weight_WN = self.weight_WN.to(rows[0][0])
        shift = torch.stack([torch.stack([weight_WN @ row for row in of_teacher]) for of_teacher in rows]).double()
        return {"step": self._parts(self.sketch, rows, self.states_NH), "shift": shift.movedim(2, 0)}

    def _parts(self, sketch: OuterSketch, rows: Sequence[Sequence[Tensor]], right_NH: Tensor) -> Tensor:
        weight_WN, columns = self.weight_WN.to(rows[0][0]), sketch.columns(right_NH.to(rows[0][0]))
        found = [torch.stack([sketch.part(weight_WN, row, columns) for row in of_teacher]) for of_teacher in rows]
        return torch.stack(found).movedim(2, 0)

    def folded(self, step: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        """Sketches (W, C, O, L) and (W, C, O, F) that sums of parts stand for."""
        shape = step.shape[:3]
        flat = self.flat.turned(shift.flatten(0, 2)) if self.by_rows else self.flat.folded(shift.flatten(0, 2))
        return self.sketch.folded(step.flatten(0, 2)).reshape(*shape, -1), flat.reshape(*shape, -1)


@dataclass(frozen=True, eq=False)
class _Moments:
    """A direction that is kept, the one that is expected, and sums over tokens of the latter."""

    direction_NV: Tensor
    expected_NV: Tensor
    pull_N: Tensor
    norm2_N: Tensor
    lift2_N: Tensor
    lift_NV: Tensor | None

    def lift_at(self, tokens_NK: Tensor) -> Tensor:
        """What makes sum_k pi_k lift_k S_k the product with the ideal direction, at a few tokens."""
        if self.lift_NV is not None:
            return self.lift_NV.gather(1, tokens_NK)
        return self.expected_NV.gather(1, tokens_NK) - self.pull_N[:, None]


def chunk_numbers(
    student_NV: Float[Tensor, "N V"],
    teachers: Sequence[Float[Tensor, "N V"]],
    taken: Taken,
    objectives: Sequence[Objective],
    ranked: int,
) -> tuple[dict[str, Tensor], list[list[Tensor]]]:
    """The numbers of a `Survey` for N nodes, from log-probabilities of student and teachers, and the directions (C x O of them)."""
    children = torch.from_numpy(taken.tokens_NS).to(student_NV.device)
    sampled = _sampled(student_NV, children, taken) if any(o.expected or o.function for o in objectives) else (None, None)
    signals = [NodeSignals(student_NV, tau, sampled[0], sample_advantage=sampled[1]) for tau in teachers]
    pi = signals[0].student_probs
    mine = _largest(_block_maxima(pi), max(TOP, ranked), pi.shape[1], lambda tokens: pi.gather(1, tokens))
    moments = [[_moments(objective, signal, mine[:, 0]) for objective in objectives] for signal in signals]
    distances = [signal.difference for signal in signals]
    every = [m.expected_NV for row in moments for m in row]
    maxima = {id(array): _block_maxima(array.abs()) for array in {id(array): array for array in (*every, *distances)}.values()}
    strength, distance = _by_direction(moments, maxima, ranked), _by_distance(distances, maxima, ranked)
    kept = torch.cat([children, strength, distance, mine[:, :ranked]], dim=1)
    at = kept.clamp_min(0)
    divergences, ratios = zip(
        *(_divergences(*pair, mine[:, :TOP]) for pair in zip(signals, distances, strict=True)), strict=True
    )
    numbers = {
        "kept_NK": kept,
        "student_logprobs_NK": student_NV.gather(1, at),
        "teacher_logprobs_CNK": torch.stack([tau.gather(1, at) for tau in teachers]),
        "direction_CONK": _each(moments, lambda m: m.direction_NV.gather(1, at)),
        "direction_norm2_CON": _each(
            moments, lambda m: m.norm2_N if m.direction_NV is m.expected_NV else vector_norm(m.direction_NV, dim=-1).square()
        ),
        "pull_CON": _each(moments, lambda m: m.pull_N),
        "expected_norm2_CON": _each(moments, lambda m: m.norm2_N),
        "lift_CONK": _each(moments, lambda m: m.lift_at(at)),
        "lift2_CON": _each(moments, lambda m: m.lift2_N),
        "ratio2_CN": torch.stack(ratios),
        "student_entropy_N": -vecdot(pi, student_NV),
        "divergence_CND": torch.stack(divergences),
    }
    return numbers, [[m.direction_NV for m in row] for row in moments]


def _sampled(like_NV: Tensor, children_NS: Tensor, taken: Taken) -> tuple[Tensor, Tensor]:
    """How often base rollouts took each token, and their mean advantage there."""
    at = children_NS.clamp_min(0)
    frequency, advantage = (
        torch.zeros_like(like_NV).scatter_add_(1, at, torch.from_numpy(values).to(like_NV))
        for values in (taken.share_NS, taken.advantage_NS)
    )
    return frequency, advantage


def _each(moments: list[list[_Moments]], value: Callable[[_Moments], Tensor]) -> Tensor:
    return torch.stack([torch.stack([value(m) for m in row]) for row in moments])


def _moments(objective: Objective, signals: NodeSignals, best_N: Tensor) -> _Moments:
    """The sums are taken around the direction at the likeliest token, where most of their weight may lie: nothing large cancels."""
    pi, d = signals.student_probs, objective.known_direction(signals)
    expected = d if objective.expected is None else objective.expected_direction(signals)
    norm2_N = vector_norm(expected, dim=-1).square()
    if isinstance(objective, After):
        lift = objective.lift(signals)
        return _Moments(d, expected, vecdot(pi, expected), norm2_N, vecdot(pi * lift, lift), lift)
    middle_N = expected.gather(1, best_N[:, None])
    around = expected - middle_N
    weighted = pi * around
    mean_N = weighted.sum(-1)
    return _Moments(
        d, expected, middle_N[:, 0] + mean_N, norm2_N, (weighted.mul_(around).sum(-1) - mean_N**2).clamp_min(0), None
    )


def _by_direction(moments: list[list[_Moments]], maxima: dict[int, Tensor], count: int) -> Tensor:
    """The tokens of the largest share of |d|, the largest over teachers and objectives: (N, count)."""
    every = [m for row in moments for m in row]
    lengths = [m.norm2_N.sqrt().clamp_min(SHORTEST)[:, None] for m in every]

    def strength(parts: list[Tensor]) -> Tensor:
        return torch.stack([part / length for part, length in zip(parts, lengths, strict=True)]).amax(0)

    bound_NB = strength([maxima[id(m.expected_NV)] for m in every])
    vocabulary = every[0].expected_NV.shape[1]
    return _largest(
        bound_NB, count, vocabulary, lambda tokens: strength([m.expected_NV.gather(1, tokens).abs() for m in every])
    )


def _by_distance(distances: list[Tensor], maxima: dict[int, Tensor], count: int) -> Tensor:
    """The tokens of the largest |tau - pi|, the largest over teachers: (N, count)."""
    bound_NB = torch.stack([maxima[id(distance)] for distance in distances]).amax(0)
    vocabulary = distances[0].shape[1]
    return _largest(
        bound_NB, count, vocabulary, lambda tokens: torch.stack([d.gather(1, tokens).abs() for d in distances]).amax(0)
    )


def _block_maxima(score_NV: Tensor) -> Float[Tensor, "N B"]:
    """The maximum of every `_BLOCK` tokens in a row, of the rest at the end too."""
    whole = score_NV.shape[1] // _BLOCK * _BLOCK
    maxima = [score_NV[:, :whole].unflatten(1, (-1, _BLOCK)).amax(-1)] if whole else []
    rest = [score_NV[:, whole:].amax(-1, keepdim=True)] if whole < score_NV.shape[1] else []
    return torch.cat([*maxima, *rest], dim=1)


def _largest(bound_NB: Tensor, count: int, vocabulary: int, score: Callable[[Tensor], Tensor]) -> Int[Tensor, "N K"]:
    """The best `count` tokens of each row, best first: they lie in the `count` blocks with the best maxima, and only there is looked.

    Tokens past the vocabulary are left out.
    """
    count = min(count, vocabulary)
    blocks = bound_NB.topk(min(count, bound_NB.shape[1])).indices
    tokens = (blocks[:, :, None] * _BLOCK + torch.arange(_BLOCK, device=blocks.device)).flatten(1)
    scores = score(tokens.clamp_max(vocabulary - 1)).masked_fill(tokens >= vocabulary, -torch.inf)
    return tokens.gather(1, scores.topk(count).indices)


def _divergences(signals: NodeSignals, distance_NV: Tensor, mine_NT: Tensor) -> tuple[Tensor, Tensor]:
    """The numbers of `DIVERGENCES` for N nodes, (N, D), and the mean square of tau / pi - 1 under pi; `mine` are pi's best tokens."""
    student, teacher, pi, tau = signals.student_logprobs, signals.teacher_logprobs, signals.student_probs, signals.teacher_probs
    theirs = _largest(_block_maxima(tau), mine_NT.shape[1], tau.shape[1], lambda tokens: tau.gather(1, tokens))
    overlap = (mine_NT[:, :, None] == theirs[:, None, :]).any(-1).double().mean(-1)
    log_ratio, tiny = signals.log_ratio, torch.finfo(pi.dtype).tiny
    ratio2 = (tau * tau).div_(pi.clamp_min(tiny)).clamp_max_(LARGEST).sum(-1) - 1
    mixture = (pi + tau).mul_(0.5).clamp_min_(tiny).log_()
    columns = [
        -vecdot(pi, log_ratio),
        vecdot(tau, log_ratio),
        0.5 * (vecdot(pi, student - mixture) + vecdot(tau, teacher - mixture)),
        vector_norm(distance_NV, dim=-1),
        vecdot(pi, tau) / (vector_norm(pi, dim=-1) * vector_norm(tau, dim=-1)),
        -vecdot(tau, teacher),
        overlap,
        pi.gather(1, theirs).sum(-1),
        tau.gather(1, mine_NT).sum(-1),
    ]
    return torch.stack([column.double() for column in columns], dim=-1), ratio2.clamp_min(0)
