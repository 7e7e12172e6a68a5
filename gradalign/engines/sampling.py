"""One step of sampling: inverse transform of each row's distribution at a uniform from its seed and step."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def sample_tokens(logprobs_BV: Float[Tensor, "B V"], uniform_B: Float[Tensor, " B"]) -> Int[Tensor, " B"]:
    """The token whose interval of the cumulative distribution (float64) holds the row's uniform: (B,)."""
    cumulative = logprobs_BV.double().exp().cumsum(-1)
    target = uniform_B.double()[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target, right=True)[:, 0].clamp_max(logprobs_BV.shape[1] - 1)
