"""Sampling without idle rows: as completions end, waiting ones take their places; prefixes are computed once for all that share them.

Nothing is done in Python for a token of a row: a step is arrays over all rows, and a row is looked at alone only when it ends.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from gradalign.engines.rows import Row
from gradalign.engines.sampling import Draw
from gradalign.engines.trunks import families, passes, trunks_of
from gradalign.models.causal import CausalLanguageModel
from gradalign.models.shared_attention import new_rows, next_states
from gradalign.models.shared_prefixes import Prefixes, computed_prefixes
from gradalign.models.threads import cpu_threads
from gradalign.types import Completion

_CHANGE = 1.0  # steps that a change of the rows costs: with so much done for ended rows, it was worth one
_ALIKE = 0.5  # of all rows begin as others do, or it is not worth a change to feed these their first token once
_PREFILLED = 8192  # tokens of prefixes in one forward pass
_FIRST_ROOM = 64
_MANY = 512  # rows whose step even a tiny model computes faster with more threads


class Continuous:
    """`slots` rows at most are under way at once. A row's own tokens begin with the last of its prefix: what stands before that is its
    trunk, or the beginning of a longer row's.

    Arrays over Q are of all rows in the order in which they begin, those over B of the rows under way: `queued_B` says which these are.
    What several rows are fed alike as they begin is computed for one of them: `fed_B` says which of the rows that are fed stands for each.
    """

    def __init__(self, model: CausalLanguageModel, stop_ids: np.ndarray, rows: Sequence[Row], slots: int, threads: int):
        self.model, self.slots, self.threads, self.draw = model, slots, threads, Draw(model)
        self.stops_V = np.isin(np.arange(model.vocabulary_size), stop_ids)
        prefixes = {id(row.prefix): row.prefix for row in rows}
        trunk_of = trunks_of([prefix[:-1] for prefix in prefixes.values()])
        self.trunks = [trunk for family in families({*trunk_of.values()}) for trunk in family]
        number = {trunk: i for i, trunk in enumerate(self.trunks)}
        number_of = {name: number[trunk_of[prefix[:-1]]] for name, prefix in prefixes.items()}
        self.queue = sorted(rows, key=lambda row: (number_of[id(row.prefix)], len(row.prefix)))
        self.trunk_Q = np.array([number_of[id(row.prefix)] for row in self.queue])
        self.behind_Q = np.array([len(row.prefix) - 1 for row in self.queue])
        self.first_Q = np.array([row.prefix[-1] for row in self.queue])
        self.prefix_Q = np.array([id(row.prefix) for row in self.queue])
        self.seed_Q = np.array([row.seed for row in self.queue], dtype=np.uint64)
        self.limit_Q = np.array([row.max_tokens for row in self.queue])
        self.begun = 0
        self.idle = 0  # rows of steps since the last change that had ended
        self.rows = new_rows(model.model, model.device)
        self.queued_B, self.next_B = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
        self.live_B, self.fed_B = np.zeros(0, dtype=bool), np.zeros(0, dtype=np.int64)
        self.tokens_BT, self.logprobs_BT = np.zeros((0, _FIRST_ROOM), dtype=np.int64), np.zeros((0, _FIRST_ROOM))

    def run(self) -> Iterator[tuple[Row, Completion]]:
        """Every row's completion, as they end."""
        while self.begun < len(self.queue) or self.live_B.any():
            yield from self._step()

    @torch.inference_mode()
    def _step(self) -> list[tuple[Row, Completion]]:
        live = int(np.count_nonzero(self.live_B))
        self.idle += len(self.live_B) - live
        if not live or self.idle >= _CHANGE * len(self.live_B):
            self._change(min(self.slots - live, len(self.queue) - self.begun))
        step_B = self.rows.length_B[self.fed_B]
        with cpu_threads(self.threads if len(step_B) >= _MANY else torch.get_num_threads()):
            states_BH = self._fed()
            self.next_B, logprobs_B = self.draw(states_BH, self.seed_Q[self.queued_B], step_B)
        self._note(step_B, logprobs_B)
        stopped_B = self.stops_V[self.next_B]
        ended_B = self.live_B & (stopped_B | (step_B + 1 >= self.limit_Q[self.queued_B]))
        self.live_B &= ~ended_B
        return [self._completion(row, int(step_B[row]) + 1, bool(stopped_B[row])) for row in np.flatnonzero(ended_B).tolist()]

    def _change(self, coming: int) -> None:
        """Rows that have ended give way to so many that wait; those of one trunk lie together, by how much of it they read."""
        stay = np.flatnonzero(self.live_B)
        queued_B = np.append(self.queued_B[stay], np.arange(self.begun, self.begun + coming))
        row_B = np.append(stay, np.full(coming, -1))
        self.begun, self.idle = self.begun + coming, 0
        order = np.lexsort((self.behind_Q[queued_B], self.trunk_Q[queued_B]))
        queued_B, row_B = queued_B[order], row_B[order]
        trunk_B, begins_B = self.trunk_Q[queued_B], row_B < 0
        computed = self._computed(np.setdiff1d(trunk_B, self.rows.prefixes.name_P))
        self.fed_B = _fed_for(begins_B, self.prefix_Q[queued_B])
        first_F = np.unique(self.fed_B, return_index=True)[1]
        self.rows.arrange(row_B[first_F], trunk_B[first_F], self.behind_Q[queued_B[first_F]], computed)
        self.next_B = np.append(self.next_B, 0)[row_B]
        self.next_B[begins_B] = self.first_Q[queued_B[begins_B]]
        self.tokens_BT, self.logprobs_BT = (np.pad(of, ((0, 1), (0, 0)))[row_B] for of in (self.tokens_BT, self.logprobs_BT))
        self.queued_B, self.live_B = queued_B, np.ones(len(queued_B), dtype=bool)

    def _fed(self) -> Float[Tensor, "B H"]:
        """Every row's state after its next token; from then on rows that began alike go their own ways."""
        model, window = self.model.model, self.model.context_window
        if len(self.rows.start_B) == len(self.fed_B):
            return next_states(model, self.rows, self.next_B, window)
        first_F = np.unique(self.fed_B, return_index=True)[1]
        states_FH = next_states(model, self.rows, self.next_B[first_F], window)
        fed_B, self.fed_B = self.fed_B, np.arange(len(self.fed_B))
        self.rows.arrange(fed_B, self.trunk_Q[self.queued_B], self.behind_Q[self.queued_B])
        return states_FH[torch.from_numpy(fed_B).to(states_FH.device)]

    def _computed(self, numbers: Int[np.ndarray, " N"]) -> list[Prefixes]:
        """The trunks of these numbers, in some passes."""
        number = {self.trunks[i]: i for i in numbers.tolist()}
        model, device = self.model.model, self.model.device
        return [
            computed_prefixes(model, np.array([number[trunk] for trunk in group]), group, device)
            for group in passes(number, _PREFILLED)
        ]

    def _note(self, step_B: Int[np.ndarray, " B"], logprobs_B: np.ndarray) -> None:
        """Keep what has been sampled; `next_B` are the tokens."""
        width = self.tokens_BT.shape[1]
        if int(step_B.max()) >= width:
            self.tokens_BT, self.logprobs_BT = (np.pad(of, ((0, 0), (0, width))) for of in (self.tokens_BT, self.logprobs_BT))
        at_B = np.arange(len(step_B))
        self.tokens_BT[at_B, step_B], self.logprobs_BT[at_B, step_B] = self.next_B, logprobs_B

    def _completion(self, row: int, length: int, stopped: bool) -> tuple[Row, Completion]:
        queued = self.queue[self.queued_B[row]]
        tokens, logprobs = self.tokens_BT[row, :length].copy(), self.logprobs_BT[row, :length].copy()
        return queued, Completion(queued.request, queued.replicate, tokens, logprobs, "stop" if stopped else "length")


def _fed_for(begins_B: np.ndarray, prefix_B: Int[np.ndarray, " B"]) -> Int[np.ndarray, " B"]:
    """Which of the rows that are to be fed stands for each row: itself, or the one before that begins with the same prefix."""
    alike_B = np.append(False, begins_B[1:] & begins_B[:-1] & (prefix_B[1:] == prefix_B[:-1]))
    worth = np.count_nonzero(alike_B) >= _ALIKE * len(alike_B)
    return np.cumsum(~alike_B) - 1 if worth else np.arange(len(alike_B))
