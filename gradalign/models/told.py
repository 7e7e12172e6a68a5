"""What is known of a teacher's tokens at the nodes of a student's, as columns of one tensor. Knows no model and no tokenizer."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

EXTRAS, MOVES = 32, 32  # most student tokens, at a node, of earlier crossings and of spans; the largest are kept
EDGE, UNKNOWN = -1, -2
_ROUNDING = float(torch.finfo(torch.float32).eps)


@dataclass(frozen=True, eq=False)
class Told:
    """What is known at N nodes, as columns of one tensor, so that nodes can be gathered, cut and moved like hidden states.

    `hidden_NH` are the teacher's, after its tokens that end at or before the node. `kind_N` says where the node lies: at an edge of the
    teacher's (-1), where nothing is known (-2), or inside a token, then which bytes are written already. Masses are logarithms relative to
    that of the text up to `hidden_NH`: `extra_NW` of student tokens `target_NW` in teacher tokens that begin earlier, `rest_N` of what was
    too small to be kept of them; `moved_NM` of the teacher's spans that the student wrote as `to_NM`, whose first token stands for
    `from_NM`. Ids are -1 and masses NaN where there is nothing.
    """

    hidden_NH: Float[Tensor, "N H"]
    kind_N: Float[Tensor, " N"]
    rest_N: Float[Tensor, " N"]
    target_NW: Float[Tensor, "N W"]
    extra_NW: Float[Tensor, "N W"]
    from_NM: Float[Tensor, "N M"]
    to_NM: Float[Tensor, "N M"]
    moved_NM: Float[Tensor, "N M"]

    @classmethod
    def unpack(cls, states_NH: Float[Tensor, "N H"]) -> "Told":
        """From the columns."""
        width = states_NH.shape[1] - 2 - 2 * EXTRAS - 3 * MOVES
        hidden, kind, rest, *others = states_NH.split([width, 1, 1, EXTRAS, EXTRAS, MOVES, MOVES, MOVES], dim=1)
        return cls(hidden, kind[:, 0], rest[:, 0], *others)

    def pack(self) -> Float[Tensor, "N H"]:
        """To the columns, in single precision or wider."""
        dtype = torch.promote_types(self.hidden_NH.dtype, torch.float32)
        sides = (
            self.kind_N[:, None],
            self.rest_N[:, None],
            self.target_NW,
            self.extra_NW,
            self.from_NM,
            self.to_NM,
            self.moved_NM,
        )
        return torch.cat([self.hidden_NH.to(dtype), *(side.to(self.hidden_NH.device, dtype) for side in sides)], dim=1)


def add_told(
    mass: Float[Tensor, "N V"], known: Bool[Tensor, "N V"], ids_NW: Float[Tensor, "N W"], values_NW: Float[Tensor, "N W"]
) -> None:
    """Add values to the masses of their ids, which are told thereby."""
    there = ids_NW >= 0
    rows, ids = there.nonzero()[:, 0], ids_NW[there].long()
    mass.index_put_((rows, ids), values_NW[there], accumulate=True)
    known[rows, ids] = True


def move_told(mass: Float[Tensor, "N V"], known: Bool[Tensor, "N V"], told: Told) -> Float[Tensor, "N V"]:
    """Masses after those of spans were taken from the tokens that stood for them; what is left of those is at least its rounding."""
    moved = told.moved_NM.double().exp()
    add_told(mass, known, told.to_NM, moved)
    least = _ROUNDING * mass
    add_told(mass, known, told.from_NM, -moved)
    return torch.maximum(mass, least)


def fold_told(
    mass: Float[Tensor, "N V"],
    known: Bool[Tensor, "N V"],
    to_NM: Float[Tensor, "N M"],
    levels: Sequence[tuple[Tensor, Tensor]],
) -> None:
    """Give the mass of tokens to those that they are at home with, where these are told, and leave the tokens untold.

    What is told of such a token is a part of it alone: another part is with its home, and only the whole of both is known. Tokens of spans,
    `to_NM`, are told whole and stay. `levels` are tokens with their homes, those first whose home has no other.
    """
    there = to_NM >= 0
    stays = torch.zeros_like(known)
    stays[there.nonzero()[:, 0], to_NM[there].long()] = True
    told = known.clone()  # itself, or a token at whose home it is
    for token_G, home_G in levels:
        told[:, token_G] |= told[:, home_G]
    for token_G, home_G in reversed(levels):
        folded = told[:, home_G] & ~stays[:, token_G]
        moved = mass[:, token_G].masked_fill(~folded, 0.0)
        mass.index_add_(1, home_G, moved)
        mass[:, token_G] -= moved
        known[:, token_G] &= ~folded
