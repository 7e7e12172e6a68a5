"""How much memory models take and how much is free, before they are loaded."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from gradalign.models.adapters import find_adapter
from gradalign.models.names import resolve_model
from gradalign.models.placement import SHARD
from gradalign.models.weights import LoadOptions, device_of, dtype_of, quantization, read_config
from gradalign.types import GradalignError

_SHARE = 0.8  # of what is free; the rest is for caches and what passes compute
_MEMORY = Path("/proc/meminfo")
_QUANTISED_BITS = {"8bit": 8, "4bit": 4}


def crowded(placed: Sequence[tuple[str, str]], options: LoadOptions) -> dict[str, str]:
    """Devices on which the models placed there (names and devices) would not fit together, each with a line that says so.

    A model whose size is unknown counts nothing, and where free memory is unknown everything fits.
    """
    found = {}
    sizes: dict[str, int] = defaultdict(int)
    for name, device in placed:
        if device != SHARD:
            sizes[device] += expected_bytes(name, replace(options, device=device)) or 0
    for device, size in sizes.items():
        free = free_bytes(device_of(replace(options, device=device)))
        if free is not None and size > _SHARE * free:
            found[device] = (
                f"the models on {device} take about {size / 2**30:.1f} GiB together, and {free / 2**30:.1f} GiB are free"
            )
    return found


def expected_bytes(name: str, options: LoadOptions) -> int | None:
    """Bytes of a model's weights by its configuration, without reading any; None where they cannot be told."""
    try:
        source = resolve_model(name)
        adapter = find_adapter(source)
        config = read_config(source if adapter is None else adapter.base, options)
        with torch.device("meta"):
            shape = AutoModelForCausalLM.from_config(config, trust_remote_code=options.trust_remote_code)
    except GradalignError:
        return None  # it cannot be loaded, which is said when it is
    except Exception:  # an architecture that does more than make layers; it may load all the same
        return None
    how = quantization(config)
    bits = 8 * dtype_of(options).itemsize if not how else 4 if how.get("load_in_4bit") else int(how.get("bits") or 8)
    if options.quantize and not how:
        bits = _QUANTISED_BITS[options.quantize]
    return shape.num_parameters() * bits // 8


def held_bytes(model: PreTrainedModel) -> int:
    """Bytes of a model's parameters."""
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def free_bytes(device: torch.device) -> int | None:
    """Memory that is free there; of main memory None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = dict(line.split(":", 1) for line in _MEMORY.read_text(encoding="ascii").splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
