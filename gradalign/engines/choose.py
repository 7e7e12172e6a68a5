"""Which engine samples the student: what the user names, or what suits the machine."""

from importlib.util import find_spec

import torch

from gradalign.engines.hf import HFEngine
from gradalign.engines.protocol import Engine
from gradalign.models import CausalLanguageModel, LoadedModel
from gradalign.types import GradalignError

ENGINES = ("auto", "hf", "vllm", "server:URL#MODEL")


def student_engine(spec: str, loaded: LoadedModel, batch_size: int, tensor_parallel: int = 1) -> Engine:
    """The engine that `spec` names over a loaded student; `auto` is vLLM on a CUDA machine where it is installed, else transformers."""
    model = loaded.language_model
    assert isinstance(model, CausalLanguageModel)
    kind = _suited(model) if spec == "auto" else spec
    if kind == "hf":
        return HFEngine(model, loaded.codec.stop_ids, batch_size)
    raise GradalignError(f"unknown engine {spec!r}; choose from {', '.join(ENGINES)}")


def _suited(model: CausalLanguageModel) -> str:
    return "vllm" if model.device.type == "cuda" and find_spec("vllm") is not None and torch.cuda.is_available() else "hf"
