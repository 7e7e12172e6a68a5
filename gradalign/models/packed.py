"""Forward passes that compute every token once: a prompt and its continuations lie in one row, and attention alone knows where each ends.

Knows nothing of output layers, batches or runs. All but attention (`packed_attention`) treats tokens one by one, so a row needs no padding.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from gradalign.models.attention import forward, only_attends, own_attention, windows
from gradalign.models.memory import sent
from gradalign.models.packed_attention import ATTENTION, Held, Row


class PackedPrompt:
    """A prompt and its continuations in packed passes: the first computes both, later ones read the prompt's keys and values."""

    def __init__(self, model: PreTrainedModel, device: torch.device, prompt: Sequence[int]):
        self._model, self._device, self._prompt = model, device, prompt
        self._held: Held = {}
        self._last: Float[Tensor, "1 H"] | None = None
        self.windows: dict[int, int | None] = {}

    def states(self, chunk: Sequence[np.ndarray]) -> list[Float[Tensor, "T H"]]:
        """Hidden states that predict each continuation's tokens; the longest comes first."""
        size, lengths, own = len(self._prompt), [max(len(tokens) - 1, 0) for tokens in chunk], torch.empty(0)
        if self._last is None:
            states = self._pass(Row(size, lengths, self._held, begun=False), [np.array(self._prompt), *_fed(chunk)])
            self._last, own = states[size - 1 : size].clone(), states[size:]
        elif any(lengths):
            own = self._pass(Row(size, lengths, self._held, begun=True), _fed(chunk))
        last, ends = self._last, np.cumsum(lengths)
        parts = (own[end - length : end] for end, length in zip(ends, lengths, strict=True))
        return [
            torch.cat([last, part]) if len(part) else last[: len(tokens)] for part, tokens in zip(parts, chunk, strict=True)
        ]

    def _pass(self, row: Row, texts: Sequence[np.ndarray]) -> Float[Tensor, "N H"]:
        ids_2N = sent(np.stack([np.concatenate(texts), row.positions]), self._device)
        inputs: dict[str, Any] = {"input_ids": ids_2N[:1], "position_ids": ids_2N[1:]}
        output = forward(self._model, ATTENTION, **inputs, use_cache=False, packed=row)
        self.windows = row.windows
        return output.last_hidden_state[0]


def _fed(chunk: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Nothing has to be predicted after the last tokens."""
    return [tokens[:-1] for tokens in chunk]


@torch.inference_mode()
def packs(model: PreTrainedModel, device: torch.device) -> bool:
    """Are packed passes what plain ones are? Asked by trying: other layers than attention, and unusual attention, are not."""
    config = model.config.get_text_config()
    if own_attention(model) != "sdpa" or not only_attends(config):
        return False
    prompt, continuations = (0, 1, 2), [np.array(tokens) for tokens in ((3, 4, 5, 6, 7), (5, 1, 0, 2), (4, 6), (7, 3, 4), (1,))]
    passes = PackedPrompt(model, device, prompt)
    try:
        found = [*passes.states(continuations[:3]), *passes.states(continuations[3:])]
        as_told = passes.windows == windows(config)
    except Exception:
        return False
    rows = [torch.tensor([[*prompt, *tokens.tolist()]], device=device) for tokens in continuations]
    plain = torch.cat(
        [forward(model, input_ids=row, use_cache=False).last_hidden_state[0, len(prompt) - 1 : -1] for row in rows]
    )
    near = 1e-3 if plain.dtype == torch.float32 else 5e-2
    return as_told and bool((torch.cat(found) - plain).float().norm() <= near * plain.float().norm())
