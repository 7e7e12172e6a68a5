"""Sampling with transformers, on CPU or GPU. Knows token ids and seeds; nothing of text, questions or trees."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from gradalign.engines.continuous import Continuous
from gradalign.engines.padded import Padded
from gradalign.engines.rows import Row, rows_of
from gradalign.models.causal import CausalLanguageModel
from gradalign.models.memory import Batches
from gradalign.types import Completion, CompletionRequest

BATCH = 256
_BATCH_OF_TINY = 2048
_TINY = 4_000_000  # parameters, below which a step over a few hundred rows is mostly the cost of starting it


class HFEngine:
    """The Engine over a `CausalLanguageModel`; `batch_size` completions at most are under way at once (None: what suits its size).

    Steps over many rows are computed with as many CPU `threads` as torch had when the engine was made, whatever it has later.
    """

    kind = "hf"

    def __init__(self, model: CausalLanguageModel, stop_ids: frozenset[int], batch_size: int | None = None):
        self.model = model
        self.stop_ids = np.array(sorted(stop_ids))
        self.batches = Batches(suited_batch(model) if batch_size is None else batch_size, "sampling")
        self.threads = torch.get_num_threads()

    def complete(self, requests: Sequence[CompletionRequest]) -> Iterator[Completion]:
        """Sample every request's completions; they come as they end."""
        rows = rows_of(requests)
        if self.model.shares_prefixes:
            yield from self.batches.streamed(rows, self._stream)
            return
        padded = Padded(self.model, self.stop_ids)
        for finished in self.batches.over(len(rows), lambda start, stop: padded.sample(rows[start:stop])):
            yield from finished

    def rest(self) -> None:
        """Nothing is held between calls but the model's weights, which forward passes need too."""

    def _stream(self, rows: list[Row], size: int) -> Iterator[tuple[Row, Completion]]:
        return Continuous(self.model, self.stop_ids, rows, size, self.threads).run()


def suited_batch(model: CausalLanguageModel) -> int:
    """How many completions are to be under way at once where nobody says."""
    return _BATCH_OF_TINY if model.model.num_parameters() < _TINY else BATCH
