"""Which files of many hold which configuration and split, by where they lie and what they are called. Knows names of files alone."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath

from gradalign.types import GradalignError

Layout = Mapping[tuple[str, str], Sequence[str]]  # (configuration, split) to files
SUFFIXES = (".parquet", ".jsonl", ".json", ".csv", ".tsv")
USUAL_SPLITS = ("train", "test", "validation")  # taken in this order where none is asked for
_SHARD = re.compile(r"-\d{5}-of-\d{5}(-[0-9a-f]{16})?$")
_NOT_DATA = {"dataset_infos", "dataset_info", "dataset_dict", "state"}


def file_layout(files: Iterable[str]) -> Layout:
    """Files by configuration and split, of the first kind in `SUFFIXES` that there is.

    The hub's own conversion says both in folders (`CONFIG/SPLIT/0000.parquet`; of a very large set it holds the first gigabytes, under
    `CONFIG/partial-SPLIT`). Elsewhere the folder is the configuration (`default` where there is none or it is `data`), and the file's name
    without the number of its shard the split.
    """
    data = [path for path in map(PurePosixPath, sorted(files)) if path.suffix in SUFFIXES and path.stem not in _NOT_DATA]
    kind = min((path.suffix for path in data), key=SUFFIXES.index, default=None)
    found: dict[tuple[str, str], list[str]] = {}
    for path in data:
        if path.suffix == kind:
            folders, split = [part for part in path.parts[:-1] if part != "data"], _SHARD.sub("", path.stem)
            if split.isdigit() and folders:
                split = folders.pop().removeprefix("partial-")
            found.setdefault(("/".join(folders) or "default", split), []).append(str(path))
    return found


def choose(layout: Layout, configuration: str | None, split: str | None, what: str, mend: str) -> Sequence[str]:
    """The files of a configuration's split; without a name the only or the default one. `what` is whose they are, in words.

    `mend` says how to name a configuration.

    A configuration may also be a file called after it, which then has a single split, `train`.
    """
    configurations = list(dict.fromkeys(name for name, _ in layout))
    if configuration is None:
        configuration = "default" if "default" in configurations else configurations[0]
        if configuration != "default" and len(configurations) > 1:
            raise GradalignError(f"{what} has several configurations; {mend}: {_listed(configurations)}")
    splits = {name: files for (of, name), files in layout.items() if of == configuration}
    if not splits and ("default", configuration) in layout:
        splits = {"train": layout["default", configuration]}
    if not splits:
        raise GradalignError(f"{what} has no configuration {configuration!r}; it has {_listed(configurations)}")
    return splits[choose_split(list(splits), split, what)]


def choose_split(splits: Sequence[str], split: str | None, what: str) -> str:
    """The split that is asked for, or the first there is of train, test and validation, or the only one."""
    if split is not None:
        if split not in splits:
            raise GradalignError(f"{what} has no split {split!r}; it has {_listed(splits)}")
        return split
    usual = [name for name in USUAL_SPLITS if name in splits]
    if not usual and len(splits) > 1:
        raise GradalignError(f"{what} has several splits; choose one with --split: {_listed(splits)}")
    return (usual or splits)[0]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
