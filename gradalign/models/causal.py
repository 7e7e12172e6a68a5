"""A transformers causal model as a LanguageModel: prompt computed once, log-probabilities from chunks of hidden states."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from gradalign.models.attention import forward
from gradalign.models.cached import CachedPrompt
from gradalign.models.memory import Batches
from gradalign.models.names import ModelSource
from gradalign.models.packed import PackedPrompt, packs
from gradalign.models.shared_attention import shares_prefixes
from gradalign.types import GradalignError

_TOKENS_AT_ONCE = {"cpu": 1024, "cuda": 16384}


@dataclass(frozen=True)
class Origin:
    """Where a model came from, for engines that load it once more: its files, and what was done to them that the files do not hold."""

    source: ModelSource
    trust_remote_code: bool = False
    changed: str | None = None
    sharded: bool = False


def output_layer(model: PreTrainedModel) -> torch.nn.Module:
    """The layer that makes logits from hidden states."""
    head = model.get_output_embeddings()
    if head is None:
        raise GradalignError(f"a {type(model).__name__} has no output layer; gradalign needs a causal language model")
    return head


class CausalLanguageModel:
    """Forward passes over prefixes. `vocabulary_size` is the tokenizer's span, or less where a run's models share less: logits past it are
    trimmed on every side. `width` is how many logits the model makes.

    The model may be quantised, adapted, or spread over devices: ids go in at `device`, hidden states and log-probabilities come out
    together, wherever the last layer is.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        name: str,
        vocabulary_size: int,
        temperature: float = 1.0,
        batch_size: int = 64,
        origin: Origin | None = None,
    ):
        self._body: PreTrainedModel | None = model
        self.name = name
        self.temperature = temperature
        self.batches = Batches(batch_size, f"forward passes of {name}")
        self.origin = origin
        self.device = _input_device(model)
        self.dtype = model.dtype
        self.config = model.config.get_text_config()
        self.head = output_layer(model)
        self._packs: bool | None = None
        self.context_window = int(getattr(self.config, "max_position_embeddings", 0) or 2**31)
        self.vocabulary_size = vocabulary_size
        self.width = self._check_head(model)
        self.vocabulary_size = min(vocabulary_size, self.width)

    @property
    def model(self) -> PreTrainedModel:
        """The whole model."""
        assert self._body is not None
        return self._body

    @cached_property
    def shares_prefixes(self) -> bool:
        """Can rows under way share the keys and values of their prefixes?"""
        return shares_prefixes(self.model, self.device)

    @torch.inference_mode()
    def hidden_states(self, prompt: Sequence[int], continuations: Sequence[np.ndarray]) -> list[Float[Tensor, "T H"]]:
        """Hidden states (T, H) that predict each continuation's tokens; the prompt is computed once for all of them."""
        passes = self._passes(prompt)
        order = sorted(range(len(continuations)), key=lambda r: -len(continuations[r]))
        ordered = [continuations[r] for r in order]

        def forward(start: int, stop: int) -> list[Tensor]:
            return self._forward(passes, ordered[start:stop])

        weights = [len(tokens) + len(prompt) // 8 for tokens in ordered]  # of the prompt, its keys alone are laid out once more
        most = _TOKENS_AT_ONCE.get(self.device.type, 4096)
        found = [states for chunk in self.batches.over(len(ordered), forward, weights, most) for states in chunk]
        return [found[place] for place in np.argsort(order)]

    @torch.inference_mode()
    def logprobs(self, hidden_NH: Float[Tensor, "N H"]) -> Float[Tensor, "N V"]:
        """Log-softmax in float32 of the trimmed logits over the temperature."""
        return self.log_softmax(self.logits(hidden_NH))

    @torch.inference_mode()
    def log_softmax(self, logits_NV: Float[Tensor, "N V"]) -> Float[Tensor, "N V"]:
        """What `logprobs` makes of `logits`; written over them where they are nobody else's: to take memory anew costs more than this."""
        return self._normalised(torch.log_softmax, logits_NV)

    @torch.inference_mode()
    def softmax(self, logits_NV: Float[Tensor, "N V"]) -> Float[Tensor, "N V"]:
        """Probabilities of the next token, from `logits` and where these lay."""
        return self._normalised(torch.softmax, logits_NV)

    def _normalised(self, normalise: Callable[..., Tensor], logits_NV: Tensor) -> Tensor:
        mine = logits_NV if _can_be_cut(self.head) else None
        if self.temperature != 1:
            logits_NV = torch.div(logits_NV, self.temperature, out=mine)
        found_NV = normalise(logits_NV, dim=-1, out=mine)
        self.require_numbers(found_NV.amax(-1))
        return found_NV

    def require_numbers(self, found: Tensor) -> None:
        """Raise an error that names the model if something that follows from its logits is not finite."""
        if not bool(torch.isfinite(found).all()):
            raise GradalignError(f"model {self.name!r} gave logits that are not numbers; try --dtype float32 or another model")

    def logits(self, hidden_NH: Float[Tensor, "N H"], into: Float[Tensor, "N V"] | None = None) -> Float[Tensor, "N V"]:
        """Float32 logits of the trimmed vocabulary, with what the architecture does after its output layer; these lie in `into` where it
        can write there."""
        config, logits = self.config, self._head_scores(hidden_NH, into).float()
        if getattr(config, "logits_scaling", None):
            logits = logits / config.logits_scaling
        if getattr(config, "logit_scale", None):
            logits = logits * config.logit_scale
        cap = self._cap
        return torch.tanh(logits / cap) * cap if cap else logits

    @torch.inference_mode()
    def scores(
        self, hidden_NH: Float[Tensor, "N H"], into: Float[Tensor, "N V"] | None = None
    ) -> tuple[Float[Tensor, "N V"], float]:
        """Scores as the output layer makes them, in its dtype, and a factor: the log-softmax of their product is `logprobs`. They lie in
        `into` where it can write there."""
        if self._cap:
            return self.logits(hidden_NH, into), 1 / self.temperature
        scale = (getattr(self.config, "logit_scale", None) or 1.0) / (getattr(self.config, "logits_scaling", None) or 1.0)
        return self._head_scores(hidden_NH, into), scale / self.temperature

    @property
    def _cap(self) -> float | None:
        return getattr(self.config, "final_logit_softcapping", None)

    def _head_scores(self, hidden_NH: Tensor, into: Tensor | None = None) -> Tensor:
        size = self.vocabulary_size
        if not _can_be_cut(self.head):
            return self.head(hidden_NH)[..., :size].to(hidden_NH.device)
        weight, bias = self.head.weight[:size], self.head.bias  # pyright: ignore[reportIndexIssue, reportArgumentType]
        if into is not None and bias is None and into.dtype == hidden_NH.dtype:
            return torch.mm(hidden_NH, weight.T, out=into)  # pyright: ignore[reportArgumentType]
        return torch.nn.functional.linear(hidden_NH, weight, None if bias is None else bias[:size])  # pyright: ignore

    def _passes(self, prompt: Sequence[int]) -> PackedPrompt | CachedPrompt:
        """Packed passes where the architecture allows them."""
        if self._packs is None:
            self._packs = packs(self.model, self.device)
        return (PackedPrompt if self._packs else CachedPrompt)(self.model, self.device, prompt)

    def _forward(self, passes: PackedPrompt | CachedPrompt, chunk: Sequence[np.ndarray]) -> list[Tensor]:
        return passes.states(chunk)

    @torch.inference_mode()
    def _check_head(self, model: PreTrainedModel) -> int:
        """Our head on hidden states must give the model's own logits, or its architecture does more there and is refused. Its width."""
        ids = torch.tensor([[0, 1, 2]], device=self.device)
        whole = forward(model, whole=True, input_ids=ids).logits[0]
        states = forward(model, input_ids=ids).last_hidden_state[0]
        ours = self.logits(states)
        theirs = whole[:, : self.vocabulary_size].to(ours)
        if torch.isfinite(theirs).all() and not torch.allclose(ours, theirs, rtol=1e-2, atol=1e-2):
            raise GradalignError(
                f"model {self.name!r} transforms its logits in a way that gradalign does not know; please report it"
            )
        return whole.shape[-1]


def _can_be_cut(head: torch.nn.Module) -> bool:
    """Is the layer a plain one, whose first rows make the first logits? Quantised, adapted and hooked layers are called whole."""
    return type(head) is torch.nn.Linear and type(head.weight) is torch.nn.Parameter and not hasattr(head, "_hf_hook")


def _input_device(model: PreTrainedModel) -> torch.device:
    """Where ids go in: the embeddings' device, or where accelerate brings them for the pass if they are kept elsewhere."""
    embeddings = model.get_input_embeddings()
    hook = getattr(embeddings, "_hf_hook", None)
    execution = getattr(hook, "execution_device", None)
    return next(embeddings.parameters()).device if execution is None else torch.device(execution)
