"""Are the sizes that a model's configuration names those of a model? A file may say anything, and layers are built as it says."""

from collections.abc import Mapping
from typing import Any

from gradalign.types import GradalignError

# far beyond any model there is
_MOST = {
    "num_hidden_layers": 10_000,
    "n_layer": 10_000,
    "hidden_size": 1 << 20,
    "n_embd": 1 << 20,
    "intermediate_size": 1 << 24,
    "vocab_size": 1 << 26,
    "num_attention_heads": 1 << 16,
    "num_key_value_heads": 1 << 16,
    "head_dim": 1 << 16,
    "num_experts": 1 << 16,
    "num_local_experts": 1 << 16,
}
_PARAMETERS = 1e14
_MEND = "check that its files are whole"


def require_plausible(config: Mapping[str, Any], name: str) -> None:
    """Refuse sizes that no model has, before anything of such a size is built. `config` is the content of config.json as it stands."""
    parts = [config, *(part for part in config.values() if isinstance(part, dict))]
    for part in parts:
        for key, most in _MOST.items():
            value = part.get(key)
            if isinstance(value, int | float) and not 0 <= value <= most:
                raise GradalignError(f"model {name!r} has {key} {str(value)[:50]} by its config.json; {_MEND}")
        layers, width, inner, words = (
            _size(part, key) for key in ("num_hidden_layers", "hidden_size", "intermediate_size", "vocab_size")
        )
        if width * (layers * (width + inner) + words) > _PARAMETERS:
            raise GradalignError(
                f"model {name!r} would have more than {_PARAMETERS:.0e} parameters by its config.json; {_MEND}"
            )


def _size(part: Mapping[str, Any], key: str) -> float:
    value = part.get(key)
    return float(value) if isinstance(value, int | float) else 1.0
