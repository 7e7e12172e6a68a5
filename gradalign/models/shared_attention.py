"""Attention of rows that share prefixes: each line of rows reads its prefix once, each row its own tokens, under one softmax.

Scores against the prefix are one product for all rows of a line, as in Hydragen (Juravsky et al., arXiv 2402.05099); those against own
tokens are put beside them, so that nothing has to be merged afterwards. On a CPU a kernel reads the prefixes, and what it finds is merged
with what own tokens give. Axes are those of `shared_prefixes`.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from gradalign.models.attention import forward, only_attends, windows
from gradalign.models.flash import flash
from gradalign.models.shared_prefixes import Rows, computed_prefixes

ATTENTION = "gradalign_shared_prefixes"
_CACHED = 1 << 18  # scores that stay in a core's cache


def _attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    rows: Rows | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """One query a row over its prefix and its own tokens. Grouped heads are not repeated."""
    if rows is None or s_aux is not None or query.shape[2] != 1:
        raise NotImplementedError("attention over shared prefixes takes one token a row, and no sinks")
    layer: int = module.layer_idx  # pyright: ignore[reportAssignmentType]
    rows.window_of[layer] = sliding_window
    if rows.parted and sliding_window is None and softcap is None and query.shape[-1] == value.shape[-1]:
        return _attend_parts(query, key, value, rows, layer, scaling), None
    count, heads, own, width = key.shape
    places, lines = rows.places(query.device) or (None, None), (-1, rows.layout.width)
    query = (query * (width**-0.5 if scaling is None else scaling)).view(count, heads, -1, width)
    scores = _to_lines(_product(query, key.mT), places[0], lines)
    mask = rows.mask(sliding_window, query.device, scores.dtype)
    if not rows.prefixes.longest:
        return _product(_to_rows(_weights(scores, softcap, mask, value), places[1]), value).view(
            count, 1, -1, value.shape[-1]
        ), None
    query = _to_lines(query, places[0], lines)
    prefix_keys, prefix_values = rows.prefixes.keys[layer].mT, rows.prefixes.values[layer]
    weights, reads = [], []
    for part, keys in _parts(rows, scores):
        both = scores.new_empty(*scores[part].shape[:-1], keys + own)
        _line_product(query[part], prefix_keys[part][..., :keys], both[..., :keys])
        both[..., keys:] = scores[part]
        both = _weights(both, softcap, None if mask is None else _shown(mask[part], keys, own), value)
        weights.append(both[..., keys:])
        reads.append(_line_product(both[..., :keys], prefix_values[part][:, :, :keys]))
    weights, read = (each[0] if len(each) == 1 else torch.cat(each) for each in (weights, reads))
    found = _product(_to_rows(weights, places[1]), value) + _to_rows(read, places[1])
    return found.view(count, 1, -1, value.shape[-1]), None


def _attend_parts(
    query: Tensor, key: Tensor, value: Tensor, rows: Rows, layer: int, scaling: float | None
) -> Float[Tensor, "B 1 heads width"]:
    """On a CPU: a kernel whose scores stay in its cache over the prefixes, part by part, and each row's own tokens apart. Both give the
    logarithms of their softmax's denominators, by which they are weighed to be one softmax (Juravsky et al., arXiv 2402.05099, eq. 3).
    """
    count, heads, _, width = key.shape
    query = query.view(count, heads, -1, width)
    scores = _product(query, key.mT).float()
    scores = torch.add(rows.own_mask(query.device), scores, alpha=width**-0.5 if scaling is None else scaling)
    best = scores.amax(-1, keepdim=True)
    weights = scores.sub_(best).exp_()
    total = weights.sum(-1, keepdim=True)
    own = _product(weights.to(value.dtype), value).div_(total)
    if rows.prefixes.longest:
        read, denominator = _read_prefixes(query, rows, layer, scaling)
        own = torch.lerp(read, own, (best + total.log() - denominator).sigmoid_().to(own.dtype))
    return own.reshape(count, 1, -1, width)


def _read_prefixes(query: Tensor, rows: Rows, layer: int, scaling: float | None) -> tuple[Tensor, Tensor]:
    """Attention (B, heads, groups, width) of every row over what it goes on from, and logarithms of denominators (B, heads, groups, 1).

    To the kernel a row's queries that read the same keys are several rows: the more it has at once, the faster it is.
    """
    count, heads, groups, width = query.shape
    query = query.transpose(0, 1).reshape(1, heads, count * groups, width)
    keys, values = rows.prefixes.keys[layer], rows.prefixes.values[layer]
    found, denominators = [], []
    for part in rows.parts():
        of, line = query[:, :, part.start * groups : part.stop * groups], slice(part.line, part.line + 1)
        if part.keys:
            mask = rows.part_mask(part, groups, query.device, query.dtype)
            each = flash(of, keys[line, :, : part.keys], values[line, :, : part.keys], scaling=scaling, mask=mask)
        else:
            each = query.new_zeros(of.shape), torch.full(of.shape[:-1], -torch.inf)
        found.append(each[0][0].transpose(0, 1))
        denominators.append(each[1][0].T)
    states, denominator = (torch.cat(each).unflatten(0, (count, groups)).transpose(1, 2) for each in (found, denominators))
    return states, denominator[..., None]


def _weights(scores: Tensor, softcap: float | None, mask: Tensor | None, like: Tensor) -> Tensor:
    """Softmax in float32 of scores, which nobody else has any more."""
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if mask is not None:
        scores += mask
    return scores.softmax(-1, dtype=torch.float32).to(like.dtype)


def _shown(mask: Tensor, keys: int, own: int) -> Tensor:
    """A mask over a whole prefix and own tokens, as one over the prefix's first keys and own tokens."""
    return mask if mask.shape[-1] == keys + own else torch.cat([mask[..., :keys], mask[..., -own:]], -1)


