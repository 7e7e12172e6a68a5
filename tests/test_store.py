"""The run folder: whole parts or none, damage seen, other configurations refused, readable without this package."""

import errno
import json
import os
import signal
from pathlib import Path

import duckdb
import pandas as pd
import pyarrow as pa
import pytest

from gradalign.store import TABLES, RunFolder, arrow_schema, load_run
from gradalign.store.parts import checked_parts
from gradalign.types import GradalignError

SAMPLES = {pa.string(): "x", pa.int64(): 1, pa.float64(): 0.5, pa.bool_(): True, pa.list_(pa.string()): ["x"]}


def rows(part: int) -> dict[str, list[dict]]:
    def cell(column):
        return f"q{part}" if column.name == "question" else SAMPLES.get(column.type, [1])

    return {table: [{column.name: cell(column) for column in columns}] for table, columns in TABLES.items()}


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    run = RunFolder(tmp_path / "run")
    run.open({"seed": 0, "student": "s"}, {"versions": {}})
    run.write(0, rows(0))
    run.write(1, rows(1))
    return run


def test_round_trip_and_schema(folder):
    run = load_run(folder.path)
    assert {*folder.finished()} == {0, 1}
    for table in TABLES:
        assert run.table(table).schema.equals(arrow_schema(table))
        assert len(run.frame(table)) == 2
    assert run.alignment.question.tolist() == ["q0", "q1"]


def test_files_open_without_this_package(folder):
    pattern = f"{folder.path}/nodes/*.parquet"
    assert duckdb.connect().execute(f"select count(*), min(question) from '{pattern}'").fetchall() == [(2, "q0")]
    assert len(pd.read_parquet(folder.path / "nodes")) == 2


def test_every_column_has_a_meaning():
    for columns in TABLES.values():
        assert len({column.name for column in columns}) == len(columns)
        assert all(column.meaning for column in columns)


def test_another_configuration_is_refused_by_name(folder):
    with pytest.raises(GradalignError, match="seed=0, not 1"):
        folder.open({"seed": 1, "student": "s"}, {})
    folder.open({"seed": 0, "student": "s"}, {"versions": {"other": 1}})


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(GradalignError, match="not a run"):
        RunFolder(tmp_path).open({}, {})
    with pytest.raises(GradalignError, match="not a run"):
        load_run(tmp_path)


@pytest.mark.parametrize("damage", ["cut", "flip", "remove"])
def test_a_damaged_part_is_seen_and_redone(folder, damage):
    file = folder.path / "nodes" / "part-00001.parquet"
    content = file.read_bytes()
    if damage == "remove":
        file.unlink()
    else:
        file.write_bytes(content[:-10] if damage == "cut" else content[:50] + bytes([content[50] ^ 1]) + content[51:])
    with pytest.raises(GradalignError, match=r"part-00001"):
        load_run(folder.path)
    assert {*folder.finished()} == {0}
    folder.write(1, rows(1))
    assert len(load_run(folder.path).nodes) == 2


def test_a_part_without_its_marker_is_not_read(folder):
    (folder.path / "finished" / "part-00001.json").unlink()
    assert len(load_run(folder.path).nodes) == 1


def test_a_full_disk_says_so_and_loses_nothing(folder, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(GradalignError, match="full"):
            folder.write(2, rows(2))
    assert {*folder.finished()} == {0, 1}
    folder.write(2, rows(2))
    assert len(load_run(folder.path).nodes) == 3


def test_an_interrupt_waits_until_the_part_stands(folder, monkeypatch):
    real, calls = os.fsync, []

    def interrupting(descriptor):
        if not calls:
            signal.raise_signal(signal.SIGINT)
        calls.append(descriptor)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", interrupting)
    with pytest.raises(KeyboardInterrupt):
        folder.write(2, rows(2))
    monkeypatch.undo()
    assert {*folder.finished()} == {0, 1, 2}


def test_damaged_description_is_one_line(folder):
    (folder.path / "run.json").write_text("{")
    with pytest.raises(GradalignError, match="damaged"):
        load_run(folder.path)


def test_a_turned_bit_anywhere_in_a_marker_is_seen(folder):
    marker = folder.path / "finished" / "part-00001.json"
    whole = marker.read_bytes()
    for at in range(len(whole)):
        for bit in (1, 4, 32):
            marker.write_bytes(whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :])
            seen = checked_parts(folder.path)[1] is not None
            assert seen or json.loads(marker.read_bytes()) == json.loads(whole), (at, bit)  # blanks may turn into other blanks
    marker.write_bytes(whole)
    assert checked_parts(folder.path)[1] is None


def files_of(folder: RunFolder, table: str) -> list[str]:
    return sorted(file.name for file in (folder.path / table).iterdir())


def test_a_part_whose_marker_cannot_be_read_leaves_nothing_behind(folder):
    folder.write(1, rows(1))
    assert files_of(folder, "nodes") == ["part-00000.parquet", "part-00001-2.parquet"]
    (folder.path / "nodes" / "part-copy.parquet").write_bytes(b"a user's")
    (folder.path / "finished" / "part-00001.json").write_text("{")
    assert {*folder.finished()} == {0}
    folder.write(1, rows(1))
    assert files_of(folder, "nodes") == ["part-00000.parquet", "part-00001.parquet", "part-copy.parquet"]
    assert {*folder.finished()} == {0, 1}


def test_folders_are_not_listed_once_for_each_part(folder, monkeypatch):
    """What a part costs to be written, and a run to be gone on with, is linear in parts: a listing has all of them in it."""
    listings = []
    glob = Path.glob

    def counted(self, pattern):
        listings.append(self.name)
        return glob(self, pattern)

    monkeypatch.setattr(Path, "glob", counted)
    for part in range(2, 6):
        folder.write(part, rows(part))
    folder.write(2, rows(2))
    assert listings == []
    folder.finished()
    assert sorted(listings) == sorted(["finished", *TABLES])
