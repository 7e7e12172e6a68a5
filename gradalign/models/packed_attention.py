"""Attention within a packed row: every sequence over its prompt and itself, and over no other.

A prompt's keys are read where they are, once for all sequences where a kernel can. Axes:

    N tokens of a row · G sequences of like lengths · T tokens of the longest · K keys that one of them sees · M keys of all sequences
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from gradalign.models.flash import flash
from gradalign.models.memory import sent

ATTENTION = "gradalign_packed"
_HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Block:
    """Sequences of like lengths, padded on the right, where no token sees them: which queries and keys they are, and which are tokens.

    The first query is the row's token `first`; where all are of one length, `kept` is None.
    """

    first: int
    before: int
    query_GT: Int[Tensor, "G T"]
    key_GK: Int[Tensor, "G K"]
    kept: Int[Tensor, " N"] | None

    def own(self, each: Float[Tensor, "heads N width"]) -> Float[Tensor, "heads G T width"]:
        """What the row has of these sequences' own tokens."""
        if self.kept is not None:
            return each[:, self.query_GT]
        return each[:, self.first : self.first + self.query_GT.numel()].unflatten(1, self.query_GT.shape)

    def tokens(self, each: Tensor) -> Tensor:
        """Of padded sequences (G, T, ...) what is of tokens: (N, ...)."""
        return each.flatten(0, 1) if self.kept is None else each.flatten(0, 1)[self.kept]

    def mask(self, window: int | None) -> Bool[Tensor, "T K"] | None:
        """Which keys a token sees. None where a plain causal mask says it."""
        keys, device = self.key_GK.shape[1], self.key_GK.device
        if not self.before and window is None:
            return None
        ahead_TK = torch.arange(keys, device=device) - torch.arange(self.before, keys, device=device)[:, None]
        return (ahead_TK <= 0) if window is None else (ahead_TK <= 0) & (ahead_TK > -window)


@dataclass(frozen=True)
class Ragged:
    """All sequences one behind the other: where each one's queries and keys end, and which keys those are."""

    query_ends: Int[Tensor, " sequences"]
    key_ends: Int[Tensor, " sequences"]
    key_M: Int[Tensor, " M"]
    longest_query: int
    longest_key: int


Held = dict[int, tuple[Tensor, Tensor]]
"""Keys and values of a prompt, by layer."""


