"""What tells two models apart, for run.json: the same wherever and however they are placed."""

import hashlib
import json

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gradalign.models.weights import quantization

_SAMPLED = 64


def fingerprint(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, adapter: str | None = None) -> str:
    """A hash of precision, chat template, vocabulary, quantisation, adapter, and of every tensor name, shape and some values."""
    vocabulary = sorted(tokenizer.get_vocab().items())
    digest = hashlib.blake2b(f"{model.dtype}{tokenizer.chat_template}{vocabulary}".encode(), digest_size=16)
    how = quantization(model.config)
    if how:
        digest.update(json.dumps(how, sort_keys=True, default=str).encode())
    if adapter is not None:
        digest.update(adapter.encode())
    for key, tensor in sorted(model.state_dict().items()):
        values = _some(_present(model, key) if tensor.is_meta else tensor)
        digest.update(f"{key}{tuple(tensor.shape)}".encode() + values)
    return digest.hexdigest()


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
