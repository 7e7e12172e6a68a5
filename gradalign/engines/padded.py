"""Sampling in batches that are padded on the left, for any causal model that transformers knows.

The prefix of a request is computed once for all its completions, and then copied; rows that have finished leave the batch.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from gradalign.engines.rows import Row
from gradalign.engines.sampling import Draw
from gradalign.models.attention import forward
from gradalign.models.causal import CausalLanguageModel
from gradalign.types import Completion


@dataclass
class _Batch:
    """Rows under way: the cache, which keys are real, and what has been sampled so far."""

    rows: list[Row]
    cache: object
    mask_BL: Tensor
    hidden_BH: Tensor
    sampled: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = field(default_factory=list)


class Padded:
    """Samples batches of rows, each with the keys and values of its whole prefix: for architectures whose attention is not known."""

    def __init__(self, model: CausalLanguageModel, stop_ids: np.ndarray):
        self.model, self.stop_ids, self.draw = model, stop_ids, Draw(model)

    @torch.inference_mode()
    def sample(self, rows: list[Row]) -> list[Completion]:
        batch = self._prefill(rows)
        live = np.arange(len(rows))
        limits = np.array([row.max_tokens for row in rows])
        seeds = np.array([row.seed for row in rows], dtype=np.uint64)
        done = np.zeros(len(rows), dtype=bool)
        for step in range(int(limits.max())):
            tokens_B, logprobs_B = self._step(batch, seeds[live], step)
            batch.sampled.append((live, tokens_B, logprobs_B))
            done[live] |= np.isin(tokens_B, self.stop_ids) | (limits[live] <= step + 1)
            if done.all():
                break
            keep = np.flatnonzero(~done[live])
            if len(keep) <= 0.8 * len(live):
                self._select(batch, keep)
                live, tokens_B = live[keep], tokens_B[keep]
            self._advance(batch, tokens_B)
        return _collect(rows, batch.sampled, self.stop_ids)

    def _prefill(self, rows: list[Row]) -> _Batch:
        requests = [row.request for row in rows]
        first = [0, *(i for i in range(1, len(rows)) if requests[i] != requests[i - 1])]
        prefixes = [rows[i].prefix for i in first]
        width = max(len(prefix) for prefix in prefixes)
        ids = torch.zeros((len(prefixes), width), dtype=torch.long)
        mask = torch.zeros((len(prefixes), width), dtype=torch.long)
        for i, prefix in enumerate(prefixes):
            ids[i, width - len(prefix) :] = torch.tensor(prefix)
            mask[i, width - len(prefix) :] = 1
        device = self.model.device
        mask = mask.to(device)
        output = forward(
            self.model.model,
            input_ids=ids.to(device),
            attention_mask=mask,
            position_ids=(mask.cumsum(-1) - 1).clamp_min(0),
            use_cache=True,
        )
        # an index on the CPU serves caches on any device, of which a model that is spread over several has as many
        owner = torch.from_numpy(np.repeat(np.arange(len(first)), np.diff([*first, len(rows)])))
        cache = output.past_key_values
        cache.batch_select_indices(owner)
        return _Batch(rows, cache, mask[owner], output.last_hidden_state[owner, -1])

    def _step(self, batch: _Batch, seeds: np.ndarray, step: int) -> tuple[np.ndarray, np.ndarray]:
        return self.draw(batch.hidden_BH, seeds, np.full(len(seeds), step))

    def _select(self, batch: _Batch, keep: np.ndarray) -> None:
        index = torch.from_numpy(keep)
        batch.cache.batch_select_indices(index)  # pyright: ignore[reportAttributeAccessIssue]
        batch.mask_BL = batch.mask_BL[index]

    def _advance(self, batch: _Batch, tokens_B: np.ndarray) -> None:
        mask = batch.mask_BL
        batch.mask_BL = torch.cat([mask, mask.new_ones((len(mask), 1))], dim=1)
        output = forward(
            self.model.model,
            input_ids=torch.from_numpy(tokens_B).to(mask.device)[:, None],
            attention_mask=batch.mask_BL,
            position_ids=mask.sum(-1, keepdim=True).clamp_max(self.model.context_window - 1),  # finished rows may be past it
            past_key_values=batch.cache,
            use_cache=True,
        )
        batch.hidden_BH = output.last_hidden_state[:, -1]


def _collect(
    rows: list[Row], sampled: list[tuple[np.ndarray, np.ndarray, np.ndarray]], stop_ids: np.ndarray
) -> list[Completion]:
    """Cut each row at its first stop token or its limit."""
    tokens_BT = np.full((len(rows), len(sampled)), -1, dtype=np.int64)
    logprobs_BT = np.zeros((len(rows), len(sampled)))
    for step, (live, tokens, logprobs) in enumerate(sampled):
        tokens_BT[live, step], logprobs_BT[live, step] = tokens, logprobs
    stops_BT = np.isin(tokens_BT, stop_ids)
    stopped = stops_BT.any(1)
    lengths = np.where(stopped, stops_BT.argmax(1) + 1, [row.max_tokens for row in rows])
    limits = np.array([row.max_tokens for row in rows])
    stopped &= lengths <= limits
    lengths = np.minimum(lengths, limits)
    return [
        Completion(
            row.request,
            row.replicate,
            tokens_BT[i, : lengths[i]],
            logprobs_BT[i, : lengths[i]],
            "stop" if stopped[i] else "length",
        )
        for i, row in enumerate(rows)
    ]
