"""Sums along the vocabulary, the last axis, as compiled code does them fast. Torch only."""

from jaxtyping import Float
from torch import Tensor

_RUN, _RUNS = 4096, 256


def row_sum(score: Float[Tensor, "... V"]) -> Float[Tensor, "..."]:
    """A row's sum from those of even runs: over longer ones compiled code keeps books of its rounding, at every number."""
    vocabulary = score.shape[-1]
    runs = next((runs for runs in range(-(-vocabulary // _RUN), _RUNS) if vocabulary % runs == 0), 1)
    return score.sum(-1) if runs == 1 else score.unflatten(-1, (runs, -1)).sum(-1).sum(-1)


def row_dot(one: Float[Tensor, "... V"], other: Float[Tensor, "... V"]) -> Float[Tensor, "..."]:
    """The inner product of two rows."""
    return row_sum(one * other)
