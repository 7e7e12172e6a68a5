"""Forward passes over a prompt and its continuations with transformers' own cache: for architectures that `packed` does not cover."""

import copy
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from gradalign.models.attention import forward


class CachedPrompt:
    """A prompt computed once; its continuations go on from copies of its cache, padded to the longest."""

    def __init__(self, model: PreTrainedModel, device: torch.device, prompt: Sequence[int]):
        self._model, self._device = model, device
        output = forward(model, input_ids=torch.tensor([list(prompt)], device=device), use_cache=True)
        self._last, self._cache = output.last_hidden_state[:, -1:], output.past_key_values

    def states(self, chunk: Sequence[np.ndarray]) -> list[Float[Tensor, "T H"]]:
        """Hidden states that predict each continuation's tokens."""
        lengths = [len(tokens) for tokens in chunk]
        states = self._last.expand(len(chunk), -1, -1)
        width = max(lengths) - 1
        if width > 0:
            padded = np.zeros((len(chunk), width), dtype=np.int64)
            for row, tokens in enumerate(chunk):
                padded[row, : len(tokens) - 1] = tokens[:-1]
            own = copy.deepcopy(self._cache)
            own.batch_repeat_interleave(len(chunk))
            output = forward(
                self._model, input_ids=torch.from_numpy(padded).to(self._device), past_key_values=own, use_cache=True
            )
            states = torch.cat([states, output.last_hidden_state], dim=1)
        return [states[row, :length] for row, length in enumerate(lengths)]
