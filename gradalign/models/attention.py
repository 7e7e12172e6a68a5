"""Attention of one's own in place of an architecture's: switched on for some passes, and what a layer is to be told of its window."""

import threading
from typing import Any

from transformers import PreTrainedModel

from gradalign.models.norms import quick_norms

_KINDS = {"full_attention", "sliding_attention"}
_PASSES = threading.Lock()


def forward(model: PreTrainedModel, implementation: str | None = None, whole: bool = False, **inputs: Any) -> Any:
    """A forward pass up to the last hidden states, or the `whole` of it, by the model's own attention or one registered with transformers.

    Which one it is stands in the model's configuration, where all threads read it: their passes go one after the other.
    """
    config = model.config.get_text_config()
    with _PASSES, quick_norms(model):
        before = config._attn_implementation
        config._attn_implementation = implementation or before
        try:
            return (model if whole else model.base_model)(**inputs)
        finally:
            config._attn_implementation = before


def own_attention(model: PreTrainedModel) -> str | None:
    """The implementation by which the model attends while nothing else is asked for."""
    with _PASSES:
        return model.config.get_text_config()._attn_implementation


def only_attends(config: Any) -> bool:
    """Are all layers, by the configuration, full or sliding attention?"""
    return {*(getattr(config, "layer_types", None) or ())} <= _KINDS


def windows(config: Any) -> dict[int, int | None]:
    """The window of each layer by the configuration: an architecture that keeps to one by its mask alone does not tell its attention."""
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
    return {layer: window if kind == "sliding_attention" else None for layer, kind in enumerate(kinds)}
