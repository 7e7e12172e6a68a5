"""The run folder: parts of whole questions, each written beside its place, flushed, then renamed; its marker comes last.

Killed at any moment, a run goes on where its last marker stands. A part whose files do not match the checksums in its
marker counts as unfinished. Knows rows and files; nothing of models or of what the rows mean.
"""

import errno
import hashlib
import json
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gradalign.store.schema import TABLES, arrow_schema
from gradalign.types import GradalignError

FORMAT = 1
Rows = Mapping[str, list[dict[str, Any]]]


class RunFolder:
    """One run on disk, open for writing parts."""

    def __init__(self, path: Path):
        self.path = path

    def check(self) -> None:
        """Refuse a place that cannot become a run, before any work is done for it."""
        with _disk_faults(self.path):
            if not self.path.exists():
                self.path.mkdir(parents=True)
                self.path.rmdir()
            elif (self.path / "run.json").exists():
                read_description(self.path)
            elif any(entry.name != ".partial" for entry in self.path.iterdir()):
                raise GradalignError(f"folder {self.path} is not empty and not a run; choose another --out")

    def open(self, identity: Mapping[str, Any], provenance: Mapping[str, Any]) -> None:
        """Begin the run, or go on with it: refused, naming the first difference, if it was begun with another identity."""
        self.check()
        description = self.path / "run.json"
        if description.exists():
            require_same(read_description(self.path)["identity"], json.loads(json.dumps(identity)), self.path)
            return
        record = {"format": FORMAT, "identity": identity, "provenance": provenance}
        with _disk_faults(self.path):
            self._place(description, (json.dumps(record, indent=2) + "\n").encode())

    def finished(self) -> set[int]:
        """Numbers of the parts whose marker stands and whose files match it."""
        return {part for part, problem in checked_parts(self.path).items() if problem is None}

    def write(self, part: int, rows: Rows) -> None:
        """Write every table of a part, then its marker. An interrupt waits until the part stands."""
        with _disk_faults(self.path), _interrupts_deferred():
            marker = _marker_path(self.path, part)
            marker.unlink(missing_ok=True)
            sums = {}
            for table in TABLES:
                content = _parquet(table, rows[table])
                self._place(part_path(self.path, table, part), content)
                sums[table] = {"rows": len(rows[table]), "sha256": hashlib.sha256(content).hexdigest()}
            self._place(marker, json.dumps(sums).encode())

    def _place(self, target: Path, content: bytes) -> None:
        """Write beside the place, flush to disk, rename into it."""
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path / ".partial" / f"{target.parent.name}-{target.name}"
        partial.parent.mkdir(exist_ok=True)
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
        _flush_folder(target.parent)


def read_description(path: Path) -> dict[str, Any]:
    """run.json of a run folder."""
    file = path / "run.json"
    if not os.path.isfile(file):
        raise GradalignError(f"{path} is not a run: it has no run.json; give the folder that `gradalign score` wrote")
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        if not (isinstance(record["identity"], dict) and isinstance(record["provenance"], dict)):
            raise TypeError("no identity or provenance")
        if record["format"] != FORMAT:
            raise GradalignError(
                f"run {path} has format {record['format']}, this version reads {FORMAT}; install the version that wrote it"
            )
        return record
    except (ValueError, KeyError, TypeError) as error:
        raise GradalignError(f"{file} is damaged ({error}); score again into another folder") from error


def require_same(old: Mapping[str, Any], new: Mapping[str, Any], path: Path) -> None:
    """Refuse to go on with a run under another configuration."""
    for name in sorted({*old, *new}):
        if old.get(name) != new.get(name):
            raise GradalignError(
                f"run {path} was begun with {name}={old.get(name)!r}, not {new.get(name)!r}; choose another --out or the old setting"
            )


def checked_parts(path: Path) -> dict[int, str | None]:
    """Every part with a marker, and what is wrong with it (None if nothing is)."""
    markers = sorted((path / "finished").glob("part-[0-9][0-9][0-9][0-9][0-9]*.json"))
    return {int(marker.stem.removeprefix("part-")): _problem(path, marker) for marker in markers}


def part_path(path: Path, table: str, part: int) -> Path:
    return path / table / f"part-{part:05d}.parquet"


def _marker_path(path: Path, part: int) -> Path:
    return path / "finished" / f"part-{part:05d}.json"


def _problem(path: Path, marker: Path) -> str | None:
    try:
        sums = json.loads(marker.read_text(encoding="utf-8"))
        for table in TABLES:
            file = path / table / f"{marker.stem}.parquet"
            if hashlib.sha256(file.read_bytes()).hexdigest() != sums[table]["sha256"]:
                return f"{table}/{file.name} does not match its checksum"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{marker.stem}: {error}"
    return None


def _parquet(table: str, rows: list[dict[str, Any]]) -> bytes:
    schema = arrow_schema(table)
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), sink, compression="zstd")
    return sink.getvalue().to_pybytes()


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _disk_faults(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise GradalignError(
                f"the disk of {path} is full; free some space and run the same command again to go on"
            ) from error
        raise GradalignError(f"cannot write to {path}: {error.strerror or error}; choose another --out") from error


@contextmanager
def _interrupts_deferred() -> Iterator[None]:
    """Hold back Ctrl-C until the block ends (in the main thread, where Python delivers it)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: caught.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if caught:
        raise KeyboardInterrupt
