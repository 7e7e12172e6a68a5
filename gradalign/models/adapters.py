"""PEFT adapters as models: a base model with its adapter in place. The one module that imports peft, and only when an adapter is loaded.

The adapter is not merged into the weights: it computes what it was trained to compute, over a quantised base too, and tied embeddings stay
as they are where only one of the two is adapted.
"""

import hashlib
import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel
from transformers.utils.hub import cached_file

from gradalign.models.names import ADAPTER_CONFIG, ModelSource, resolve_model
from gradalign.models.placement import SHARD
from gradalign.models.weights import LoadOptions, first_line, quantization_method, read_weights
from gradalign.types import GradalignError

_WEIGHTS = "adapter_model.safetensors"
_MERGE = "merge it (merge_and_unload) and save the whole model"


@dataclass(frozen=True)
class Adapter:
    """An adapter's folder on this machine, the base model that it names, and where its tokenizer is: with it, else with its base."""

    name: str
    folder: Path
    base: ModelSource
    tokenizer: ModelSource

    def digest(self) -> str:
        """A hash of its settings and its weights."""
        found = hashlib.blake2b(digest_size=16)
        for file in (ADAPTER_CONFIG, _WEIGHTS):
            found.update((self.folder / file).read_bytes())
        return found.hexdigest()


def find_adapter(source: ModelSource) -> Adapter | None:
    """The adapter that lies where a model could lie; None where there is none."""
    file = _file(source, ADAPTER_CONFIG)
    if file is None:
        return None
    name = source.name
    if (file.parent / "config.json").is_file():
        raise GradalignError(
            f"{name!r} holds both a model and an adapter ({ADAPTER_CONFIG}); keep them in folders of their own"
        )
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
        base, revision = settings["base_model_name_or_path"], settings.get("revision")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise GradalignError(f"adapter {name!r}: {ADAPTER_CONFIG} names no base model ({first_line(error)})") from error
    if settings.get("megatron_config"):
        raise GradalignError(f"adapter {name!r} is for Megatron, and would import a module that it names; {_MERGE}")
    if settings.get("alora_invocation_tokens") is not None:
        raise GradalignError(
            f"adapter {name!r} acts after its invocation tokens alone (aLoRA), which are not looked for; train a LoRA"
        )
    if _file(source, _WEIGHTS) is None:
        raise GradalignError(
            f"adapter {name!r} has no {_WEIGHTS}; other files can run code when they are opened; save it again with peft"
        )
    whole = _base(name, base, revision)
    return Adapter(name, file.parent, whole, whole if _file(source, "tokenizer_config.json") is None else source)


def read_adapted(adapter: Adapter, options: LoadOptions) -> PreTrainedModel:
    """The base model with the adapter in its layers, ready for forward passes."""
    if options.device == SHARD:
        raise GradalignError(f"adapter {adapter.name!r} cannot be placed with shard; {_MERGE}")
    peft = _imported(adapter.name)
    try:
        model = read_weights(adapter.base, options)
    except GradalignError as error:
        raise GradalignError(f"adapter {adapter.name!r} needs its base model: {error}") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of layers that are adapted and tied; they stay as peft has them
            _fit_embeddings(model, adapter)
            config = peft.PeftConfig.from_pretrained(str(adapter.folder))
            if config.is_prompt_learning:
                raise GradalignError(
                    f"adapter {adapter.name!r} works on prompts ({config.peft_type.value}), not on layers; train a LoRA"
                )
            config.inference_mode = True
            whole = peft.PeftModel(model, config)
            mapping = getattr(model, "_checkpoint_conversion_mapping", {})
            loaded = whole.load_adapter(str(adapter.folder), "default", torch_device=str(model.device), key_mapping=mapping)
            whole.eval()
            if quantization_method(model.config) is None:  # bitsandbytes' state_dict spoils weights after a pass on the CPU
                _require_seen(adapter, whole, model)
    except GradalignError:
        raise
    except Exception as error:  # peft raises whatever settings and shapes provoke
        raise GradalignError(
            f"adapter {adapter.name!r} does not fit its base model {adapter.base.name!r} ({first_line(error)}); check "
            f"base_model_name_or_path in its {ADAPTER_CONFIG}"
        ) from error
    strange = [*loaded.missing_keys, *loaded.unexpected_keys]
    if strange:
        raise GradalignError(
            f"adapter {adapter.name!r} does not fit its base model {adapter.base.name!r}: {len(strange):,} weights have no "
            f"counterpart, first {strange[0]!r}; check base_model_name_or_path in its {ADAPTER_CONFIG}"
        )
    return model


def _base(name: str, base: Any, revision: Any) -> ModelSource:
    text = f"{base}@{revision}" if revision and not Path(str(base)).exists() else str(base)
    try:
        found = resolve_model(text)
    except GradalignError as error:
        raise GradalignError(
            f"adapter {name!r} needs its base model {text!r}, which is not here ({error}); put it there, or change "
            f"base_model_name_or_path in {ADAPTER_CONFIG}"
        ) from error
    if found.kind == "server" or (Path(found.location) / ADAPTER_CONFIG).is_file():
        raise GradalignError(f"adapter {name!r} has {text!r} for its base, which is no whole model; {_MERGE}")
    return found


def _file(source: ModelSource, name: str) -> Path | None:
    """A file of a folder or a hub id on this machine; None where there is none, or where it cannot be known."""
    if source.kind == "folder":
        file = Path(source.location) / name
        return file if file.is_file() else None
    if source.kind != "hub":
        return None
    quiet = ("gated_repo", "missing_entries", "connection_errors")
    try:
        found = cached_file(
            source.location, name, revision=source.revision, **{f"_raise_exceptions_for_{what}": False for what in quiet}
        )
    except OSError:
        return None  # no such model: its configuration cannot be read either, and that is said
    return None if found is None else Path(found)


def _imported(name: str) -> Any:
    try:
        import peft  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise GradalignError(
            f"{name!r} is a PEFT adapter; pip install 'gradalign[peft]', or {_MERGE} ({first_line(error)})"
        ) from error
    return peft


def _fit_embeddings(model: PreTrainedModel, adapter: Adapter) -> None:
    """Where tokens were added in training, the embeddings lie whole with the adapter: give the model room for them."""
    embeddings = model.get_input_embeddings()
    name = next(name for name, module in model.named_modules() if module is embeddings)
    try:
        with safe_open(adapter.folder / _WEIGHTS, "pt") as file:
            whole = [key for key in file.keys() if key.endswith(f"{name}.weight")]  # noqa: SIM118
            rows = file.get_slice(whole[0]).get_shape()[0] if whole else None
    except (SafetensorError, OSError) as error:
        raise GradalignError(
            f"adapter {adapter.name!r}: {_WEIGHTS} cannot be read ({first_line(error)}); copy it again"
        ) from error
    if rows is not None and rows != len(next(embeddings.parameters())):
        model.resize_token_embeddings(rows, mean_resizing=False)


@torch.inference_mode()
def _require_seen(adapter: Adapter, whole: Any, model: PreTrainedModel) -> None:
    """Plain forward passes must see the adapter as peft's own do: some kinds act only there."""
    ids = torch.tensor([[0, 1, 2]], device=model.device)
    theirs, ours = (either(input_ids=ids).logits.float() for either in (whole, model))
    if not torch.allclose(theirs, ours, rtol=1e-3, atol=1e-3, equal_nan=True):
        raise GradalignError(f"adapter {adapter.name!r} acts outside the model's layers, in peft's own forward pass; {_MERGE}")
