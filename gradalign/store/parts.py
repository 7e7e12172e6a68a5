"""What stands in a run folder: its description, its parts with what their markers say of them, and what the run ended with."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gradalign.store.damage import Known, parsed, problem_of_description, problem_of_marker, problem_of_outcome
from gradalign.store.places import Place, at_once, is_file
from gradalign.store.schema import TABLES
from gradalign.types import GradalignError

FORMAT = 8
_TABLE = re.compile(r"part-(\d{5,9})(?:-\d+)?\.parquet", re.ASCII)
_MARKER = re.compile(r"part-(\d{5,9})\.json", re.ASCII)


def read_description(path: Place) -> dict[str, Any]:
    """run.json of a run folder."""
    file = path / "run.json"
    with reading(path):
        there = is_file(file)
    if not there:
        raise GradalignError(f"{path} is not a run: it has no run.json; give the folder that `gradalign score` wrote")
    try:
        record = parsed(file)
    except (OSError, ValueError) as error:
        raise GradalignError(f"{file} is damaged ({error}); score again into another folder") from error
    problem = problem_of_description(record)
    if problem is not None:
        raise GradalignError(f"{file} is damaged ({problem}); score again into another folder")
    if record["format"] != FORMAT:
        raise GradalignError(
            f"run {path} has format {record['format']}, this version reads {FORMAT}; install the version that wrote it"
        )
    return record | {key: Known(file, record[key]) for key in ("identity", "provenance")}


def checked_parts(path: Place) -> dict[int, str | None]:
    """Every part with a marker, and what is wrong with it (None if nothing is)."""
    markers = sorted((path / "finished").glob("part-*.json"))
    numbered = {int(found[1]): marker for marker in markers if (found := _MARKER.fullmatch(marker.name))}
    return at_once(path, lambda part: _problem(path, numbered[part]), numbered)


def read_marker(path: Place, part: int) -> dict[str, Any]:
    """The marker of a part: generation, note, and rows and checksum of each table."""
    return parsed(marker_path(path, part))


def read_outcome(path: Place) -> dict[str, Any]:
    """outcome.json of a run, empty where it has none, or a damaged one."""
    try:
        found = parsed(path / "outcome.json")
    except (OSError, ValueError):
        return {}
    return Known(path / "outcome.json", found) if problem_of_outcome(found) is None else {}


def part_path(path: Place, table: str, part: int) -> Place:
    """Where a table of a finished part lies."""
    return table_file(path, table, part, read_marker(path, part)["generation"])


def table_file(path: Place, table: str, part: int, generation: int) -> Place:
    """Where a table of a part lies that was written for the `generation`-th time."""
    return path / table / (f"part-{part:05d}.parquet" if generation == 1 else f"part-{part:05d}-{generation}.parquet")


def part_of(name: str) -> int | None:
    """The part that a table's file of this name belongs to; None for a file of another kind."""
    found = _TABLE.fullmatch(name)
    return int(found[1]) if found else None


def standing_generation(path: Place, part: int) -> int:
    """Generation of the part that stands, 0 if none does (or its marker cannot be read)."""
    try:
        return int(read_marker(path, part)["generation"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def marker_path(path: Place, part: int) -> Place:
    """Where the marker of a finished part lies."""
    return path / "finished" / f"part-{part:05d}.json"


def _problem(path: Place, marker: Place) -> str | None:
    """What is wrong with a part. A writer may put another generation in its place meanwhile: then that one is looked at."""
    while True:
        before = _content(marker)
        problem = _problem_now(path, marker)
        if problem is None or _content(marker) == before:
            return problem


def _content(marker: Place) -> bytes:
    try:
        return marker.read_bytes()
    except OSError:
        return b""


def _problem_now(path: Place, marker: Place) -> str | None:
    try:
        part = int(marker.stem.removeprefix("part-"))
        found = parsed(marker)
        if found.pop("sha256") != checksum(found):
            return f"finished/{marker.name} does not match its checksum"
        problem = problem_of_marker(found, TABLES)
        if problem is not None:
            return f"finished/{marker.name}: {problem}"
        for table in TABLES:
            file = table_file(path, table, part, found["generation"])
            if hashlib.sha256(file.read_bytes()).hexdigest() != found["tables"][table]["sha256"]:
                return f"{table}/{file.name} does not match its checksum"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{marker.stem}: {error}"
    return None


def checksum(marker: Mapping[str, Any]) -> str:
    """What a marker is known to be whole by: a bit that turns in it may leave it a marker."""
    return hashlib.sha256(json.dumps(marker, sort_keys=True).encode()).hexdigest()


@contextmanager
def reading(path: Place) -> Iterator[None]:
    """An object store that cannot be reached, in a line; its package raises whatever it likes."""
    try:
        yield
    except GradalignError:
        raise
    except Exception as error:
        if isinstance(path, Path):
            raise
        said = " ".join(str(error).split())[:200]
        raise GradalignError(f"{path} cannot be read: {said}; check the address, the rights and the connection") from error
