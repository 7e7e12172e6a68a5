"""Are the sizes that a model's configuration names those of a model? A file may say anything, and layers are built as it says."""

from collections.abc import Iterator, Mapping
from typing import Any

from gradalign.types import GradalignError

# far beyond any model there is
_LAYERS = 10_000
_MOST = (
    dict.fromkeys(
        ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers", "num_decoder_layers"),
        _LAYERS,
    )
    | dict.fromkeys(("hidden_size", "n_embd", "d_model", "n_embed", "dim"), 1 << 20)
    | dict.fromkeys(("intermediate_size", "ffn_dim", "d_ff", "n_inner", "decoder_ffn_dim", "encoder_ffn_dim"), 1 << 24)
    | {"vocab_size": 1 << 26}
    | dict.fromkeys(
        ("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads", "num_key_value_heads", "head_dim"),
        1 << 16,
    )
    | dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 1 << 16)
)
_PARAMETERS = 1e14
_MEND = "check that its files are whole"


def require_plausible(config: Mapping[str, Any], name: str) -> None:
    """Refuse sizes that no model has, before anything of such a size is built. `config` is the content of config.json as it stands, or
    what `sizes_of` makes of it."""
    for part in _parts(config):
        for key, most in _MOST.items():
            value = part.get(key)
            if isinstance(value, int | float) and not 0 <= value <= most:
                raise GradalignError(f"model {name!r} has {key} {str(value)[:50]} by its config.json; {_MEND}")
        if _most_of(part.get("attention_types")) > _LAYERS:
            raise GradalignError(
                f"model {name!r} has more than {_LAYERS:,} layers in attention_types by its config.json; {_MEND}"
            )
        layers, width, inner, words = (
            _size(part, key) for key in ("num_hidden_layers", "hidden_size", "intermediate_size", "vocab_size")
        )
        if width * (layers * (width + inner) + words) > _PARAMETERS:
            raise GradalignError(
                f"model {name!r} would have more than {_PARAMETERS:.0e} parameters by its config.json; {_MEND}"
            )


def sizes_of(config: Any) -> dict[str, Any]:
    """The sizes of a configuration under the names that all models have, whatever its own are (`attribute_map`), and those of its text."""
    return {key: getattr(config, key, None) for key in _MOST} | {
        "text": {key: getattr(config.get_text_config(), key, None) for key in _MOST}
    }


def _parts(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The configuration and all that are in it."""
    yield config
    for part in config.values():
        if isinstance(part, dict):
            yield from _parts(part)


def _most_of(types: Any) -> float:
    """The largest number in GPT-Neo's list of kinds of layers with how many times each comes."""
    if isinstance(types, list):
        return max(map(_most_of, types), default=0.0)
    return float(types) if isinstance(types, int | float) else 0.0


def _size(part: Mapping[str, Any], key: str) -> float:
    value = part.get(key)
    return float(value) if isinstance(value, int | float) else 1.0
