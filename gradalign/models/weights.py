"""Weights and tokenizers from files, without running code from them: safetensors or GGUF, whole, quantised or over several devices.

Knows nothing of forward passes. Pickled weights (`.bin`, `.pt`) are refused, whatever restricted unpicklers promise.
"""

import logging
import shutil
import tempfile
import weakref
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.logging import disable_progress_bar

from gradalign.models.names import ModelSource
from gradalign.models.placement import SHARD
from gradalign.models.plausible import require_plausible, sizes_of
from gradalign.types import GradalignError
from gradalign.visible import VisibleLogs

DTYPES = ("float32", "bfloat16", "float16")
_PACKAGES = {
    "bitsandbytes": "'gradalign[quantized]'", "torchao": "'gradalign[quantized]'", "gptq": "gptqmodel", "awq": "gptqmodel",
    "quanto": "optimum-quanto", "auto-round": "auto-round", "fp8": "accelerate",
}  # fmt: skip
_IMPLEMENTATION = tuple(f"{of}_implementation{end}" for of in ("attn", "experts") for end in ("", "_internal"))
for _handler in logging.getLogger("transformers").handlers:  # it names tensors and settings that it did not expect
    _handler.addFilter(VisibleLogs())


@dataclass(frozen=True)
class LoadOptions:
    """How models are placed and run. `dtype` auto is bfloat16 on CUDA and float32 elsewhere.

    `device` may be `shard`: over every GPU, and where they are full main memory and disk. `attention` is a name that transformers knows,
    None the model's own choice. `quantize` is 8bit, 4bit or None, for models that are not quantised already.
    """

    device: str = "auto"
    dtype: str = "auto"
    temperature: float = 1.0
    batch_size: int = 64
    chat_template: str | None = None
    thinking: bool = False
    attention: str | None = None
    quantize: str | None = None
    trust_remote_code: bool = False


def read_tokenizer(source: ModelSource, options: LoadOptions) -> PreTrainedTokenizerBase:
    """The tokenizer that lies with a model or an adapter."""
    try:
        return AutoTokenizer.from_pretrained(source.location, **_files(source, options))
    except Exception as error:  # loaders raise whatever the files provoke
        raise _not_loaded(source, error) from error


def read_config(source: ModelSource, options: LoadOptions) -> PreTrainedConfig:
    """The configuration of a model, whose sizes are those of a model."""
    files = _files(source, options)
    try:
        content = PreTrainedConfig.get_config_dict(source.location, **files)[0]
        require_plausible(content, source.name)
        kernel = None if options.trust_remote_code else _kernel(content)
        if kernel is not None:
            raise GradalignError(
                f"model {source.name!r} asks by its config.json for {kernel[:100]!r}, a kernel downloaded from the hub; take that out "
                "of the file, or allow it with --trust-remote-code"
            )
        config = AutoConfig.from_pretrained(source.location, **files)
        require_plausible(sizes_of(config), source.name)
    except GradalignError:
        raise
    except Exception as error:
        raise _not_loaded(source, error) from error
    named = getattr(config, "transformers_weights", None)
    if named is not None and ".safetensors" not in str(named):
        raise GradalignError(f"model {source.name!r} names {str(named)!r} as its weights; {_CONVERT}")
    return config


def read_weights(source: ModelSource, options: LoadOptions) -> PreTrainedModel:
    """The model in its files, on its device and ready for forward passes."""
    device, dtype = device_of(options), dtype_of(options)
    config = read_config(source, options)
    method = None if source.gguf_file else quantization_method(config)
    told = _attention(options) | _quantize(source, options, method, dtype) | {"dtype": dtype, "use_safetensors": True}
    scratch = None
    if options.device == SHARD:
        scratch = tempfile.mkdtemp(prefix="gradalign-offload-")
        told |= {"device_map": _spread(), "offload_folder": scratch}
    elif method or options.quantize:
        told |= {"device_map": {"": str(device)}}  # what is quantised cannot be moved in every format
    disable_progress_bar()  # a few seconds on disk; downloads keep their own bars
    try:
        model = AutoModelForCausalLM.from_pretrained(source.location, **_files(source, options), **told)
    except Exception as error:
        if scratch:
            shutil.rmtree(scratch, ignore_errors=True)
        raise _not_loaded(source, error, method or _BY_QUANTIZE.get(options.quantize or ""), told) from error
    if scratch:
        weakref.finalize(model, shutil.rmtree, scratch, ignore_errors=True)
    return (model if "device_map" in told else model.to(device)).eval()  # pyright: ignore[reportArgumentType]


