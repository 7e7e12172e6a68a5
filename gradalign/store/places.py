"""Where a run lies: a folder of this machine or of a shared file system, or a place in an object store, which fsspec reaches."""

import os
import re
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from upath import UPath

from gradalign.endpoint import require_no_secret
from gradalign.home import expanded
from gradalign.types import GradalignError

Place = Path | UPath
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
PARTIAL = ".partial"
_FILES_AT_ONCE, _OBJECTS_AT_ONCE = 4, 12
Item = TypeVar("Item")
Made = TypeVar("Made")


def place_of(path: str | Place) -> Place:
    """The place that `path` means: a path of this machine, or an address such as `s3://bucket/runs/one`.

    Listings of an object store are never cached, since other machines write there. Raises `GradalignError` where the package that reaches
    such an address is missing.
    """
    if not isinstance(path, str):
        return expanded(path) if isinstance(path, Path) else path
    require_no_secret(path, "a run", "AWS_SECRET_ACCESS_KEY")
    if not _ADDRESS.match(path):
        return expanded(path)
    try:
        place = UPath(path, use_listings_cache=False)
        place.fs  # noqa: B018 (the package is imported here)
    except (ImportError, ValueError) as error:
        raise GradalignError(
            f"{path} cannot be reached: {error}; for s3:// addresses pip install 'gradalign[s3]', for others the package of fsspec for them"
        ) from error
    return place


def is_file(place: Place) -> bool:
    """Does a file stand there? A name that no file can have is none."""
    return os.path.isfile(place) if isinstance(place, Path) else place.is_file()


def at_once(place: Place, function: Callable[[Item], Made], items: Iterable[Item]) -> dict[Item, Made]:
    """What the function, which reads or writes at the place, makes of each item, in their order.

    Several are under way at once: a disk takes longer to answer than to read or write, and an object store much longer. The first error
    is raised, and what has not begun by then is given up.
    """
    with ThreadPoolExecutor(_FILES_AT_ONCE if isinstance(place, Path) else _OBJECTS_AT_ONCE) as pool:
        each = list(items)
        return dict(zip(each, pool.map(function, each), strict=True))


def write_whole(root: Place, target: Place, content: bytes) -> None:
    """Write a file so that it appears whole or not at all: beside its place, flushed to disk, then renamed into it.

    An object in an object store appears whole in any case.
    """
    if not isinstance(target, Path):
        target.write_bytes(content)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(str(root)) / PARTIAL / f"{uuid.uuid4().hex}-{target.name}"
    partial.parent.mkdir(exist_ok=True)
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    _flush_folder(target.parent)


def _flush_folder(folder: Path) -> None:
    """Have the names in a folder stand on disk."""
    if os.name == "nt":  # folders cannot be opened there
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_parquet(file: Place, *more: Place, **options: Any) -> pa.Table:
    """The rows of Parquet files that lie in one place, file after file; `options` are those of `pyarrow.parquet.read_table`."""
    store = {} if isinstance(file, Path) else {"filesystem": file.fs}
    try:
        return pq.read_table([str(each) if isinstance(each, Path) else each.path for each in (file, *more)], **store, **options)
    except (pa.ArrowException, OSError, ValueError) as error:
        for each in (file, *more) if more else ():  # which one is it?
            read_parquet(each, **options)
        said = " ".join(str(error).split())[:200]
        raise GradalignError(f"{file} cannot be read ({said}); run the run's `gradalign score` command again") from error
