"""One step of sampling for a batch: inverse transform of each row's distribution at a uniform from its seed and step."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

_CELLS_AT_ONCE = 1 << 25


def sample_tokens(logprobs_BV: Float[Tensor, "B V"], uniform_B: Float[Tensor, " B"]) -> Int[Tensor, " B"]:
    """The token whose interval of the cumulative distribution (float64) holds the row's uniform: (B,)."""
    rows = max(1, _CELLS_AT_ONCE // logprobs_BV.shape[1])
    return torch.cat([_inverse(lp, u) for lp, u in zip(logprobs_BV.split(rows), uniform_B.split(rows), strict=True)])


def _inverse(logprobs_BV: Tensor, uniform_B: Tensor) -> Tensor:
    cumulative = logprobs_BV.double().exp().cumsum(-1)
    target = uniform_B.double()[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target, right=True)[:, 0].clamp_max(logprobs_BV.shape[1] - 1)
