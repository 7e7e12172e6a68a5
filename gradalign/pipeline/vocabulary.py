"""What the whole vocabulary tells of a chunk of nodes: numbers per node, values at a few kept tokens, and sums of steps.

Walks over arrays of (nodes x vocabulary) are in `dense.py`. Here is what is read from them afterwards: values at a few tokens, the best of
which are looked for only in the blocks whose maxima are best, and sketches of the directions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from gradalign.models.memory import sent
from gradalign.objectives import Objective
from gradalign.pipeline.dense import BLOCK, Look, Moved, block_maxima, look
from gradalign.sketch import OuterSketch

DIVERGENCES = (
    "reverse_kl", "forward_kl", "jsd", "l2", "similarity", "teacher_entropy", "top_overlap", "student_mass_on_teacher_top",
    "teacher_mass_on_student_top",
)  # fmt: skip
TOP = 10
SHORTEST = 1e-6  # directions below this length are rounding, and rank nothing


@dataclass(frozen=True, eq=False)
class Taken:
    """Tokens that base rollouts took at each node, most taken first (-1 pads), the share of rollouts that took them, and the mean over
    all that passed of advantage x (took the token)."""

    tokens_NS: Int[np.ndarray, "N S"]
    share_NS: Float[np.ndarray, "N S"]
    advantage_NS: Float[np.ndarray, "N S"]

    def part(self, nodes: slice) -> "Taken":
        """Of some nodes, no wider than these need: few nodes have as many children as the root."""
        width = int((self.tokens_NS[nodes] >= 0).sum(1).max(initial=1))
        return Taken(*(each[nodes, :width] for each in (self.tokens_NS, self.share_NS, self.advantage_NS)))


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
        shape, every = (len(directions), len(directions[0])), [d for row in directions for d in row]
        rows = self.sketch.rows(every)
        if self.by_rows:
            return self.of_rows([rows], shape)
        weight_WN, ones = self._weights(rows), rows.new_ones(len(self.states_NH), 1)
        step = self.sketch.part(weight_WN, rows, self.sketch.columns(self.states_NH.to(rows)))
        shift = self.flat.part(weight_WN, self.flat.rows(every), self.flat.columns(ones))
        return {"step": _by_weight(step, shape), "shift": _by_weight(shift, shape)}

    def of_rows(self, rows: Sequence[Float[Tensor, "D N L"]], shape: tuple[int, int]) -> dict[str, Tensor]:
        """The same from directions whose rows are sketched, for `shape` teachers and objectives, in batches: on a GPU transforms of all
        would take much memory."""
        weight_WN, columns = self._weights(rows[0]), self.sketch.columns(self.states_NH.to(rows[0]))
        step = torch.cat([self.sketch.part(weight_WN, batch, columns) for batch in rows])
        shift = torch.cat([weight_WN @ batch for batch in rows]).double()
        return {"step": _by_weight(step, shape), "shift": _by_weight(shift, shape)}

    def _weights(self, like: Tensor) -> Float[Tensor, "W N"]:
        return sent(self.weight_WN.numpy(), like.device).to(like.dtype)

    def folded(self, step: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        """Sketches (W, C, O, L) and (W, C, O, F) that sums of parts stand for."""
        shape = step.shape[:3]
        flat = self.flat.turned(shift.flatten(0, 2)) if self.by_rows else self.flat.folded(shift.flatten(0, 2))
        return self.sketch.folded(step.flatten(0, 2)).reshape(*shape, -1), flat.reshape(*shape, -1)


def _by_weight(part: Float[Tensor, "CO W ..."], shape: tuple[int, int]) -> Float[Tensor, "W C O ..."]:
    return part.unflatten(0, shape).movedim(2, 0)


def chunk_numbers(
    student_NV: Float[Tensor, "N V"],
    teachers: Sequence[Float[Tensor, "N V"]],
    taken: Taken,
    objectives: Sequence[Objective],
    ranked: int,
) -> tuple[dict[str, Tensor], list[list[Tensor]]]:
    """The numbers of a `Survey` for N nodes, from log-probabilities of student and teachers, and the directions (C x O of them)."""
    children = torch.from_numpy(taken.tokens_NS).to(student_NV.device)
    sampled = _sampled(student_NV, children, taken) if any(o.expected or o.function for o in objectives) else ()
    vocabulary = student_NV.shape[1]
    mine = _largest(block_maxima(student_NV), max(TOP, ranked), vocabulary, lambda tokens: student_NV.gather(1, tokens))
    looks = [look(objectives, student_NV, tau, mine[:, 0], *sampled) for tau in teachers]
    strength = _by_direction(looks, ranked)
    distance = _largest(
        torch.stack([look.distance_maxima_NB for look in looks]).amax(0),
        ranked,
        vocabulary,
        lambda tokens: (
            torch.stack([tau.gather(1, tokens).exp() for tau in teachers])
            .sub_(student_NV.gather(1, tokens).exp())
            .abs()
            .amax(0)
        ),
    )
    kept = torch.cat([children, strength, distance, mine[:, :ranked]], dim=1)
    at = kept.clamp_min(0)
    numbers = {
        "kept_NK": kept,
        "student_logprobs_NK": student_NV.gather(1, at),
        "teacher_logprobs_CNK": torch.stack([tau.gather(1, at) for tau in teachers]),
        "direction_CONK": _each(looks, lambda m: m.direction_NV.gather(1, at)),
        "direction_norm2_CON": _each(looks, lambda m: m.direction_norm2_N),
        "pull_CON": _each(looks, lambda m: m.pull_N),
        "expected_norm2_CON": _each(looks, lambda m: m.expected_norm2_N),
        "lift_CONK": _each(looks, lambda m: _lift_at(m, at)),
        "lift2_CON": _each(looks, lambda m: m.lift2_N),
        "ratio2_CN": torch.stack([look.ratio2_N for look in looks]),
        "student_entropy_N": looks[0].student_entropy_N,
        "divergence_CND": torch.stack(
            [_divergences(look, student_NV, tau, mine[:, :TOP]) for look, tau in zip(looks, teachers, strict=True)]
        ),
    }
    return numbers, [[m.direction_NV for m in look.moved] for look in looks]


def _sampled(like_NV: Tensor, children_NS: Tensor, taken: Taken) -> tuple[Tensor, Tensor]:
    """How often base rollouts took each token, and their mean advantage there."""
    at = children_NS.clamp_min(0)
    frequency, advantage = (
        torch.zeros_like(like_NV).scatter_add_(1, at, torch.from_numpy(values).to(like_NV))
        for values in (taken.share_NS, taken.advantage_NS)
    )
    return frequency, advantage


def _each(looks: list[Look], value: Callable[[Moved], Tensor]) -> Tensor:
    return torch.stack([torch.stack([value(m) for m in look.moved]) for look in looks])


def _lift_at(moved: Moved, tokens_NK: Tensor) -> Tensor:
    if moved.lift_NV is not None:
        return moved.lift_NV.gather(1, tokens_NK)
    return moved.expected_NV.gather(1, tokens_NK) - moved.pull_N[:, None]


def _by_direction(looks: list[Look], count: int) -> Tensor:
    """The tokens of the largest share of |d|, the largest over teachers and objectives: (N, count)."""
    every = [m for look in looks for m in look.moved]
    lengths = [m.expected_norm2_N.sqrt().clamp_min(SHORTEST)[:, None] for m in every]

    def strength(parts: list[Tensor]) -> Tensor:
        return torch.stack([part / length for part, length in zip(parts, lengths, strict=True)]).amax(0)

    return _largest(
        strength([m.maxima_NB for m in every]),
        count,
        every[0].expected_NV.shape[1],
        lambda tokens: strength([m.expected_NV.gather(1, tokens).abs() for m in every]),
    )


def _largest(bound_NB: Tensor, count: int, vocabulary: int, score: Callable[[Tensor], Tensor]) -> Int[Tensor, "N K"]:
    """The best `count` tokens of each row, best first: they lie in the `count` blocks with the best maxima, and only there is looked.

    Tokens past the vocabulary are left out.
    """
    count = min(count, vocabulary)
    blocks = bound_NB.topk(min(count, bound_NB.shape[1])).indices
    tokens = (blocks[:, :, None] * BLOCK + torch.arange(BLOCK, device=blocks.device)).flatten(1)
    scores = score(tokens.clamp_max(vocabulary - 1)).masked_fill(tokens >= vocabulary, -torch.inf)
    return tokens.gather(1, scores.topk(count).indices)


def _divergences(look: Look, student_NV: Tensor, teacher_NV: Tensor, mine_NT: Tensor) -> Tensor:
    """The numbers of `DIVERGENCES` for N nodes, (N, D); `mine` are the student's best tokens."""
    theirs_NT = _largest(
        look.teacher_maxima_NB, mine_NT.shape[1], teacher_NV.shape[1], lambda tokens: teacher_NV.gather(1, tokens)
    )
    columns = [
        look.reverse_kl_N,
        look.forward_kl_N,
        look.jsd_N,
        look.distance_N,
        look.similarity_N,
        look.teacher_entropy_N,
        (mine_NT[:, :, None] == theirs_NT[:, None, :]).any(-1).double().mean(-1),
        student_NV.gather(1, theirs_NT).exp().sum(-1),
        teacher_NV.gather(1, mine_NT).exp().sum(-1),
    ]
    return torch.stack([column.double() for column in columns], dim=-1)
