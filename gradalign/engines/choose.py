"""Which engine samples the student: what the user names, or what suits the machine."""

import logging
from importlib.util import find_spec

from gradalign.endpoint import PREFIX
from gradalign.engines.hf import BATCH, HFEngine
from gradalign.engines.protocol import Engine
from gradalign.engines.vllm import VLLMEngine
from gradalign.engines.vllm_setup import require_vllm
from gradalign.models import CausalLanguageModel, LoadedModel, Origin, resolve_model
from gradalign.types import GradalignError

log = logging.getLogger(__name__)
ENGINES = ("auto", "hf", "vllm", "server:URL#MODEL")


def student_engine(spec: str, loaded: LoadedModel, batch_size: int | None, tensor_parallel: int = 1) -> Engine:
    """The engine that `spec` names over a loaded student; `auto` is vLLM on a CUDA machine where it is installed, else transformers."""
    model = loaded.language_model
    assert isinstance(model, CausalLanguageModel)
    kind = _suited(model, tensor_parallel) if spec == "auto" else spec
    if kind == "hf":
        return HFEngine(model, loaded.codec.stop_ids, batch_size)
    if kind == "vllm":
        return VLLMEngine(model, loaded.codec.stop_ids, tensor_parallel)
    if kind.startswith(PREFIX):
        from gradalign.engines.server import connect_student  # needs the extra `server`

        return connect_student(kind, loaded, batch_size or BATCH)
    raise GradalignError(f"unknown engine {spec!r}; choose from {', '.join(ENGINES)}")


def _suited(model: CausalLanguageModel, tensor_parallel: int) -> str:
    """What `auto` means for a loaded student: transformers where its files alone do not make it, or where one GPU does not hold it."""
    origin = model.origin or Origin(resolve_model(model.name))
    if origin.changed is not None or (origin.sharded and tensor_parallel == 1):
        return "hf"
    return suited_engine(model.device.type, origin.source.kind)


def suited_engine(device: str, files: str = "folder") -> str:
    """What `auto` means on that type of device for a model from such files: vLLM on CUDA where it can be imported, else transformers."""
    if device != "cuda" or files == "gguf" or find_spec("vllm") is None:
        return "hf"
    try:
        require_vllm()
    except GradalignError as error:
        log.warning("%s; going on with transformers", error)
        return "hf"
    return "vllm"
