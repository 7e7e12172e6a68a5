"""Names to weights, tokenizers, chat prompts and forward passes. Knows no questions, no trees and no files of a run."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradalign.models.causal import CausalLanguageModel
    from gradalign.models.chat import ChatCodec, differing_tokens, require_same_vocabulary
    from gradalign.models.loading import LoadOptions, load_model
    from gradalign.models.memory import Batches
    from gradalign.models.names import KNOWN_NAMES, ModelSource, resolve_model
    from gradalign.models.pieces import token_pieces
    from gradalign.models.placement import STUDENT, placed, read_placement
    from gradalign.models.protocol import Codec, LanguageModel, LoadedModel, SharingModel

__all__ = [
    "KNOWN_NAMES",
    "STUDENT",
    "Batches",
    "CausalLanguageModel",
    "ChatCodec",
    "Codec",
    "LanguageModel",
    "LoadOptions",
    "LoadedModel",
    "ModelSource",
    "SharingModel",
    "differing_tokens",
    "load_model",
    "placed",
    "read_placement",
    "require_same_vocabulary",
    "resolve_model",
    "token_pieces",
]

_HOMES = {
    "CausalLanguageModel": "causal",
    "ChatCodec": "chat",
    "differing_tokens": "chat",
    "require_same_vocabulary": "chat",
    "LoadOptions": "loading",
    "load_model": "loading",
    "Batches": "memory",
    "KNOWN_NAMES": "names",
    "ModelSource": "names",
    "resolve_model": "names",
    "token_pieces": "pieces",
    "STUDENT": "placement",
    "placed": "placement",
    "read_placement": "placement",
    "Codec": "protocol",
    "LanguageModel": "protocol",
    "LoadedModel": "protocol",
    "SharingModel": "protocol",
}


def __getattr__(name: str) -> Any:
    """Import on first use, so that names of models are understood without torch."""
    if name in _HOMES:
        return getattr(import_module(f"gradalign.models.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'gradalign.models' has no attribute {name!r}")
