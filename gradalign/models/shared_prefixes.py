"""Rows that share prefixes: the keys and values of a prefix are held once for a line of rows that go on from it.

Knows keys and values and which of them a row may see; nothing of attention's arithmetic (`shared_attention`) or of sampling. Axes of both:

    B rows · P lines of rows, one prefix each · R places of a line · K keys of a line: its prefix's, then the rows' own
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel

from gradalign.models.attention import forward
from gradalign.models.lines import Layout, Part, laid_out, one_each, parts_of
from gradalign.models.memory import vacant

_FIRST_ROOM = 8


@dataclass(eq=False)
class Prefixes:
    """P prefixes, padded on the right: their names, lengths, and keys and values of each layer, (P, heads, L, width)."""

    name_P: Int[np.ndarray, " P"]
    length_P: Int[np.ndarray, " P"]
    keys: list[Float[Tensor, "P heads L width"]]
    values: list[Float[Tensor, "P heads L width"]]

    @cached_property
    def longest(self) -> int:
        return int(self.length_P.max(initial=0))


def no_prefixes() -> Prefixes:
    return Prefixes(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), [], [])


def computed_prefixes(
    model: PreTrainedModel, name_P: Int[np.ndarray, " P"], prefixes: Sequence[tuple[int, ...]], device: torch.device
) -> Prefixes:
    """Keys and values of prefixes, padded on the right; what all of them begin with is computed once."""
    common = common_length(prefixes)
    length_P = np.array([len(prefix) for prefix in prefixes])
    cache = DynamicCache()
    if common:
        forward(
            model, input_ids=torch.tensor([list(prefixes[0][:common])], device=device), past_key_values=cache, use_cache=True
        )
        cache.batch_repeat_interleave(len(prefixes))
    if length_P.max() > common:
        padded = np.zeros((len(prefixes), length_P.max() - common), dtype=np.int64)
        for row, prefix in enumerate(prefixes):
            padded[row, : len(prefix) - common] = prefix[common:]
        forward(model, input_ids=torch.from_numpy(padded).to(device), past_key_values=cache, use_cache=True)
    return Prefixes(name_P, length_P, [layer.keys for layer in cache.layers], [layer.values for layer in cache.layers])  # pyright: ignore


def common_length(prefixes: Collection[tuple[int, ...]]) -> int:
    """How many tokens all of them begin with."""
    first, last = min(prefixes), max(prefixes)
    return next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))


class Rows(Cache):
    """B rows under way: keys and values of their own tokens, and of the prefixes that they go on from.

    A step's tokens are one column of all rows, whenever these began (`start_B`); what lies before its beginning a row may not see, nor what
    of its prefix comes after the `behind_B` tokens that it goes on from. All this is laid out when the rows change, in `arrange`, and
    brought to each device once: a step finds it ready. Where prefixes are read part by part (`parted`), each is held once, else once for
    each line.
    """

    def __init__(self, device: torch.device, parted: bool = False):
        super().__init__(layers=[])
        self.device, self.parted = device, parted
        self.columns = 0
        self.own: list[tuple[Tensor, Tensor]] = []
        self.prefixes = no_prefixes()
        self.start_B = self.behind_B = np.zeros(0, dtype=np.int64)
        self.layout = Layout(1, self.start_B, self.start_B, self.start_B)
        self.read_P = self.start_B  # of each line's prefix, how much some row of it goes on from
        self.window_of: dict[int, int | None] = {}
        self._until_change: dict[Any, Any] = {}
        self._this_step: dict[Any, Any] = {}

    @property
    def length_B(self) -> Int[np.ndarray, " B"]:
        """Each row's own tokens so far."""
        return self.columns - self.start_B

    def arrange(
        self,
        row_B: Int[np.ndarray, " B"],
        name_B: Int[np.ndarray, " B"],
        behind_B: Int[np.ndarray, " B"],
        computed: Sequence[Prefixes] = (),
    ) -> None:
        """Go on with these rows: `row_B` is a row's number up to now, or -1 for one that begins; `name_B`, in which equal names lie
        together, names its prefix, which is held already or one of those `computed`.
        """
        names, first_N, count_N = np.unique(name_B, return_index=True, return_counts=True)
        as_they_lie = np.argsort(first_N)
        if self.parted:
            self.layout = one_each(count_N[as_they_lie])
        else:  # but on a CPU all lines are gone through at once, and cost as much as the longest
            keys_B = behind_B if self.device.type == "cpu" else np.zeros_like(behind_B)
            self.layout = laid_out(count_N[as_they_lie], keys_B)
        self.read_P = self.layout.most(behind_B)
        self.prefixes = _taken([self.prefixes, *computed], names[as_they_lie][self.layout.prefix_P])
        self._take_own(row_B)
        self.behind_B = behind_B
        self._until_change, self._this_step = {}, {}

    def _take_own(self, row_B: np.ndarray) -> None:
        """Own tokens of the rows that stay, from the first column that one of them needs. Rows that begin see none of what they get."""
        stays_B = row_B >= 0
        length_B = np.where(stays_B, self.length_B[row_B], 0) if stays_B.any() else np.zeros_like(row_B)
        longest, first = int(length_B.max()), self.columns - int(length_B.max())
        index_B = torch.from_numpy(np.maximum(row_B, 0))
        room = max(_FIRST_ROOM, 1 << longest.bit_length())

        def take(old: Tensor) -> Tensor:
            return _with_room(old[:, :, first : self.columns][index_B.to(old.device)], room)

        for layer, (keys, values) in enumerate(self.own):
            self.own[layer] = take(keys), take(values)
        self.columns, self.start_B = longest, longest - length_B

    def begin_step(self) -> Int[np.ndarray, " B"]:
        """The positions of the next tokens."""
        self._this_step = {}
        return self.behind_B + self.length_B

    def end_step(self) -> None:
        """The step's tokens are the rows' own from now on."""
        self.columns += 1

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Put a step's keys and values into its column. All columns so far, or all that there is room for if rows are read as they lie."""
        if layer_idx == len(self.own):
            self.own.append((_with_room(key_states[:, :, :0], _FIRST_ROOM), _with_room(value_states[:, :, :0], _FIRST_ROOM)))
        keys, values = self.own[layer_idx]
        if self.columns == keys.shape[2]:
            keys, values = self.own[layer_idx] = _with_room(keys, 2 * self.columns), _with_room(values, 2 * self.columns)
        keys[:, :, self.columns], values[:, :, self.columns] = key_states[:, :, 0], value_states[:, :, 0]
        return (keys, values) if self.parted else (keys[:, :, : self.columns + 1], values[:, :, : self.columns + 1])

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions are always given, so nothing depends on this."""
        return self.columns

    def places(self, device: torch.device) -> tuple[Int[Tensor, " C"], Int[Tensor, " B"]] | None:
        """Which row is at each place of the lines, and which place each row has; None where the lines are the rows as they lie."""
        if self.layout.full:
            return None

        def brought() -> tuple[Tensor, Tensor]:
            return torch.from_numpy(self.layout.row_C).to(device), torch.from_numpy(self.layout.place_B).to(device)

        return _once(self._until_change, ("places", device), brought)

    def parts(self) -> list[Part]:
        """Rows as they lie, in parts that read one prefix each."""
        return _once(self._until_change, "parts", lambda: parts_of(self.layout.place_B // self.layout.width, self.behind_B))

    def part_mask(
        self, part: Part, groups: int, device: torch.device, dtype: torch.dtype
    ) -> Float[Tensor, "1 1 queries keys"] | None:
        """What is added to scores of a part's queries, `groups` a row: -inf behind what the row goes on from. None where all see all."""

        def made() -> Tensor:
            behind_Q = np.repeat(self.behind_B[part.start : part.stop], groups)
            return _hidden((np.arange(part.keys) >= behind_Q[:, None])[None, None], device, dtype)

        return None if part.even else _once(self._until_change, (part, groups, device, dtype), made)

    def own_mask(self, device: torch.device) -> Float[Tensor, "B 1 1 room"]:
        """What is added to scores against own tokens: -inf before a row's beginning, and in columns to come."""
        room = self.own[0][0].shape[2]

        def made() -> Tensor:
            column = np.arange(room)
            before_or_later = (column < self.start_B[:, None]) | (column > self.columns)
            return _hidden(before_or_later[:, None, None], device, torch.float32)

        def opened() -> Tensor:
            mask = _once(self._until_change, ("own mask", room, device), made)
            mask[..., self.columns] = 0.0
            return mask

        return _once(self._this_step, ("own mask", device), opened)

    def mask(self, window: int | None, device: torch.device, dtype: torch.dtype) -> Float[Tensor, "P 1 R 1 K"] | None:
        """What is added to a step's scores: -inf where a row may not see a key. None where every row sees all."""
        room, keys = self.own[0][0].shape[2], self.prefixes.longest + self.columns + 1
        plain = _once(self._until_change, ("mask", room, device, dtype), lambda: self._plain_mask(room, device, dtype))
        if window is None or int((self.behind_B + self.length_B).max()) < window:
            return None if plain is None else plain[..., :keys]

        def windowed() -> Tensor:
            column = _once(self._until_change, ("columns", room, device), lambda: self._columns(room, device))[..., :keys]
            far = column <= self.columns - window
            shown = torch.zeros(far.shape, device=device, dtype=dtype) if plain is None else plain[..., :keys]
            return shown.masked_fill(far, -torch.inf)

        return _once(self._this_step, (window, device, dtype), windowed)

    def _plain_mask(self, room: int, device: torch.device, dtype: torch.dtype) -> Tensor | None:
        later_BL = np.arange(self.prefixes.longest) >= self.behind_B[:, None]
        before_BS = np.arange(room) < self.start_B[:, None]
        hidden_BK = np.concatenate([later_BL, before_BS], 1)
        if not hidden_BK.any():
            return None
        return _hidden(self._in_lines(hidden_BK), device, dtype)

    def _columns(self, room: int, device: torch.device) -> Int[Tensor, "P 1 R 1 K"]:
        """The column of each key, counted on to the left over a row's prefix, so that columns are as far apart as positions."""
        shift_B1 = (self.start_B - self.behind_B)[:, None]
        column_BK = np.concatenate(
            [np.arange(self.prefixes.longest) + shift_B1, np.tile(np.arange(room), (len(shift_B1), 1))], 1
        )
        return torch.from_numpy(self._in_lines(column_BK)).to(device)

    def _in_lines(self, array_BK: np.ndarray) -> np.ndarray:
        return array_BK[self.layout.row_C].reshape(-1, 1, self.layout.width, 1, array_BK.shape[1])


