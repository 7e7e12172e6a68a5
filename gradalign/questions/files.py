"""Records from files of a user's own: JSON lines, JSON, CSV, TSV, Parquet, and folders that `datasets` saved.

A record is a mapping from column to value, with the place it stands at in words (`line 3`, `row 3`). Files are read as they are asked
for: of JSON lines, CSV, Parquet and Arrow no more than the records taken and the block they lie in; of JSON the whole. Knows no question.
"""

import csv
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gradalign.questions.layout import SUFFIXES, choose, choose_split, file_layout
from gradalign.types import GradalignError

Record = tuple[str, Any]
_DEPTH = 3  # folders, as in CONFIG/SPLIT/0000.parquet, and one around them
_KNOWN = f"give a file that ends in {', '.join(SUFFIXES)}, or a folder that datasets' save_to_disk wrote"


def files_of(path: Path, split: str | None, source: str) -> Sequence[Path]:
    """The files to read for a path: itself, or those of one split of a folder."""
    if os.path.isfile(path):
        if split is not None:
            raise GradalignError(f"{source} is one file and has no splits; leave out --split {split}")
        return [path]
    if (path / "dataset_dict.json").is_file():
        splits = _listed(path / "dataset_dict.json", "splits", source)
        return files_of(path / choose_split(splits, split, source), None, source)
    if (path / "state.json").is_file():
        if split is not None:
            raise GradalignError(f"{source} is one split and has no others; leave out --split {split}")
        return [path / name for name in _listed(path / "state.json", "_data_files", source)]
    layout = file_layout(_within(path))
    if not layout:
        raise GradalignError(f"folder {source} holds no questions; {_KNOWN}")
    return [path / file for file in choose(layout, None, split, source, "give the folder or the file of one")]


def read_records(path: Path, source: str) -> Iterator[Record]:
    """The records of one file, in its order; a fault names the file, the place and the mend."""
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise GradalignError(f"{source} is of no kind that is read; {_KNOWN}")
    try:
        yield from reader(path, source)
    except OSError as error:
        raise GradalignError(f"{source} cannot be read ({error.strerror or error}); check the file") from error


def _within(folder: Path) -> Iterator[str]:
    """Files of a folder that lie no deeper than those of a data set from the hub, by their paths in it."""
    for place, folders, names in os.walk(folder):
        inside = Path(place).relative_to(folder)
        if len(inside.parts) >= _DEPTH:
            folders.clear()
        yield from ((inside / name).as_posix() for name in names)


def _listed(file: Path, key: str, source: str) -> list[str]:
    """Names that a folder's description lists: each of something right in that folder, so that none leads elsewhere."""
    try:
        listed = json.loads(file.read_text(encoding="utf-8"))[key]
        names = [entry["filename"] if isinstance(entry, Mapping) else entry for entry in listed]
        if not names or any(name in ("", ".", "..") or "\0" in name or Path(name).name != name for name in names):
            raise ValueError(f"{key} lists no names of this folder")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise GradalignError(f"{source} is damaged: {file.name} cannot be used ({error!r}); save the data set again") from error
    return names


def _json_lines(path: Path, source: str) -> Iterator[Record]:
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            line = _decoded(raw, f"{source}, line {number}").strip()
            if line:
                yield f"line {number}", _json_value(line, f"{source}, line {number}")


def _json(path: Path, source: str) -> Iterator[Record]:
    """A list of objects, an object with one list of them, or (as many sets have it under this name) an object a line."""
    with path.open("rb") as file:
        first = next((line for line in file if line.strip()), b"")
        more = any(line.strip() for line in file)
    if more and _is_object(first):
        yield from _json_lines(path, source)
        return
    found = _json_value(_decoded(path.read_bytes(), source), source)
    if isinstance(found, dict):
        lists = [value for value in found.values() if isinstance(value, list) and all(isinstance(one, dict) for one in value)]
        if len(lists) != 1:
            raise GradalignError(
                f"{source} is an object with {len(lists)} lists of objects; give a list of objects, or an object with one list"
            )
        found = lists[0]
    if not isinstance(found, list):
        raise GradalignError(f"{source} is neither a list nor an object with a list; give a list of objects")
    for number, record in enumerate(found, start=1):
        yield f"record {number}", record


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line.decode("utf-8-sig")), dict)
    except (ValueError, RecursionError):
        return False


def _json_value(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise GradalignError(f"{where}: not JSON ({error}); a line is a JSON object with a question and an answer") from error


def _decoded(raw: bytes, where: str) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise GradalignError(f"{where}: not UTF-8 ({error.reason} at byte {error.start}); save the file in UTF-8") from error


def _comma_separated(path: Path, source: str) -> Iterator[Record]:
    """Rows under a header; an empty cell is a missing one."""
    with path.open("rb") as file:
        lines = (_decoded(raw, f"{source}, line {number}") for number, raw in enumerate(file, start=1))
        rows = csv.reader(lines, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
        line = 1
        try:
            header = next(rows, [])
            if len({*header}) < len(header):
                raise GradalignError(f"{source}, line 1: two columns have the same name ({', '.join(header)}); rename one")
            line = rows.line_num + 1
            for row in rows:
                where, line = f"line {line}", rows.line_num + 1
                if row:
                    yield where, _cells(header, row, f"{source}, {where}")
        except csv.Error as error:
            raise GradalignError(f"{source}, line {line}: {error}; mend the quotes of this row") from error


def _cells(header: list[str], row: list[str], where: str) -> dict[str, str | None]:
    if len(row) > len(header):
        raise GradalignError(f"{where}: {len(row)} cells under {len(header)} columns; quote cells that hold the separator")
    return dict.fromkeys(header) | {name: cell or None for name, cell in zip(header, row, strict=False)}


def _columnar(path: Path, source: str) -> Iterator[Record]:
    from gradalign.questions.columnar import rows

    for number, row in enumerate(rows(path, source), start=1):
        yield f"row {number}", row


_READERS = {
    ".jsonl": _json_lines, ".json": _json, ".csv": _comma_separated, ".tsv": _comma_separated, ".parquet": _columnar, ".arrow": _columnar,
}  # fmt: skip
