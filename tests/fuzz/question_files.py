"""Targets over question files of every format, over the columns that hold what, and over the names of sets."""

import io
import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

from fuzz.making import changed, decoded, deep, mutated, objects, values, words, written
from fuzz.target import Target
from gradalign.pipeline.pass_rates import parse_filter
from gradalign.questions import load_questions
from gradalign.questions.columns import NAMES, parse_columns
from gradalign.questions.sets import SETS, hub_source

# rows as the well-known sets have them
_ROWS: list[dict[str, Any]] = [
    {"question": "is a cat an animal", "answer": True, "passage": "Cats are animals."},
    {"question": "Which is even?", "subject": "numbers", "choices": ["1", "2", "3", "5"], "answer": 1},
    {"ID": "2024-I-1", "Problem": "Find x.", "Answer": 204, "Solution": "so \\boxed{204}"},
    {"question": "Two and two?", "answer": "2+2=<<2+2=4>>4\n#### 4"},
    {"problem": "Half?", "solution": "It is $\\boxed{\\frac{1}{2}}$.", "answer": "\\frac{1}{2}", "level": 1},
    {"prompt": [{"role": "user", "content": "Two and two?"}], "solution": "4"},
    {
        "Question": "Which?",
        "Correct Answer": "a",
        "Incorrect Answer 1": "b",
        "Incorrect Answer 2": "c",
        "Incorrect Answer 3": "d",
    },
    {"question": "Like?", "answer": "a+b", "kind": "regex"},
]
_FIELDS = {key: [row[key] for row in _ROWS if key in row] for key in {key for row in _ROWS for key in row}}


def _read(name: str) -> Callable[[bytes, Path], None]:
    """The case as a file of that name, read as a question set."""

    def read(case: bytes, folder: Path) -> None:
        (folder / name).write_bytes(case)
        load_questions(str(folder / name))

    return read


def _csv(rows: Sequence[dict[str, Any]], separator: str = ",") -> bytes:
    names = list(rows[0])
    lines = [separator.join(names), *(separator.join(json.dumps(str(row.get(name, ""))) for name in names) for row in rows)]
    return "\n".join(lines).encode()


@cache
def _tables() -> tuple[pa.Table, ...]:
    return tuple(pa.Table.from_pylist([row, row]) for row in _ROWS)


@cache
def _parquet() -> list[bytes]:
    found = []
    for table in _tables():
        sink = io.BytesIO()
        pq.write_table(table, sink)
        found.append(sink.getvalue())
    return found


@cache
def _arrow() -> list[bytes]:
    found = []
    for table in _tables():
        sink = io.BytesIO()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        found.append(sink.getvalue())
    return found


def _saved(case: bytes, folder: Path) -> None:
    """A folder that `datasets` saved, its description the case."""
    (folder / "train").mkdir()
    (folder / "train" / "data-00000-of-00001.arrow").write_bytes(_arrow()[3])
    (folder / "train" / "state.json").write_bytes(case)
    (folder / "dataset_dict.json").write_bytes(case if case.startswith(b'{"splits"') else b'{"splits": ["train"]}')
    load_questions(str(folder))


def _mapped(case: bytes, folder: Path) -> None:
    """What the user says of columns, and a row read so."""
    texts = decoded(case).split("\n")
    columns = parse_columns(texts)
    (folder / "q.jsonl").write_bytes(written(_ROWS[2]))
    load_questions(str(folder / "q.jsonl"), columns=columns)


def _lines(rows: Sequence[Any]) -> bytes:
    return b"\n".join(map(written, rows))


_STATE = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_fingerprint": "x", "_split": "train"}
_CSV = [_csv([row, row]) for row in _ROWS]
_rows = st.lists(objects(_FIELDS), min_size=1, max_size=3)
TARGETS = [
    Target("rows of sets", st.one_of(changed(_ROWS), _rows.map(_lines)), _read("q.jsonl"), 8, list(map(written, _ROWS))),
    Target(
        "questions json",
        st.one_of(changed([_ROWS, {"data": _ROWS}]), mutated([written(_ROWS)]), values().map(written), deep()),
        _read("q.json"),
        5,
        [written(_ROWS)],
    ),
    Target(
        "questions csv",
        st.one_of(mutated(_CSV), words(",", '"', "\n", "question", "answer", "4", "\r", "choices")),
        _read("q.csv"),
        5,
        _CSV,
    ),
    Target("questions tsv", mutated([_csv([row], "\t") for row in _ROWS]), _read("q.tsv"), 2, [_csv(_ROWS[:1], "\t")]),
    Target("questions parquet", st.deferred(lambda: mutated(_parquet(), 4)), _read("q.parquet"), 3, guided=False),
    Target("questions arrow", st.deferred(lambda: mutated(_arrow(), 4)), _read("q.arrow"), 3, guided=False),
    Target(
        "saved data set",
        st.one_of(changed([_STATE, {"splits": ["train"]}]), mutated([written(_STATE)]), deep()),
        _saved,
        3,
        [written(_STATE)],
        guided=False,
    ),
    Target("columns", words(*NAMES, "=", ",", "Problem", "Answer", "\n"), _mapped, 4, [b"question=Problem,answer=Answer"]),
    Target(
        "filter",
        words("pass_rate", ":", "0.1", "-", "0.9", "1"),
        lambda case, folder: parse_filter(decoded(case)),
        3,
        [b"pass_rate:0.1-0.9"],
    ),
    Target(
        "name of a set",
        words(*SETS, ":", ",", "hf://", "a/b", "2024"),
        lambda case, folder: hub_source(decoded(case)),
        3,
        [b"mmlu:anatomy"],
    ),
]