def _taken(sources: Sequence[Prefixes], name_P: Int[np.ndarray, " P"]) -> Prefixes:
    """The prefixes of these names, each as often as it is named."""
    if np.array_equal(name_P, sources[0].name_P):
        return sources[0]
    length_P = np.zeros(len(name_P), dtype=np.int64)
    moves: list[tuple[Prefixes, Tensor, Tensor]] = []
    for source in sources:
        place_of = {name: place for place, name in enumerate(source.name_P.tolist())}
        pairs = [(line, place_of[name]) for line, name in enumerate(name_P.tolist()) if name in place_of]
        if pairs:
            to, at = np.array(pairs).T
            length_P[to] = source.length_P[at]
            moves.append((source, torch.from_numpy(to), torch.from_numpy(at)))
    longest = int(length_P.max())
    moves = [move for move in moves if move[0].longest] if longest else []

    def take(layers: Callable[[Prefixes], list[Tensor]]) -> list[Tensor]:
        found = []
        for layer, like in enumerate(layers(moves[0][0]) if moves else []):
            new = like.new_zeros(len(name_P), like.shape[1], longest, like.shape[3])
            for source, to, at in moves:
                held = layers(source)[layer][:, :, :longest]
                new[to.to(new.device), :, : held.shape[2]] = held[at.to(new.device)]
            found.append(new)
        return found

    return Prefixes(name_P, length_P, take(lambda source: source.keys), take(lambda source: source.values))


def _hidden(where: np.ndarray, device: torch.device, dtype: torch.dtype) -> Tensor:
    """-inf there, and 0 elsewhere."""
    return torch.where(torch.from_numpy(where).to(device), -torch.inf, 0.0).to(dtype)


def _once(made: dict[Any, Any], key: Any, make: Callable[[], Any]) -> Any:
    if key not in made:
        made[key] = make()
    return made[key]


def _with_room(held: Float[Tensor, "B heads S width"], room: int) -> Float[Tensor, "B heads room width"]:
    """The same columns with zeros behind, so many in all."""
    count, heads, columns, width = held.shape
    new = vacant((count, heads, room, width), held.dtype, held.device)
    new[:, :, :columns], new[:, :, columns:] = held, 0
    return new
