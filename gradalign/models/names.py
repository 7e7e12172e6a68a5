"""From what a user types to where a model lies: built-in, folder, GGUF file, hub id with its revision, a well-known bare name, a server.

No torch.
"""

import difflib
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from gradalign.builtin import builtin_names, builtin_path
from gradalign.endpoint import PREFIX, parse_address, require_no_secret
from gradalign.home import expanded
from gradalign.types import GradalignError

ADAPTER_CONFIG = "adapter_config.json"

_FAMILIES = {
    "Qwen": [f"Qwen3-{size}{kind}" for size in ("0.6B", "1.7B", "4B", "8B", "14B", "32B") for kind in ("", "-Base")]
    + [f"Qwen2.5-{size}{kind}" for size in ("0.5B", "1.5B", "3B", "7B", "14B", "32B", "72B") for kind in ("", "-Instruct")]
    + [f"Qwen2.5-Math-{size}{kind}" for size in ("1.5B", "7B", "72B") for kind in ("", "-Instruct")],
    "meta-llama": [f"Llama-3.2-{size}{kind}" for size in ("1B", "3B") for kind in ("", "-Instruct")]
    + [f"Llama-3.1-{size}{kind}" for size in ("8B", "70B") for kind in ("", "-Instruct")]
    + ["Llama-3.3-70B-Instruct"],
    "HuggingFaceTB": [f"SmolLM2-{size}{kind}" for size in ("135M", "360M", "1.7B") for kind in ("", "-Instruct")]
    + ["SmolLM3-3B", "SmolLM3-3B-Base"],
    "google": [f"gemma-3-{size}-{kind}" for size in ("270m", "1b", "4b", "12b", "27b") for kind in ("it", "pt")],
}
KNOWN_NAMES = {name: f"{owner}/{name}" for owner, names in _FAMILIES.items() for name in names}
_BY_LOWER_CASE = {name.lower(): name for name in KNOWN_NAMES}


@dataclass(frozen=True)
class ModelSource:
    """Where a model is: a folder on disk, a hub id, a folder with the name of a GGUF file in it, or the URL where it is served.

    A folder may hold an adapter instead of a model, and a hub id too. `revision` is a branch, tag or commit of a hub id.
    """

    name: str
    kind: Literal["folder", "gguf", "hub", "server"]
    location: str
    gguf_file: str | None = None
    revision: str | None = None


def resolve_model(name: str) -> ModelSource:
    """Find the model that `name` means; an unknown name fails with the nearest known ones.

    What follows the last @ of a name is its revision, unless the whole is a path that exists.
    """
    if not name.startswith(PREFIX):
        require_no_secret(name, "a model", "HF_TOKEN")
    plain, separator, revision = name.rpartition("@")
    if not separator or name.startswith(PREFIX) or os.path.exists(expanded(name)):
        return _without_revision(name)
    found = _without_revision(plain)
    if found.kind != "hub":
        raise GradalignError(f"{plain!r} has no revisions, only hub ids have; leave out @{revision}, or check the path")
    if not revision:
        raise GradalignError(
            f"model {name!r} names no revision after the @; give a branch, a tag or a commit, or leave out the @"
        )
    return replace(found, name=name, revision=revision)


def _without_revision(name: str) -> ModelSource:
    if name.startswith("builtin:"):
        return ModelSource(name, "folder", str(_builtin_student(name)))
    if name.startswith(PREFIX):
        return ModelSource(name, "server", parse_address(name).url)
    path = expanded(name)
    if path.suffix == ".gguf":
        if not os.path.isfile(path):
            raise GradalignError(f"no such GGUF file: {name}; check the path")
        return ModelSource(name, "gguf", str(path.parent), path.name)
    if name and os.path.isdir(path):
        if not any((path / file).is_file() for file in ("config.json", ADAPTER_CONFIG)):
            raise GradalignError(
                f"folder {name} holds no config.json (a model) and no {ADAPTER_CONFIG} (a PEFT adapter); "
                "give the folder that save_pretrained wrote"
            )
        return ModelSource(name, "folder", str(path))
    known = _BY_LOWER_CASE.get(name.lower())
    if known:
        return ModelSource(name, "hub", KNOWN_NAMES[known])
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return ModelSource(name, "hub", name)
    raise GradalignError(f"unknown model {name!r}; {_nearest(name)}")


def _builtin_student(name: str) -> Path:
    known = builtin_names("students")
    short = name.removeprefix("builtin:")
    if short not in known:
        raise GradalignError(f"unknown built-in model {name!r}; choose from {', '.join('builtin:' + n for n in known)}")
    return builtin_path("students") / short


def _nearest(name: str) -> str:
    lowered = [*_BY_LOWER_CASE, *(f"builtin:{n}" for n in builtin_names("students"))]
    close = difflib.get_close_matches(name.lower(), lowered, n=3, cutoff=0.4)
    if close:
        return (
            f"did you mean {', '.join(_BY_LOWER_CASE.get(c, c) for c in close)}? A folder, a .gguf file or OWNER/NAME works too"
        )
    return "give a folder, a .gguf file, OWNER/NAME on the hub, builtin:small, or a name such as Qwen3-0.6B"
