"""Load weights, tokenizer and chat template, without running code from the files."""

import hashlib
from dataclasses import dataclass

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from gradalign.home import expanded
from gradalign.models.causal import CausalLanguageModel, output_layer
from gradalign.models.chat import ChatCodec, vocabulary_span
from gradalign.models.names import ModelSource, resolve_model
from gradalign.models.plausible import require_plausible
from gradalign.models.protocol import LoadedModel
from gradalign.types import GradalignError

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class LoadOptions:
    """How models are placed and run. `dtype` auto is bfloat16 on CUDA and float32 elsewhere."""

    device: str = "auto"
    dtype: str = "auto"
    temperature: float = 1.0
    batch_size: int = 64
    chat_template: str | None = None


def load_model(name: str, options: LoadOptions) -> LoadedModel:
    """The model that `name` means, ready for forward passes."""
    source = resolve_model(name)
    if source.kind == "server":
        raise GradalignError(
            f"{name} cannot be the student, whose whole distribution is needed; give its folder or hub id, and this as --engine"
        )
    model, tokenizer = _load_files(source, options)
    if options.chat_template:
        tokenizer.chat_template = _read_template(options.chat_template)
    span = vocabulary_span(tokenizer)
    codec = ChatCodec(tokenizer, name, _stop_ids(model, tokenizer))
    language_model = CausalLanguageModel(model, name, span, options.temperature, options.batch_size)
    width = output_layer(model).weight.shape[0]
    notices = (f"{name}: {width:,} logits over {span:,} tokens, trimmed to the tokens",) if width > span else ()
    return LoadedModel(language_model, codec, _fingerprint(model, tokenizer, source), model.num_parameters(), notices)


def _load_files(source: ModelSource, options: LoadOptions) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    device = _device(options.device)
    dtype = options.dtype if options.dtype != "auto" else "bfloat16" if device.type == "cuda" else "float32"
    if dtype not in DTYPES:
        raise GradalignError(f"unknown dtype {dtype!r}; choose from auto, {', '.join(DTYPES)}")
    files = {"gguf_file": source.gguf_file} if source.gguf_file else {}
    disable_progress_bar()  # a few seconds on disk; downloads keep their own bars
    try:
        require_plausible(PretrainedConfig.get_config_dict(source.location, **files)[0], source.name)
        tokenizer = AutoTokenizer.from_pretrained(source.location, trust_remote_code=False, **files)
        model = AutoModelForCausalLM.from_pretrained(
            source.location,
            dtype=getattr(torch, dtype),
            trust_remote_code=False,
            use_safetensors=None if files else True,
            **files,
        )
    except ImportError as error:
        extra = " (pip install 'gradalign[gguf]')" if source.kind == "gguf" else ""
        raise GradalignError(f"model {source.name!r} needs a package that is missing{extra}: {_first_line(error)}") from error
    except GradalignError:
        raise
    except Exception as error:  # loaders raise whatever the files provoke
        raise GradalignError(_why_not_loaded(source, error)) from error
    return model.to(device).eval(), tokenizer  # pyright: ignore[reportArgumentType]


def _read_template(path: str) -> str:
    try:
        return expanded(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise GradalignError(f"chat template {path} cannot be read ({_first_line(error)}); check the path") from error


def _device(name: str) -> torch.device:
    """The device of that name, or an accelerator if there is one; refused if it cannot be used here."""
    try:
        device = torch.device(name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise GradalignError(f"device {name!r} cannot be used here ({_first_line(error)}); choose auto, cpu or cuda") from error
    return device


def _why_not_loaded(source: ModelSource, error: Exception) -> str:
    if source.kind == "hub":
        return (
            f"model {source.name!r} ({source.location} on the hub) could not be loaded: no network, no such model, or no access; "
            f"check the name and the connection, or give a local folder ({_first_line(error)})"
        )
    return f"model {source.name!r} could not be loaded from {source.location}: {_first_line(error)}; check that its files are whole"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _stop_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Every token that ends a turn by the model's generation settings, its configuration or its tokenizer."""
    settings = (model.generation_config, model.config.get_text_config(), tokenizer)
    declared = [getattr(source, "eos_token_id", None) for source in settings]
    named = [token for value in declared if value is not None for token in (value if isinstance(value, list) else [value])]
    odd = next((token for token in named if not isinstance(token, int)), None)
    if odd is not None:
        raise GradalignError(
            f"the model names {str(odd)[:50]!r} as its end-of-turn token; set eos_token_id in its generation_config.json"
        )
    ids = set(named)
    if not ids:
        raise GradalignError("the model names no end-of-turn token; set eos_token_id in its generation_config.json")
    return frozenset(ids)


def _fingerprint(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: ModelSource) -> str:
    """A hash that tells two models apart: precision, chat template, vocabulary, and of every tensor name, shape and some values."""
    vocabulary = sorted(tokenizer.get_vocab().items())
    digest = hashlib.blake2b(f"{model.dtype}{tokenizer.chat_template}{vocabulary}".encode(), digest_size=16)
    for key, tensor in sorted(model.state_dict().items()):
        flat = tensor.reshape(-1)
        sample = flat[:: max(1, flat.numel() // 64)][:64].float().cpu().numpy()
        digest.update(f"{key}{tuple(tensor.shape)}".encode() + sample.tobytes())
    return f"{source.kind}:{digest.hexdigest()}"
