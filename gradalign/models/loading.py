"""From a name to a model ready for use: weights, an adapter, tokenizer and chat template, none of which runs code from the files."""

from collections.abc import Callable
from functools import partial

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gradalign.home import expanded
from gradalign.models.adapters import find_adapter, read_adapted
from gradalign.models.causal import CausalLanguageModel, Origin
from gradalign.models.chat import ChatCodec, differing_tokens, vocabulary_span
from gradalign.models.fingerprints import fingerprint
from gradalign.models.names import ModelSource, resolve_model
from gradalign.models.placement import SHARD
from gradalign.models.protocol import Codec, LoadedModel
from gradalign.models.turns import InTurn, Turn
from gradalign.models.weights import LoadOptions, first_line, quantization_method, read_config, read_tokenizer, read_weights
from gradalign.types import GradalignError


def load_model(name: str, options: LoadOptions, turn: Turn | None = None, student: Codec | None = None) -> LoadedModel:
    """The model that `name` means, ready for forward passes; with a `turn` its layers leave memory while another model has it.

    With a `student` the chat template in `options` is for its tokenizer: a model with another one and a template of its own keeps that.
    """
    source = resolve_model(name)
    if source.kind == "server":
        raise GradalignError(
            f"{name} cannot be the student, whose whole distribution is needed; give its folder or hub id, and this as --engine"
        )
    adapter = find_adapter(source)
    read = partial(read_weights, source, options) if adapter is None else partial(read_adapted, adapter, options)
    if turn is not None:
        turn.clear()
    model = read()
    tokenizer = read_tokenizer(source if adapter is None else adapter.tokenizer, options)
    if options.chat_template and not _keeps_its_template(tokenizer, name, student):
        tokenizer.chat_template = _read_template(options.chat_template)
    span = vocabulary_span(tokenizer)
    codec = ChatCodec(tokenizer, name, _stop_ids(name, model, tokenizer), options.thinking)
    digest = fingerprint(model, tokenizer, codec.stop_ids, None if adapter is None else adapter.digest())
    parameters = model.num_parameters()
    changed = "its adapter" if adapter is not None else _quantised_here(source, options)
    origin = Origin(source, options.trust_remote_code, changed, options.device == SHARD)
    language_model = _language_model(model, name, span, options, origin, turn, read)
    notices = [f"{name}: {language_model.width:,} logits over {span:,} tokens, trimmed to the tokens"] * (
        language_model.width > span
    )
    return LoadedModel(language_model, codec, f"{source.kind}:{digest}", parameters, tuple(notices))


def _language_model(
    model: PreTrainedModel,
    name: str,
    span: int,
    options: LoadOptions,
    origin: Origin,
    turn: Turn | None,
    read: Callable[[], PreTrainedModel],
) -> CausalLanguageModel:
    if turn is None:
        return CausalLanguageModel(model, name, span, options.temperature, options.batch_size, origin)
    return InTurn(model, name, span, options.temperature, options.batch_size, origin, turn, read)


def _quantised_here(source: ModelSource, options: LoadOptions) -> str | None:
    """Was it quantised as it was loaded? What its files say of themselves, they say to every engine."""
    if options.quantize is None or quantization_method(read_config(source, options)) is not None:
        return None
    return f"--quantize {options.quantize}"


def _keeps_its_template(tokenizer: PreTrainedTokenizerBase, name: str, student: Codec | None) -> bool:
    if not (tokenizer.chat_template and isinstance(student, ChatCodec)):
        return False
    return bool(differing_tokens(student, ChatCodec(tokenizer, name, frozenset())))


def _read_template(path: str) -> str:
    try:
        return expanded(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise GradalignError(f"chat template {path} cannot be read ({first_line(error)}); check the path") from error


def _stop_ids(name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Every token that ends a turn by the model's generation settings, its configuration or its tokenizer."""
    settings = (model.generation_config, model.config.get_text_config(), tokenizer)
    declared = [getattr(source, "eos_token_id", None) for source in settings]
    named = [token for value in declared if value is not None for token in (value if isinstance(value, list) else [value])]
    odd = [token for token in named if not isinstance(token, int)]
    if odd:
        raise GradalignError(
            f"model {name!r} names {str(odd[0])[:50]!r} as its end-of-turn token; set eos_token_id in its generation_config.json"
        )
    ids = set(named)
    if not ids:
        raise GradalignError(f"model {name!r} names no end-of-turn token; set eos_token_id in its generation_config.json")
    return frozenset(ids)
