"""Attention by torch's CPU kernel, which keeps no scores, with what it takes to be one softmax with attention over other keys."""

import torch
from jaxtyping import Float
from torch import Tensor


def flash(
    query: Float[Tensor, "G heads T width"],
    key: Float[Tensor, "G heads K width"],
    value: Float[Tensor, "G heads K width"],
    *,
    causal: bool = False,
    scaling: float | None = None,
    mask: Float[Tensor, "#G #heads T K"] | None = None,
) -> tuple[Float[Tensor, "G heads T width"], Float[Tensor, "G heads T"]]:
    """Attention, and the logarithms of its softmax's denominators. Every query is to see a key."""
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, 0.0, causal, attn_mask=mask, scale=scaling
    )
