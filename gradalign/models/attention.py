"""Attention of one's own in place of an architecture's: switched on for some passes, and what a layer is to be told of its window."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import PreTrainedModel

_KINDS = {"full_attention", "sliding_attention"}


@contextmanager
def attending(model: PreTrainedModel, implementation: str) -> Iterator[None]:
    """Forward passes in this block attend by an implementation that is registered with transformers."""
    config = model.config.get_text_config()
    before = config._attn_implementation
    config._attn_implementation = implementation
    try:
        yield
    finally:
        config._attn_implementation = before


def only_attends(config: Any) -> bool:
    """Are all layers, by the configuration, full or sliding attention?"""
    return {*(getattr(config, "layer_types", None) or ())} <= _KINDS


def windows(config: Any) -> dict[int, int | None]:
    """The window of each layer by the configuration: an architecture that keeps to one by its mask alone does not tell its attention."""
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
    return {layer: window if kind == "sliding_attention" else None for layer, kind in enumerate(kinds)}
