"""Attention by torch's CPU kernel, which keeps no scores, with what it takes to be one softmax with attention over other keys."""

from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor


def flash(
    query: Float[Tensor, "G heads T width"],
    key: Float[Tensor, "G fewer K width"],
    value: Float[Tensor, "G fewer K width"],
    *,
    causal: bool = False,
    scaling: float | None = None,
    mask: Float[Tensor, "#G #heads T K"] | None = None,
) -> tuple[Float[Tensor, "G heads T width"], Float[Tensor, "G heads T"]]:
    """Attention, and the logarithms of its softmax's denominators. Every query is to see a key. As many heads of queries read each head of
    keys (Ainslie et al., arXiv 2305.13245)."""
    groups = query.shape[1] // key.shape[1]
    if groups > 1 and not _groups_heads():
        key, value = (each.repeat_interleave(groups, 1) for each in (key, value))
    return _kernel(query, key, value, causal, mask, scaling)


def _kernel(
    query: Tensor, key: Tensor, value: Tensor, causal: bool, mask: Tensor | None, scaling: float | None
) -> tuple[Tensor, Tensor]:
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, 0.0, causal, attn_mask=mask, scale=scaling
    )


@cache
def _groups_heads() -> bool:
    """Does this torch's kernel know heads of keys that several heads of queries read? Asked by trying: older ones read past the keys, where
    here are others."""
    query, held = torch.linspace(-1, 1, 64).view(1, 4, 2, 8), torch.linspace(1, -2, 96).sin().view(1, 4, 3, 8)
    try:
        found, _ = _kernel(query, held[:, :2], held[:, :2], False, None, None)
    except RuntimeError:
        return False
    whole = held[:, :2].repeat_interleave(2, 1)
    return torch.allclose(found, _kernel(query, whole, whole, False, None, None)[0])
