"""One step of sampling: inverse transform of each row's distribution at a uniform from its seed and step."""

import numpy as np
import torch
from jaxtyping import Float, Int, UInt
from torch import Tensor

from gradalign.models.causal import CausalLanguageModel
from gradalign.models.memory import vacant
from gradalign.seeds import uniforms

_CELLS = 1 << 23  # log-probabilities held at once; more where fewer and larger steps are faster
_CELLS_OF_GPU = 1 << 25
_LARGEST_BLOCK = 256
_FEW = 128  # tokens over which one sum costs less than two steps


class Draw:
    """One step of sampling, again and again: on a CPU distributions lie where those of the step before lay, as to take so much memory anew
    takes longer than to fill it.
    """

    def __init__(self, model: CausalLanguageModel):
        self.model = model
        self._kept_BV = torch.empty(0, model.vocabulary_size)

    def __call__(
        self, hidden_BH: Float[Tensor, "B H"], seeds_B: UInt[np.ndarray, " B"], step_B: Int[np.ndarray, " B"]
    ) -> tuple[Int[np.ndarray, " B"], Float[np.ndarray, " B"]]:
        """Each row's next token and its log-probability; no more than some rows' distributions are held at once."""
        uniform_B = torch.from_numpy(uniforms(seeds_B, step_B.astype(np.uint64))).to(hidden_BH.device)
        cells = _CELLS if hidden_BH.device.type == "cpu" else _CELLS_OF_GPU
        rows = max(1, cells // self.model.vocabulary_size)
        drawn = [self._drawn(*chunk) for chunk in zip(hidden_BH.split(rows), uniform_B.split(rows), strict=True)]
        tokens_B, logprobs_B = (torch.cat(column).cpu().numpy() for column in zip(*drawn, strict=True))
        return tokens_B, logprobs_B

    def _drawn(self, hidden_BH: Tensor, uniform_B: Tensor) -> tuple[Tensor, Tensor]:
        probs_BV = self.model.softmax(self.model.logits(hidden_BH, self._memory(hidden_BH)))
        tokens_B = sampled_tokens(probs_BV, uniform_B)
        return tokens_B, probs_BV.gather(1, tokens_B[:, None])[:, 0].log()

    def _memory(self, hidden_BH: Tensor) -> Tensor | None:
        """Where logits of these rows are to lie."""
        if hidden_BH.device.type != "cpu":
            return None
        if len(self._kept_BV) < len(hidden_BH):
            self._kept_BV = vacant((len(hidden_BH), self.model.vocabulary_size), torch.float32, hidden_BH.device)
        return self._kept_BV[: len(hidden_BH)]


def sampled_tokens(probs_BV: Float[Tensor, "B V"], uniform_B: Float[Tensor, " B"]) -> Int[Tensor, " B"]:
    """The token whose interval of the cumulative distribution (float64) holds the row's uniform: (B,)."""
    if probs_BV.shape[1] > _FEW:
        return token_by_blocks(probs_BV, uniform_B)
    return defined_token(probs_BV, uniform_B)


def defined_token(probs_BV: Float[Tensor, "B V"], uniform_B: Float[Tensor, " B"]) -> Int[Tensor, " B"]:
    """The definition of `sampled_tokens`, for vocabularies over which one sum costs little."""
    reached_BV = probs_BV.cumsum(-1, dtype=torch.float64)
    return _interval(reached_BV, uniform_B.double()[:, None] * reached_BV[:, -1:])[:, 0]


def token_by_blocks(probs_BV: Float[Tensor, "B V"], uniform_B: Float[Tensor, " B"]) -> Int[Tensor, " B"]:
    """The block of tokens first and the token in it then: the same token, but for rounding where two intervals meet."""
    vocabulary, uniform_B1 = probs_BV.shape[1], uniform_B.double()[:, None]
    size = min(_LARGEST_BLOCK, 1 << (vocabulary.bit_length() + 1) // 2)  # about as many blocks as tokens in each
    whole = vocabulary // size * size
    parts = [probs_BV[:, :whole].unflatten(1, (-1, size)), probs_BV[:, None, whole:]]
    mass_BN = torch.cat([part.sum(-1) for part in parts], 1).double()
    reached_BN = mass_BN.cumsum(-1)
    target_B1 = uniform_B1 * reached_BN[:, -1:]
    block_B1 = _interval(reached_BN, target_B1)
    at_BK = block_B1 * size + torch.arange(size, device=probs_BV.device)
    inside_BK = probs_BV.gather(1, at_BK.clamp_max(vocabulary - 1)).double().masked_fill(at_BK >= vocabulary, 0.0)
    before_B1 = reached_BN.gather(1, block_B1) - mass_BN.gather(1, block_B1)
    return (block_B1 * size + _interval(inside_BK.cumsum(-1), target_B1 - before_B1))[:, 0]


def _interval(reached_BN: Float[Tensor, "B N"], target_B1: Float[Tensor, "B 1"]) -> Int[Tensor, "B 1"]:
    """The first place that reaches beyond the target, and where rounding leaves none the last that adds anything."""
    found_B1 = torch.searchsorted(reached_BN, target_B1, right=True)
    return torch.minimum(found_B1, torch.searchsorted(reached_BN, reached_BN[:, -1:].contiguous()))
