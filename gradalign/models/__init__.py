"""Names to weights, tokenizers, chat prompts and forward passes. Knows no questions, no trees and no files of a run."""

from gradalign.models.causal import CausalLanguageModel
from gradalign.models.chat import ChatCodec, require_same_vocabulary
from gradalign.models.loading import LoadOptions, load_model
from gradalign.models.memory import Batches
from gradalign.models.names import KNOWN_NAMES, ModelSource, resolve_model
from gradalign.models.protocol import Codec, LanguageModel, LoadedModel

__all__ = [
    "KNOWN_NAMES",
    "Batches",
    "CausalLanguageModel",
    "ChatCodec",
    "Codec",
    "LanguageModel",
    "LoadOptions",
    "LoadedModel",
    "ModelSource",
    "load_model",
    "require_same_vocabulary",
    "resolve_model",
]
