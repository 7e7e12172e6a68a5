"""The run folder: parts of whole questions, each written beside its place, flushed, then renamed; its marker comes last.

Killed at any moment, a run goes on where its last marker stands. A part whose files do not match the checksums in its
marker counts as unfinished. A part may be written again with more in it: under new file names, and until its marker is replaced
the old ones hold. Knows rows and files; nothing of models or of what the rows mean.
"""

import errno
import hashlib
import json
import signal
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gradalign.store.lock import lock_of
from gradalign.store.log import FOLDER as LOG
from gradalign.store.log import read_session, sessions
from gradalign.store.parts import (
    FORMAT,
    checked_parts,
    checksum,
    marker_path,
    part_of,
    part_path,
    read_description,
    read_marker,
    read_outcome,
    reading,
    standing_generation,
    table_file,
)
from gradalign.store.places import PARTIAL, Place, at_once, is_file, place_of, read_parquet, write_whole
from gradalign.store.schema import TABLES, arrow_schema
from gradalign.types import GradalignError

Rows = Mapping[str, list[dict[str, Any]] | pa.Table]
_OURS = {PARTIAL, ".lock", LOG, "lease.json"}


class RunFolder:
    """One run, open for writing parts; its place may be a folder or an address such as `s3://bucket/run`."""

    def __init__(self, path: str | Place):
        self.path = place_of(path)
        self.lock = lock_of(self.path)
        self.locked = False

    def check(self) -> None:
        """Refuse a place that cannot become a run, before any work is done for it."""
        with _disk_faults(self.path):
            if (self.path / "run.json").exists():
                read_description(self.path)
            elif self.path.exists() and any(entry.name not in _OURS for entry in self.path.iterdir()):
                raise GradalignError(f"folder {self.path} is not empty and not a run; choose another --out")
            elif not isinstance(self.path, Path):
                probe = self.path / f"probe-{uuid.uuid4().hex}"
                probe.write_bytes(b"")
                probe.unlink()
            elif not self.path.exists():
                self.path.mkdir(parents=True)
                self.path.rmdir()

    @contextmanager
    def held(self) -> Iterator["RunFolder"]:
        """Be the only writer: refused while another process is. A run that does not exist yet is held from `open` on."""
        try:
            if (self.path / "run.json").exists():
                self._hold()
            yield self
        finally:
            if self.locked:
                self.lock.release()
                self.locked = False

    def _hold(self) -> None:
        if self.locked:
            return
        if not self.lock.take():
            raise GradalignError(
                f"run {self.path} is being written by another process{_writer(self.path)}; wait until it ends "
                f"(gradalign status {self.path} tells how far it is), or choose another --out"
            )
        self.locked = True

    def require_held(self) -> None:
        """Stop where another process has taken the run over."""
        if self.lock.lost:
            raise GradalignError(f"another process has taken over run {self.path}; this one stops, and what it finished stays")

    def open(self, identity: Mapping[str, Any], provenance: Mapping[str, Any]) -> None:
        """Begin the run, or go on with it: refused, naming the first difference, if it was begun with another identity."""
        self.check()
        with _disk_faults(self.path):
            if isinstance(self.path, Path):
                self.path.mkdir(parents=True, exist_ok=True)
            self._hold()
            self._clear()
        description = self.path / "run.json"
        if description.exists():
            require_same(read_description(self.path)["identity"], json.loads(json.dumps(identity)), self.path)
            return
        record = {"format": FORMAT, "identity": identity, "provenance": provenance}
        with _disk_faults(self.path):
            self._place(description, (json.dumps(record, indent=2) + "\n").encode())

    def finished(self) -> dict[int, dict[str, Any]]:
        """What was noted with each part (`write`'s `note`) whose marker stands and whose files match it, by its number.

        Files that a killed run left beside such a part are removed.
        """
        with reading(self.path):
            sound = [part for part, problem in checked_parts(self.path).items() if problem is None]
        markers = at_once(self.path, lambda part: read_marker(self.path, part), sound)
        self._sweep({part: marker["generation"] for part, marker in markers.items()})
        return {part: marker["note"] for part, marker in markers.items()}

    def require_seen(self, part: int, worker: str) -> None:
        """A part that a worker wrote stands here too, some seconds later at most."""
        for _ in range(20):
            if is_file(marker_path(self.path, part)):
                return
            time.sleep(0.5)
        raise GradalignError(
            f"what {worker} wrote of run {self.path} is not seen here; give --out a folder that every worker sees, or an address"
        )

    def table(self, part: int, table: str, columns: Sequence[str] | None = None) -> pa.Table:
        """One table of a finished part, or some of its columns."""
        return read_parquet(part_path(self.path, table, part), columns=None if columns is None else list(columns))

    def rows(self, part: int, table: str, columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """The same row by row."""
        return self.table(part, table, columns).to_pylist()

    def write(self, part: int, rows: Rows, note: Mapping[str, Any] | None = None) -> None:
        """Write every table of a part (rows, or an Arrow table), then its marker with a `note`. An interrupt waits until the part stands.

        A part that stood before gives way only once the new one is whole.
        """
        self.require_held()
        with _disk_faults(self.path), _interrupts_deferred():
            before = standing_generation(self.path, part)
            damaged = not before and is_file(marker_path(self.path, part))
            generation = before + 1

            def written(table: str) -> dict[str, Any]:
                content = _parquet(table, rows[table])
                self._place(table_file(self.path, table, part, generation), content)
                return {"rows": len(rows[table]), "sha256": hashlib.sha256(content).hexdigest()}

            sums = at_once(self.path, written, TABLES)
            marker = {"generation": generation, "note": dict(note or {}), "tables": sums}
            self._place(marker_path(self.path, part), json.dumps(marker | {"sha256": checksum(marker)}).encode())
            if before:
                self._give_way(part, before)
            elif damaged:  # which generation it had is not known
                self._sweep({part: generation})

    def outcome(self) -> dict[str, Any]:
        """What `write_outcome` kept last."""
        return read_outcome(self.path)

    def write_outcome(self, outcome: Mapping[str, Any]) -> None:
        """Keep what a run ended with, such as a decision, in outcome.json."""
        with _disk_faults(self.path):
            self._place(self.path / "outcome.json", (json.dumps(outcome, indent=2) + "\n").encode())

    def _give_way(self, part: int, before: int) -> None:
        """Remove the files of the generation that a part had before."""
        for table in TABLES:
            table_file(self.path, table, part, before).unlink(missing_ok=True)

    def _sweep(self, standing: Mapping[int, int]) -> None:
        """Remove what other generations of parts left behind: `standing` has the one that stands of each part, by its number.

        Each folder is listed once, however many parts there are.
        """
        for table in TABLES:
            for file in (self.path / table).glob("part-*.parquet"):
                part = part_of(file.name)
                if part is None or part not in standing:
                    continue
                if file.name != table_file(self.path, table, part, standing[part]).name:
                    file.unlink(missing_ok=True)

    def _clear(self) -> None:
        """Remove what a killed writer had not finished writing."""
        partial = self.path / PARTIAL
        for file in partial.iterdir() if isinstance(partial, Path) and partial.exists() else ():
            file.unlink(missing_ok=True)

    def _place(self, target: Place, content: bytes) -> None:
        write_whole(self.path, target, content)


def require_same(old: Mapping[str, Any], new: Mapping[str, Any], path: Place) -> None:
    """Refuse to go on with a run under another configuration."""
    for name in sorted({*old, *new}):
        if old.get(name) != new.get(name):
            raise GradalignError(
                f"run {path} was begun with {name}={old.get(name)!r}, not {new.get(name)!r}; choose another --out or the old setting"
            )


def _parquet(table: str, rows: list[dict[str, Any]] | pa.Table) -> bytes:
    schema = arrow_schema(table)
    whole = pa.Table.from_pylist(rows, schema=schema) if isinstance(rows, list) else rows.select(schema.names).cast(schema)
    repeating, real = _leaves(table)
    sink = pa.BufferOutputStream()
    encodings: dict[str, Any] = {"use_dictionary": repeating, "use_byte_stream_split": real}
    pq.write_table(whole, sink, compression="zstd", **encodings)
    return sink.getvalue().to_pybytes()


@cache
def _leaves(table: str) -> tuple[list[str], list[str]]:
    """Paths of a table's columns in Parquet's terms: those whose values may repeat, and real numbers.

    A dictionary of real numbers would be written beside as many numbers of entries: twice the time, and a larger file.
    """
    found: tuple[list[str], list[str]] = ([], [])
    for field in arrow_schema(table):
        listed = pa.types.is_list(field.type)
        kind = field.type.value_type if listed else field.type
        found[pa.types.is_floating(kind)].append(f"{field.name}.list.element" if listed else field.name)
    return found


@contextmanager
def _disk_faults(path: Place) -> Iterator[None]:
    try:
        yield
    except GradalignError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise GradalignError(
                f"the disk of {path} is full; free some space and run the same command again to go on"
            ) from error
        raise GradalignError(f"cannot write to {path}: {error.strerror or error}; choose another --out") from error
    except Exception as error:
        if isinstance(path, Path):
            raise
        raise GradalignError(
            f"{path} cannot be written to: {' '.join(str(error).split())[:200]}; check the address and the rights"
        ) from error


def _writer(path: Place) -> str:
    """Who writes the run, as far as its log tells."""
    numbers = sessions(path)
    began = read_session(path, numbers[-1])[:1] if numbers else []
    return f" (process {began[0].get('pid')} on {began[0].get('host')}, since {began[0].get('time')})" if began else ""


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
