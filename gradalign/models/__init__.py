"""Names to weights, tokenizers, chat prompts and forward passes. Knows no questions, no trees and no files of a run."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradalign.models.causal import CausalLanguageModel, Origin
    from gradalign.models.chat import ChatCodec, differing_tokens, require_same_vocabulary
    from gradalign.models.loading import load_model
    from gradalign.models.memory import Batches
    from gradalign.models.names import KNOWN_NAMES, ModelSource, resolve_model
    from gradalign.models.pieces import token_pieces
    from gradalign.models.placement import SHARD, STUDENT, placed, read_placement
    from gradalign.models.protocol import Codec, LanguageModel, LoadedModel, SharingModel
    from gradalign.models.room import crowded
    from gradalign.models.span import settle_span
    from gradalign.models.turns import Turn
    from gradalign.models.weights import LoadOptions

__all__ = [
    "KNOWN_NAMES",
    "SHARD",
    "STUDENT",
    "Batches",
    "CausalLanguageModel",
    "ChatCodec",
    "Codec",
    "LanguageModel",
    "LoadOptions",
    "LoadedModel",
    "ModelSource",
    "Origin",
    "SharingModel",
    "Turn",
    "crowded",
    "differing_tokens",
    "load_model",
    "placed",
    "read_placement",
    "require_same_vocabulary",
    "resolve_model",
    "settle_span",
    "token_pieces",
]

_HOMES = {
    "CausalLanguageModel": "causal",
    "ChatCodec": "chat",
    "differing_tokens": "chat",
    "require_same_vocabulary": "chat",
    "Origin": "causal",
    "load_model": "loading",
    "Batches": "memory",
    "KNOWN_NAMES": "names",
    "ModelSource": "names",
    "resolve_model": "names",
    "token_pieces": "pieces",
    "SHARD": "placement",
    "STUDENT": "placement",
    "placed": "placement",
    "read_placement": "placement",
    "Codec": "protocol",
    "LanguageModel": "protocol",
    "LoadedModel": "protocol",
    "crowded": "room",
    "settle_span": "span",
    "Turn": "turns",
    "LoadOptions": "weights",
    "SharingModel": "protocol",
}


def __getattr__(name: str) -> Any:
    """Import on first use, so that names of models are understood without torch."""
    if name in _HOMES:
        return getattr(import_module(f"gradalign.models.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'gradalign.models' has no attribute {name!r}")