def _parts(rows: Rows, scores: Tensor) -> Iterator[tuple[slice, int]]:
    """Lines to go through together, and how many keys of their prefixes they read: on a CPU so many that their scores stay in its cache,
    elsewhere all.
    """
    lines, each = len(scores), scores[0, ..., 0].numel() * (rows.prefixes.longest + scores.shape[-1])
    size = max(1, _CACHED // each) if scores.device.type == "cpu" else lines
    for start in range(0, lines, size):
        part = slice(start, start + size)
        yield part, int(rows.read_P[part].max())


def _to_lines(each: Tensor, row_C: Tensor | None, lines: tuple[int, int]) -> Tensor:
    """(B, heads, groups, x) as (P, heads, R, groups, x)."""
    return (each if row_C is None else each[row_C]).unflatten(0, lines).transpose(1, 2)


def _to_rows(each: Tensor, place_B: Tensor | None) -> Tensor:
    """(P, heads, R, groups, x) as (B, heads, groups, x)."""
    flat = each.transpose(1, 2).flatten(0, 1)
    return flat if place_B is None else flat[place_B]


def _product(each: Tensor, held: Tensor) -> Tensor:
    """(B, heads, groups, x) times (B, heads, x, y), each row's own."""
    return torch.bmm(each.flatten(0, 1), held.flatten(0, 1)).view(*each.shape[:-1], -1)


def _line_product(each: Tensor, held: Tensor, into: Tensor | None = None) -> Tensor:
    """(P, heads, R, groups, x) times (P, heads, x, y), the same for all rows of a line; written into a larger tensor's part, if given."""
    lines, heads, rows, groups, width = each.shape
    into = None if into is None else into.flatten(2, 3).flatten(0, 1)
    product = torch.bmm(each.reshape(lines * heads, rows * groups, width), held.flatten(0, 1), out=into)
    return product.view(lines, heads, rows, groups, held.shape[-1])


ALL_ATTENTION_FUNCTIONS.register(ATTENTION, _attend)


def next_states(
    model: PreTrainedModel, rows: Rows, tokens_B: Int[np.ndarray, " B"], context_window: int = 2**31
) -> Float[Tensor, "B H"]:
    """Feed each row its next token; hidden states after it. Rows that have ended may be past the context window, and stay at its end."""
    position_B = np.minimum(rows.begin_step(), context_window - 1)
    ids_2B = torch.from_numpy(np.stack([tokens_B, position_B])).to(rows.device)
    inputs: dict[str, Any] = {"input_ids": ids_2B[0, :, None], "position_ids": ids_2B[1, :, None]}
    output = forward(model, ATTENTION, **inputs, past_key_values=rows, use_cache=True, rows=rows)
    rows.end_step()
    return output.last_hidden_state[:, -1]


def new_rows(model: PreTrainedModel, device: torch.device) -> Rows:
    """Rows of this model, none as yet. On a CPU prefixes are read part by part, if all layers attend to all tokens as the kernel does."""
    config = model.config.get_text_config()
    unusual = any(getattr(config, name, None) for name in ("attn_logit_softcapping", "v_head_dim"))
    return Rows(device, device.type == "cpu" and not unusual and not any(windows(config).values()))


@torch.inference_mode()
def shares_prefixes(model: PreTrainedModel, device: torch.device) -> bool:
    """Does this architecture attend as it would alone? Asked by trying: layers of other kinds, or of unusual attention, do not."""
    config = model.config.get_text_config()
    if not only_attends(config):
        return False
    prefixes, more = [(0, 1, 2, 3, 4), (0, 1, 2), (5, 6, 7)], (1, 2, 3)
    try:
        held = computed_prefixes(model, np.arange(2), [prefixes[0][:-1], prefixes[2][:-1]], device)
        rows = new_rows(model, device)
        rows.arrange(np.full(3, -1), np.array([0, 0, 1]), np.array([len(prefix) - 1 for prefix in prefixes]), [held])
        for tokens in (np.array([prefix[-1] for prefix in prefixes]), *(np.full(3, token) for token in more)):
            states = next_states(model, rows, tokens)
    except (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError):
        return False
    if rows.window_of != windows(config):
        return False
    ids = [torch.tensor([[*prefix, *more]], device=device) for prefix in prefixes]
    alone = torch.cat([forward(model, input_ids=each).last_hidden_state[:, -1] for each in ids])
    near = 1e-3 if states.dtype == torch.float32 else 5e-2
    return bool((states - alone).float().norm() <= near * alone.float().norm())
