"""Attention of rows that share prefixes: the keys and values of a prefix are held once, however many rows go on from it.

A row's next token attends to its prefix and to the row's own tokens apart; the two are merged by their log-sum-exp, which is attention
over both (Milakov and Gimelshein, arXiv 1805.02867; Juravsky et al., arXiv 2402.05099). Knows keys and values, nothing of sampling.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

ATTENTION = "gradalign_shared_prefixes"
_FIRST_ROOM = 32


@dataclass(eq=False)
class Prefixes:
    """P prefixes, padded on the right to L tokens: keys and values of each layer, (P, heads, L, width)."""

    keys: list[Float[Tensor, "P heads L width"]]
    values: list[Float[Tensor, "P heads L width"]]

    def __len__(self) -> int:
        return len(self.keys[0])

    @classmethod
    def joined(cls, parts: Sequence["Prefixes"]) -> "Prefixes":
        """All prefixes of several, in their order."""
        longest = max(part.keys[0].shape[2] for part in parts)

        def join(layers: Sequence[Tensor]) -> Tensor:
            return torch.cat([torch.nn.functional.pad(layer, (0, 0, 0, longest - layer.shape[2])) for layer in layers])

        if len(parts) == 1:
            return parts[0]
        keys, values = ([join(layers) for layers in zip(*of, strict=True)] for of in zip(*((p.keys, p.values) for p in parts)))
        return cls(keys, values)

    def ordered(self, places: np.ndarray) -> "Prefixes":
        """These prefixes in another order."""
        if (places == np.arange(len(self))).all():
            return self
        index = torch.from_numpy(places)
        keys, values = ([layer[index.to(layer.device)] for layer in of] for of in (self.keys, self.values))
        return Prefixes(keys, values)


def computed_prefixes(body: torch.nn.Module, prefixes: Sequence[Sequence[int]], device: torch.device) -> Prefixes:
    """Keys and values of prefixes, padded on the right; what all of them begin with is computed once."""
    common = _common(prefixes)
    cache = DynamicCache()
    if common:
        body(input_ids=torch.tensor([list(prefixes[0][:common])], device=device), past_key_values=cache, use_cache=True)
        cache.batch_repeat_interleave(len(prefixes))
    width = max(len(prefix) for prefix in prefixes) - common
    if width:
        padded = np.zeros((len(prefixes), width), dtype=np.int64)
        for row, prefix in enumerate(prefixes):
            padded[row, : len(prefix) - common] = prefix[common:]
        body(input_ids=torch.from_numpy(padded).to(device), past_key_values=cache, use_cache=True)
    return Prefixes([layer.keys for layer in cache.layers], [layer.values for layer in cache.layers])  # pyright: ignore


def _common(prefixes: Sequence[Sequence[int]]) -> int:
    """How many tokens all of them begin with."""
    first, last = min(prefixes), max(prefixes)
    return next((i for i, (a, b) in enumerate(zip(first, last)) if a != b), min(len(first), len(last)))


@dataclass(eq=False)
class _Group:
    """The rows that go on from one set of prefixes, R at each of P: their numbers, which of these are padding, and what they may see."""

    prefixes: Prefixes
    rows_PR: Int[Tensor, "P R"]
    real_PR: Bool[Tensor, "P R"]
    position_PR: Int[Tensor, "P R"]
    length_PR: Int[Tensor, "P R"]

    def hidden(self, window: int | None) -> Bool[Tensor, "P 1 R 1 L"]:
        """Keys that a row may not see: those of longer prefixes, of padding, and those before its window."""
        at_L = torch.arange(self.prefixes.keys[0].shape[2], device=self.rows_PR.device)
        hidden = at_L >= self.length_PR[..., None]
        if window is not None:
            hidden |= at_L <= self.position_PR[..., None] - window
        return hidden[:, None, :, None, :]


class Rows(Cache):
    """B rows under way: keys and values of their own tokens, and the prefixes that they go on from.

    `length_B` counts a row's own tokens, `behind_B` those of its prefix. Rows come by `place` and go by `end`.
    """

    def __init__(self, count: int, device: torch.device):
        super().__init__(layers=[])
        self.device = device
        self.own: list[tuple[Tensor, Tensor]] = []
        self.sets: list[Prefixes] = []
        self.set_B = np.full(count, -1)
        self.place_B = np.zeros(count, dtype=np.int64)
        self.behind_B = np.zeros(count, dtype=np.int64)
        self.length_B = np.zeros(count, dtype=np.int64)
        self.seen: dict[Any, Tensor] = {}
        self.groups: list[_Group] = []

    def place(self, rows: np.ndarray, prefixes: Prefixes, places: np.ndarray, lengths: np.ndarray) -> None:
        """Start these rows anew, each after `lengths` tokens of a prefix."""
        known = next((i for i, held in enumerate(self.sets) if held is prefixes), len(self.sets))
        if known == len(self.sets):
            self.sets.append(prefixes)
        self.set_B[rows], self.place_B[rows], self.behind_B[rows], self.length_B[rows] = known, places, lengths, 0

    def keep(self, rows: np.ndarray) -> None:
        """Go on with these rows alone, in this order."""
        index = torch.from_numpy(rows).to(self.device)
        self.own = [(keys[index.to(keys.device)], values[index.to(values.device)]) for keys, values in self.own]
        self.set_B, self.place_B, self.behind_B, self.length_B = (
            of[rows] for of in (self.set_B, self.place_B, self.behind_B, self.length_B)
        )

    def end(self, rows: np.ndarray) -> None:
        """These rows are finished: they go on from nothing, and their tokens make room."""
        self.set_B[rows] = -1
        self.behind_B[rows] = self.length_B[rows] = 0

    def drop(self, prefixes: Prefixes) -> None:
        """No row goes on from these prefixes any more."""
        gone = next(i for i, held in enumerate(self.sets) if held is prefixes)
        del self.sets[gone]
        self.set_B = np.where(self.set_B == gone, -1, self.set_B - (self.set_B > gone))

    def begin_step(self) -> Int[np.ndarray, " B"]:
        """Lay out which row goes on from which prefix; the positions of the next tokens."""
        position_B = self.behind_B + self.length_B
        self.seen = {}
        self.groups = [self._group(number, position_B) for number in range(len(self.sets)) if (self.set_B == number).any()]
        return position_B

    def end_step(self) -> None:
        """The step's tokens are the rows' own from now on."""
        self.length_B[self.set_B >= 0] += 1

    def _group(self, number: int, position_B: np.ndarray) -> _Group:
        rows = np.flatnonzero(self.set_B == number)
        rows = rows[np.argsort(self.place_B[rows], kind="stable")]
        place = self.place_B[rows]
        rank = np.arange(len(rows)) - np.searchsorted(place, place)
        shape = (len(self.sets[number]), int(rank.max()) + 1)
        rows_PR, real_PR = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=bool)
        rows_PR[place, rank], real_PR[place, rank] = rows, True
        length_PR = np.where(real_PR, self.behind_B[rows_PR], 0)
        arrays = (rows_PR, real_PR, position_B[rows_PR], length_PR)
        return _Group(self.sets[number], *(torch.from_numpy(array).to(self.device) for array in arrays))

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Put a step's keys and values behind those of each row; all rows' own so far, whatever stands behind a row's last."""
        if layer_idx == len(self.own):
            self.own.append((_room(key_states, _FIRST_ROOM), _room(value_states, _FIRST_ROOM)))
        longest = int(self.length_B.max()) + 1
        keys, values = self.own[layer_idx]
        if longest > keys.shape[2]:
            keys, values = (torch.nn.functional.pad(old, (0, 0, 0, old.shape[2])) for old in (keys, values))
            self.own[layer_idx] = keys, values
        row, at = self._once("row", keys.device, self._row), self._once("at", keys.device, lambda: torch.from_numpy(self.length_B))
        keys[row, :, at], values[row, :, at] = key_states[:, :, 0], value_states[:, :, 0]
        return keys[:, :, :longest], values[:, :, :longest]

    def _row(self) -> Tensor:
        return torch.arange(len(self.length_B))

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions are always given, so nothing depends on this."""
        return int(self.length_B.max())

    def own_hidden(self, window: int | None, device: torch.device) -> Bool[Tensor, "B 1 1 S"]:
        """Own keys that a row may not see: what stands behind its newest, and what lies before its window."""

        def hidden() -> Tensor:
            at_S = np.arange(int(self.length_B.max()) + 1)
            far = at_S > self.length_B[:, None]
            if window is not None:
                far |= at_S <= self.length_B[:, None] - window
            return torch.from_numpy(far)[:, None, None, :]

        return self._once(("own", window), device, hidden)

    def group_hidden(self, group: _Group, window: int | None, device: torch.device) -> Tensor:
        """`_Group.hidden`, computed once a step."""
        return self._once((id(group), window), device, lambda: group.hidden(window))

    def _once(self, key: Any, device: torch.device, make: Callable[[], Tensor]) -> Tensor:
        if (key, device) not in self.seen:
            self.seen[key, device] = make().to(device)
        return self.seen[key, device]


def _room(states: Tensor, tokens: int) -> Tensor:
    count, heads, _, width = states.shape
    return states.new_zeros(count, heads, tokens, width)


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
    count, heads, _, width = query.shape
    query = (query * (width**-0.5 if scaling is None else scaling)).view(count, key.shape[1], -1, width)

    def weighed(scores: Tensor, hidden: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        scores = scores.float()
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        scores = scores.masked_fill(hidden, -torch.inf)
        top = scores.amax(-1, keepdim=True).clamp_min(torch.finfo(scores.dtype).min)
        weight = (scores - top).exp_()
        return top, weight.sum(-1, keepdim=True), weight.to(values.dtype)

    top, total, weight = weighed(query @ key.mT, rows.own_hidden(sliding_window, query.device), value)
    mixed = (weight @ value).float()
    for group in rows.groups:
        keys, values = group.prefixes.keys[module.layer_idx], group.prefixes.values[module.layer_idx]  # pyright: ignore
        if not keys.shape[2]:
            continue
        at, real = group.rows_PR.to(query.device), group.real_PR.to(query.device)
        P, R = at.shape
        each = query[at].transpose(1, 2)  # (P, heads, R, grouped, width)
        shape = each.shape
        scores = (each.reshape(P, shape[1], -1, width) @ keys.mT).view(*shape[:-1], -1)
        theirs, sums, weight = weighed(scores, rows.group_hidden(group, sliding_window, query.device), values)
        read = (weight.view(P, shape[1], -1, weight.shape[-1]) @ values).view(*shape[:-1], -1).float()
        chosen = at[real]
        theirs, sums, read = (part.transpose(1, 2)[real] for part in (theirs, sums, read))
        before = top[chosen]
        highest = torch.maximum(before, theirs)
        mine, other = (before - highest).exp(), (theirs - highest).exp()
        mixed[chosen] = mixed[chosen] * mine + read * other
        total[chosen] = total[chosen] * mine + sums * other
        top[chosen] = highest
    found = (mixed / total).to(query.dtype).view(count, 1, heads, value.shape[-1])
    return found, None


ALL_ATTENTION_FUNCTIONS.register(ATTENTION, _attend)


@contextmanager
def sharing(model: PreTrainedModel) -> Iterator[None]:
    """Forward passes in this block go over `Rows`, one token each."""
    config = model.config.get_text_config()
    before = config._attn_implementation
    config._attn_implementation = ATTENTION
    try:
        yield
    finally:
        config._attn_implementation = before


def next_states(model: PreTrainedModel, rows: Rows, tokens_B: Int[np.ndarray, " B"]) -> Float[Tensor, "B H"]:
    """Feed each row its next token; hidden states after it."""
    position_B = torch.from_numpy(rows.begin_step()).to(rows.device)
    with sharing(model):
        output = model.base_model(
            input_ids=torch.from_numpy(tokens_B).to(rows.device)[:, None],
            position_ids=position_B[:, None],
            past_key_values=rows,
            use_cache=True,
            rows=rows,
        )
    rows.end_step()
    return output.last_hidden_state[:, -1]


@torch.inference_mode()
def shares_prefixes(model: PreTrainedModel, device: torch.device) -> bool:
    """Does this architecture attend as it would alone? Asked by trying: layers of other kinds than attention, or of unusual attention, do not."""
    prefixes, more = [(0, 1, 2, 3, 4), (0, 1, 2), (5, 6, 7)], (1, 2, 3)
    try:
        held = computed_prefixes(model.base_model, [prefixes[0], prefixes[2]], device)
        rows = Rows(3, device)
        rows.place(np.arange(3), held, np.array([0, 0, 1]), np.array([4, 2, 2]))
        for tokens in (np.array([prefix[-1] for prefix in prefixes]), *(np.full(3, token) for token in more)):
            states = next_states(model, rows, tokens)
    except (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError):
        return False
    ids = [torch.tensor([[*prefix, *more]], device=device) for prefix in prefixes]
    alone = torch.cat([model.base_model(input_ids=each).last_hidden_state[:, -1] for each in ids])
    near = 1e-3 if states.dtype == torch.float32 else 5e-2
    return bool((states - alone).float().norm() <= near * alone.float().norm())
