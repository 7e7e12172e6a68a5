"""What tells two models apart, for run.json: the same wherever and however they are placed."""

import hashlib
import json
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gradalign.models.weights import quantization

_SAMPLED = 64
_APART = {"transformers_version", "dtype", "torch_dtype", "attn_implementation", "quantization_config"}


def fingerprint(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, stop_ids: Iterable[int], adapter: str | None = None
) -> str:
    """A hash of all that a model computes by and how it is written to and stopped.

    Precision, settings, quantisation, adapter, every tensor's name, shape and some values; chat template, tokenizer, stop tokens.
    """
    vocabulary = sorted(tokenizer.get_vocab().items())
    digest = hashlib.blake2b(f"{model.dtype}{tokenizer.chat_template}{vocabulary}".encode(), digest_size=16)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        digest.update(backend.to_str().encode())
    settings = [_settings(model.config.to_diff_dict()), sorted(stop_ids)]
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    how = quantization(model.config)
    if how:
        digest.update(json.dumps(how, sort_keys=True, default=str).encode())
    if adapter is not None:
        digest.update(adapter.encode())
    for key, tensor in sorted(model.state_dict().items()):
        values = _some(_present(model, key) if tensor.is_meta else tensor)
        digest.update(f"{key}{tuple(tensor.shape)}".encode() + values)
    return digest.hexdigest()


def _settings(config: Any) -> Any:
    """A configuration, and those within it, without what is hashed by itself, and where and with what it was saved and loaded."""
    if not isinstance(config, dict):
        return config
    return {str(name): _settings(value) for name, value in config.items() if name not in _APART and str(name)[:1] != "_"}


def _present(model: PreTrainedModel, key: str) -> Tensor:
    """A tensor that accelerate keeps elsewhere until it is needed."""
    from accelerate.utils import align_module_device  # there, or nothing would be elsewhere

    path, _, name = key.rpartition(".")
    module = model.get_submodule(path)
    with align_module_device(module, torch.device("cpu")):
        return getattr(module, name).detach().clone()


def _some(tensor: Tensor) -> bytes:
    if type(tensor) not in (Tensor, torch.nn.Parameter) and hasattr(tensor, "dequantize"):
        tensor = tensor.dequantize()
    flat = tensor.reshape(-1)
    return flat[:: max(1, flat.numel() // _SAMPLED)][:_SAMPLED].float().cpu().numpy().tobytes()
