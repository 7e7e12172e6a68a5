"""Sampling without idle rows: as completions end, waiting ones take their places; prefixes are computed once for all that share them."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from gradalign.engines.rows import Row
from gradalign.engines.sampling import draw
from gradalign.models.causal import CausalLanguageModel
from gradalign.models.shared_prefixes import Prefixes, Rows, computed_prefixes, next_states
from gradalign.types import Completion

_WAITED_FOR = 1 / 8  # of all places are free before waiting rows come in, so that their prefixes are computed together
_LEFT = 0.75  # of the rows are under way, or the others are dropped
_PREFILLED = 8192  # tokens of prefixes in one forward pass
_ALIKE = 0.5  # of a prefix is common with the one before, or the common part is not worth a pass of its own
_FIRST_ROOM = 64


class Continuous:
    """`slots` rows at most are under way at once. A row's own tokens begin with the last of its prefix: what stands before that is its trunk,
    or the beginning of a longer row's.
    """

    def __init__(self, model: CausalLanguageModel, stop_ids: np.ndarray, rows: Sequence[Row], slots: int):
        self.model, self.stop_ids = model, stop_ids
        trunk_of = _trunks([row.prefix[:-1] for row in rows])
        self.waiting = sorted(((trunk_of[row.prefix[:-1]], row) for row in rows), key=lambda pair: pair[0])[::-1]
        self.left: dict[tuple[int, ...], int] = {}  # rows of each trunk that have not ended
        for trunk, _ in self.waiting:
            self.left[trunk] = self.left.get(trunk, 0) + 1
        self.held: dict[tuple[int, ...], tuple[Prefixes, int]] = {}
        count = min(slots, len(rows))
        self.rows = Rows(count, model.device)
        self.places: list[tuple[tuple[int, ...], Row] | None] = [None] * count
        self.live_B = np.zeros(count, dtype=bool)
        self.next_B = np.zeros(count, dtype=np.int64)
        self.seed_B, self.limit_B = np.zeros(count, dtype=np.uint64), np.zeros(count, dtype=np.int64)
        self.tokens_BT, self.logprobs_BT = np.zeros((count, _FIRST_ROOM), dtype=np.int64), np.zeros((count, _FIRST_ROOM))

    def run(self) -> Iterator[tuple[Row, Completion]]:
        """Every row's completion, as they end."""
        while self.waiting or self.live_B.any():
            yield from self._step()

    @torch.inference_mode()
    def _step(self) -> list[tuple[Row, Completion]]:
        free = len(self.live_B) - int(self.live_B.sum())
        if self.waiting and free >= max(1, _WAITED_FOR * len(self.live_B)):
            self._fill()
        elif not self.waiting and free > (1 - _LEFT) * len(self.live_B):
            self._keep(np.flatnonzero(self.live_B))
        step_B = self.rows.length_B.copy()
        states_BH = next_states(self.model.model, self.rows, self.next_B)
        self.next_B, logprobs_B = draw(self.model, states_BH, self.seed_B, step_B)
        if int(step_B.max()) >= self.tokens_BT.shape[1]:
            self.tokens_BT, self.logprobs_BT = (np.pad(a, ((0, 0), (0, a.shape[1]))) for a in (self.tokens_BT, self.logprobs_BT))
        at = np.arange(len(step_B))
        self.tokens_BT[at, step_B], self.logprobs_BT[at, step_B] = self.next_B, logprobs_B
        stopped_B = np.isin(self.next_B, self.stop_ids)
        ended = np.flatnonzero(self.live_B & (stopped_B | (step_B + 1 >= self.limit_B)))
        return [self._ended(row, int(step_B[row]) + 1, bool(stopped_B[row])) for row in ended.tolist()]

    def _fill(self) -> None:
        """Waiting rows take the free places; the trunks that they are the first of are computed."""
        free = np.flatnonzero(~self.live_B)[: len(self.waiting)]
        coming = [self.waiting.pop() for _ in free]
        new = list(dict.fromkeys(trunk for trunk, _ in coming if trunk not in self.held))
        if new:
            prefixes = self._computed(new)
            self.held |= {trunk: (prefixes, place) for place, trunk in enumerate(new)}
        for prefixes in {id(self.held[trunk][0]): self.held[trunk][0] for trunk, _ in coming}.values():
            of = [(slot, trunk, row) for slot, (trunk, row) in zip(free, coming, strict=True) if self.held[trunk][0] is prefixes]
            slots = np.array([slot for slot, _, _ in of])
            places = np.array([self.held[trunk][1] for _, trunk, _ in of])
            self.rows.place(slots, prefixes, places, np.array([len(row.prefix) - 1 for _, _, row in of]))
        for slot, (trunk, row) in zip(free, coming, strict=True):
            self.places[slot] = trunk, row
            self.live_B[slot], self.next_B[slot], self.seed_B[slot], self.limit_B[slot] = True, row.prefix[-1], row.seed, row.max_tokens

    def _computed(self, trunks: Sequence[tuple[int, ...]]) -> Prefixes:
        """Trunks that begin alike together, the others together, no more than some tokens in one pass; in the order given."""
        families: list[list[int]] = []
        for i in sorted(range(len(trunks)), key=lambda i: trunks[i]):
            if families and _alike(trunks[families[-1][0]], trunks[i]):
                families[-1].append(i)
            else:
                families.append([i])
        alone = sorted((family[0] for family in families if len(family) == 1), key=lambda i: len(trunks[i]))
        order, parts = [], []
        for family in [*(family for family in families if len(family) > 1), *([alone] if alone else [])]:
            size = max(1, _PREFILLED // (max(len(trunks[i]) for i in family) + 1))
            for start in range(0, len(family), size):
                chosen = family[start : start + size]
                order += chosen
                parts.append(computed_prefixes(self.model.model.base_model, [trunks[i] for i in chosen], self.model.device))
        return Prefixes.joined(parts).ordered(np.argsort(order))

    def _ended(self, slot: int, length: int, stopped: bool) -> tuple[Row, Completion]:
        found = self.places[slot]
        assert found is not None
        trunk, row = found
        self.live_B[slot] = False
        self.rows.end(np.array([slot]))
        self.left[trunk] -= 1
        if not self.left[trunk]:
            prefixes, _ = self.held.pop(trunk)
            if all(other is not prefixes for other, _ in self.held.values()):
                self.rows.drop(prefixes)
        tokens, logprobs = self.tokens_BT[slot, :length].copy(), self.logprobs_BT[slot, :length].copy()
        return row, Completion(row.request, row.replicate, tokens, logprobs, "stop" if stopped else "length")

    def _keep(self, rows: np.ndarray) -> None:
        self.rows.keep(rows)
        self.places = [self.places[row] for row in rows]
        self.live_B, self.next_B, self.seed_B, self.limit_B, self.tokens_BT, self.logprobs_BT = (
            of[rows] for of in (self.live_B, self.next_B, self.seed_B, self.limit_B, self.tokens_BT, self.logprobs_BT)
        )


def _trunks(bodies: Sequence[tuple[int, ...]]) -> dict[tuple[int, ...], tuple[int, ...]]:
    """For each, the longest of them that begins with it and with no other that is longer; what a body begins stands right after it in order."""
    trunk_of: dict[tuple[int, ...], tuple[int, ...]] = {}
    trunk: tuple[int, ...] | None = None
    for body in sorted(set(bodies), reverse=True):
        if trunk is None or trunk[: len(body)] != body:
            trunk = body
        trunk_of[body] = trunk
    return trunk_of


def _alike(first: tuple[int, ...], other: tuple[int, ...]) -> bool:
    shared = int(_ALIKE * len(other))
    return shared > 0 and first[:shared] == other[:shared]