class Row:
    """One pass: sequences behind a prompt of so many tokens, the longest first. The prompt begins the row, and its keys and values are then
    `held`; or it is `begun`: not in the row, and they are held already. What attention needs to know is laid out once, not for each layer.
    """

    def __init__(self, prompt: int, lengths: Sequence[int], held: Held, begun: bool):
        own = [length for length in lengths if length]
        self.prompt, self.held, self.begun = prompt, held, begun
        self.windows: dict[int, int | None] = {}
        self._before = [prompt] * len(own) if begun else [0, *[prompt] * len(own)]
        self._lengths = own if begun else [prompt, *own]
        self._made: dict[Any, Any] = {}

    @property
    def count(self) -> int:
        """Tokens in the row."""
        return sum(self._lengths)

    @property
    def longest(self) -> int:
        """Keys that the last token of the longest sequence sees."""
        return int(np.add(self._before, self._lengths).max())

    @property
    def positions(self) -> Int[np.ndarray, " N"]:
        """Where in its own text each token stands."""
        return np.concatenate([before + np.arange(length) for before, length in zip(self._before, self._lengths, strict=True)])

    @property
    def ahead(self) -> int:
        """Tokens of the prompt in the row."""
        return 0 if self.begun else self.prompt

    def hold(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Keep the prompt's keys and values, if this row computes them."""
        if not self.begun:
            self.held[layer] = key[:, :, : self.prompt].clone(), value[:, :, : self.prompt].clone()

    def behind_prompt(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the prompt, then of the continuations."""
        if not self.begun:
            return key, value
        prompt_key, prompt_value = self.held[layer]
        return _one_behind_other(prompt_key, key), _one_behind_other(prompt_value, value)

    def blocks(self, device: torch.device) -> list[Block]:
        """Sequences that are at most twice as long as another of their block."""
        return self._once(("blocks", device), lambda: [self._block(*bounds, device) for bounds in self._bounds()])

    def mask(self, number: int, window: int | None, device: torch.device) -> Bool[Tensor, "T K"] | None:
        """The mask of a block, on this device."""
        return self._once(("mask", number, window, device), lambda: self.blocks(device)[number].mask(window))

    def ragged(self, device: torch.device) -> Ragged:
        """The sequences for a kernel that takes them as they are."""

        def laid_out() -> Ragged:
            keys = [np.r_[:before, start : start + length] for before, start, length in self._sequences()]
            query_ends, key_ends = (
                np.r_[0, np.cumsum(each)].astype(np.int32) for each in (self._lengths, np.add(self._before, self._lengths))
            )
            lie = [sent(each, device) for each in (query_ends, key_ends, np.concatenate(keys))]
            return Ragged(lie[0], lie[1], lie[2], max(self._lengths), self.longest)

        return self._once(("ragged", device), laid_out)

    def _sequences(self) -> list[tuple[int, int, int]]:
        """Of each sequence: keys of the prompt before it, the number of its own first key, its length."""
        first = self.prompt - self.ahead
        starts = first + np.cumsum([0, *self._lengths[:-1]])
        return list(zip(self._before, starts.tolist(), self._lengths, strict=True))

    def _bounds(self) -> Iterator[tuple[int, int]]:
        start = 0
        while start < len(self._lengths):
            like = (self._before[start], self._lengths[start])
            stop = start
            while stop < len(self._lengths) and self._before[stop] == like[0] and 2 * self._lengths[stop] >= like[1]:
                stop += 1
            yield start, stop
            start = stop

    def _block(self, start: int, stop: int, device: torch.device) -> Block:
        before_G, start_G, length_G = np.array(self._sequences()[start:stop]).T
        before, place_T = int(before_G[0]), np.arange(length_G.max())
        own_GT = start_G[:, None] + np.minimum(place_T, length_G[:, None] - 1)
        key_GK = np.concatenate([np.tile(np.arange(before), (len(own_GT), 1)), own_GT], 1)
        query_GT = own_GT - self.prompt + self.ahead
        kept = np.flatnonzero(place_T < length_G[:, None])
        query, key, tokens = (sent(each, device) for each in (query_GT, key_GK, kept))
        return Block(int(query_GT[0, 0]), before, query, key, None if len(kept) == query_GT.size else tokens)

    def _once(self, name: Any, make: Callable[[], Any]) -> Any:
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]


def _one_behind_other(first: Float[Tensor, "1 heads M width"], then: Float[Tensor, "1 heads N width"]) -> Tensor:
    """Along the tokens, and in memory token by token as both are, so that whole tokens are read from there."""
    return torch.cat([first.transpose(1, 2), then.transpose(1, 2)], 1).transpose(1, 2)


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
    packed: Row | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention of every sequence over its prompt and itself, as transformers' own functions are called."""
    unusual = any(each is not None for each in (attention_mask, softcap, s_aux))
    if unusual or packed is None or query.shape[2] != packed.count:
        raise NotImplementedError("packed attention is plain causal attention within a row of known sequences")
    layer: int = module.layer_idx  # pyright: ignore[reportAssignmentType]
    packed.windows[layer] = sliding_window
    packed.hold(layer, key, value)
    window = sliding_window if sliding_window is not None and packed.longest > sliding_window else None
    if window is None and _has_parted_kernel(query, value):
        return _attend_parted(query, key, value, packed, layer, scaling), None
    key, value = packed.behind_prompt(layer, key, value)
    if window is None and _has_ragged_kernel(query, value):
        return _attend_ragged(query, key, value, packed, scaling), None
    return _attend_blocks(module, query, key, value, packed, scaling, window), None


ALL_ATTENTION_FUNCTIONS.register(ATTENTION, _attend)


def _has_ragged_kernel(query: Tensor, value: Tensor) -> bool:
    width = query.shape[-1]
    if not query.is_cuda or query.dtype not in _HALF or width % 8 or width > 256 or value.shape[-1] != width:
        return False
    return torch.cuda.get_device_capability(query.device) >= (8, 0) and torch.backends.cuda.is_flash_attention_available()


def _attend_ragged(
    query: Tensor, key: Tensor, value: Tensor, row: Row, scaling: float | None
) -> Float[Tensor, "1 N heads width"]:
    """Flash attention over sequences of any lengths, whose causal mask is aligned to the last key (Dao, arXiv 2307.08691)."""
    lie = row.ragged(query.device)
    query, key, value = (each[0].transpose(0, 1) for each in (query, key, value))
    return torch.ops.aten._flash_attention_forward(
        query, key[lie.key_M], value[lie.key_M], lie.query_ends, lie.key_ends, lie.longest_query, lie.longest_key, 0.0, True, False,
        scale=scaling,
    )[0][None]  # fmt: skip


def _has_parted_kernel(query: Tensor, value: Tensor) -> bool:
    return query.device.type == "cpu" and query.shape[-1] == value.shape[-1]


def _attend_parted(
    query: Tensor, key: Tensor, value: Tensor, row: Row, layer: int, scaling: float | None
) -> Float[Tensor, "1 N heads width"]:
    """On a CPU: a causal kernel, which passes over what no token sees, over each sequence's own tokens, and one product over the prompt for
    the queries of all. Each also gives the logarithm of its softmax's denominator, by which the two are weighed to be one softmax
    (Juravsky et al., arXiv 2402.05099, eq. 3).
    """
    found, denominators = [], []
    for block in row.blocks(query.device):
        taken = (block.own(each[0]).transpose(0, 1) for each in (query, key, value))
        states, denominator = flash(*taken, causal=True, scaling=scaling)
        found.append(block.tokens(states.transpose(1, 2)))
        denominators.append(block.tokens(denominator.transpose(1, 2)))
    own, own_denominator = torch.cat(found), torch.cat(denominators)
    ahead = row.ahead
    if ahead < row.count:
        states, denominator = flash(query[:, :, ahead:], *row.held[layer], scaling=scaling)
        share = (own_denominator[ahead:] - denominator[0].T).sigmoid_()[..., None].to(own.dtype)
        own[ahead:] = torch.lerp(states[0].transpose(0, 1), own[ahead:], share)
    return own[None]


def _attend_blocks(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    row: Row,
    scaling: float | None,
    window: int | None,
) -> Float[Tensor, "1 N heads width"]:
    """transformers' own attention, block by block."""
    parts = []
    for number, block in enumerate(row.blocks(query.device)):
        taken = [
            each[0][:, at].transpose(0, 1) for each, at in ((query, block.query_GT), (key, block.key_GK), (value, block.key_GK))
        ]
        mask = row.mask(number, window, query.device)
        states = ALL_ATTENTION_FUNCTIONS["sdpa"](module, *taken, mask, scaling=scaling, is_causal=True)[0]
        parts.append(block.tokens(states))
    return torch.cat(parts)[None]