def device_of(options: LoadOptions) -> torch.device:
    """The device of that name, or an accelerator if there is one; refused if it cannot be used here."""
    name = "auto" if options.device == SHARD else options.device
    try:
        device = torch.device(name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise GradalignError(f"device {name!r} cannot be used here ({first_line(error)}); choose auto, cpu or cuda") from error
    return device


def dtype_of(options: LoadOptions) -> torch.dtype:
    """The precision that weights are loaded in."""
    name = options.dtype
    if name == "auto":
        name = "bfloat16" if device_of(options).type == "cuda" else "float32"
    if name not in DTYPES:
        raise GradalignError(f"unknown dtype {name!r}; choose from auto, {', '.join(DTYPES)}")
    return getattr(torch, name)


def quantization_method(config: PreTrainedConfig) -> str | None:
    """How the files are quantised, in the words of their configuration; None where they are not."""
    found = quantization(config)
    return str(found.get("quant_method", "unknown")) if found else None


def quantization(config: PreTrainedConfig) -> dict[str, Any]:
    """What a configuration says of quantisation; empty where it says nothing."""
    found = getattr(config, "quantization_config", None) or {}
    return found if isinstance(found, dict) else found.to_dict()


def first_line(error: Exception) -> str:
    """The first line of what an error says, not too long."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _files(source: ModelSource, options: LoadOptions) -> dict[str, Any]:
    told: dict[str, Any] = {"trust_remote_code": options.trust_remote_code}
    if source.gguf_file:
        told["gguf_file"] = source.gguf_file
    return told | ({"revision": source.revision} if source.revision else {})


def _attention(options: LoadOptions) -> dict[str, Any]:
    if options.attention is None:
        return {}
    if _is_kernel(options.attention) and not options.trust_remote_code:
        raise GradalignError(
            f"--attention {options.attention} would run a kernel downloaded from the hub; choose eager or sdpa, pip install "
            "flash-attn for flash_attention_2, or allow it with --trust-remote-code"
        )
    return {"attn_implementation": options.attention}


def _is_kernel(implementation: str) -> bool:
    """Does transformers take it from the hub? Flash attention too, where it is not installed and the package `kernels` is."""
    instead = find_spec("kernels") is not None and not any(map(find_spec, ("flash_attn", "flash_attn_interface")))
    return "/" in implementation or ("flash_attention" in implementation and instead)


def _kernel(content: Any, of_implementation: bool = False) -> str | None:
    """The first kernel of the hub that a configuration, or a part of it, names as one of its implementations."""
    if isinstance(content, str):
        return content if of_implementation and _is_kernel(content) else None
    inner = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    found = (_kernel(value, of_implementation or str(key).endswith(_IMPLEMENTATION)) for key, value in inner)
    return next((kernel for kernel in found if kernel is not None), None)


_BY_QUANTIZE = {"8bit": "torchao", "4bit": "bitsandbytes"}


def _quantize(source: ModelSource, options: LoadOptions, method: str | None, dtype: torch.dtype) -> dict[str, Any]:
    """Weights alone are quantised, so that what a row gives does not depend on others in its batch (as it does in LLM.int8)."""
    if options.quantize is None or method:
        return {}
    if source.kind == "gguf":
        raise GradalignError(f"{source.name!r} is a .gguf file, which transformers cannot quantise anew; leave out --quantize")
    try:
        if options.quantize == "8bit":
            from torchao.quantization import Int8WeightOnlyConfig  # pyright: ignore[reportMissingImports]
            from transformers import TorchAoConfig

            return {"quantization_config": TorchAoConfig(Int8WeightOnlyConfig())}
        four = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
        return {"quantization_config": four}
    except ImportError as error:
        raise GradalignError(
            f"--quantize {options.quantize} needs a package that is missing; pip install 'gradalign[quantized]'"
        ) from error


def _spread() -> str | dict[str, Any]:
    """Where accelerate puts the parts of a model: as much as fits on GPUs, then main memory, then disk."""
    return "auto"


_CONVERT = (
    "only safetensors files are read, since others can run code when they are opened; load it once with transformers where you trust it, "
    "and save it with save_pretrained"
)


def _not_loaded(
    source: ModelSource, error: Exception, method: str | None = None, told: dict[str, Any] | None = None
) -> GradalignError:
    """One line: what could not be loaded, why, and what to do."""
    said, text = first_line(error), str(error)
    if isinstance(error, GradalignError):
        return error
    if "trust_remote_code" in text:
        return GradalignError(
            f"model {source.name!r} needs Python code that lies with its files; --trust-remote-code runs it on this machine with your "
            "rights, so read it first, or choose a model that transformers knows"
        )
    if isinstance(error, ImportError) or "accelerate" in text:
        package = _PACKAGES.get(method or "", method or "")
        extra = "'gradalign[gguf]'" if source.kind == "gguf" else "'gradalign[sharded]'" if "accelerate" in text else package
        hint = f" (pip install {extra})" if extra else ""
        return GradalignError(f"model {source.name!r} needs a package that is missing{hint}: {said}")
    if told and "attn_implementation" in told and any(word in text for word in ("attn_implementation", "attention")):
        return GradalignError(
            f"model {source.name!r} cannot use --attention {told['attn_implementation']} ({said}); leave it out"
        )
    if "model.safetensors" in text and ("no file named" in text or "does not appear to have a file" in text):
        return GradalignError(f"model {source.name!r} has no weights in safetensors files ({source.location}); {_CONVERT}")
    if source.kind == "hub":
        at = f" at revision {source.revision!r}" if source.revision else ""
        return GradalignError(
            f"model {source.name!r} ({source.location}{at} on the hub) could not be loaded: no network, no such model, or no access; "
            f"check the name and the connection, or give a local folder ({said})"
        )
    return GradalignError(
        f"model {source.name!r} could not be loaded from {source.location}: {said}; check that its files are whole"
    )
