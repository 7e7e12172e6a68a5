"""Are the sizes that a model's configuration names those of a model? A file may say anything, and layers are built as it says."""

from transformers import PretrainedConfig

from gradalign.types import GradalignError

# far beyond any model there is
_MOST = {
    "num_hidden_layers": 10_000,
    "hidden_size": 1 << 20,
    "intermediate_size": 1 << 24,
    "vocab_size": 1 << 26,
    "num_attention_heads": 1 << 16,
    "num_key_value_heads": 1 << 16,
    "head_dim": 1 << 16,
    "num_experts": 1 << 16,
    "num_local_experts": 1 << 16,
}
_PARAMETERS = 1e14


def require_plausible(config: PretrainedConfig, name: str) -> None:
    """Refuse sizes that no model has, before anything of such a size is built."""
    text = config.get_text_config()
    for key, most in _MOST.items():
        value = getattr(text, key, None)
        if value is not None and (not isinstance(value, int) or not 0 < value <= most):
            raise GradalignError(f"model {name!r} has {key} {str(value)[:50]} in its config.json; check that its files are whole")
    layers, width, vocabulary = (getattr(text, key, None) or 1 for key in ("num_hidden_layers", "hidden_size", "vocab_size"))
    inner = getattr(text, "intermediate_size", None) or width
    if width * (layers * (width + inner) + vocabulary) > _PARAMETERS:
        raise GradalignError(f"model {name!r} would have over {_PARAMETERS:.0e} parameters by its config.json; check that its files are whole")
