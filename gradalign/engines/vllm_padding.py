"""Logits of no token, masked inside vLLM. vLLM imports this module by name, in whatever process samples; nothing else does."""

from typing import Any

from torch import Tensor
from vllm.v1.sample.logits_processor import LogitsProcessor  # pyright: ignore[reportMissingImports]

from gradalign.engines.vllm_setup import SPAN

try:  # vLLM's newer model runner, the usual one on GPUs, has an interface of its own
    from vllm.v1.worker.gpu.sample.logits_processor import (  # pyright: ignore[reportMissingImports]
        LogitsProcessor as RunnerLogitsProcessor,
    )

    _INTERFACES: tuple[type, ...] = (LogitsProcessor, RunnerLogitsProcessor)
except ImportError:
    _INTERFACES = (LogitsProcessor,)


class PaddingMask(*_INTERFACES):
    """Gives logits past the tokenizer's span no probability: sampling and log-probabilities are those of the trimmed vocabulary."""

    def __init__(self, vllm_config: Any, *_: Any):
        self.span = vllm_config.additional_config[SPAN]

    def apply(self, logits: Tensor, *_: Any) -> Tensor:
        """Logits (B, V) with those past the span at minus infinity, in place."""
        logits[:, self.span :] = float("-inf")
        return logits

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: object) -> None:
        """Every request is masked alike."""
