"""First steps of a run's configurations, kept beside its parts: one file, whole at any time, that grows by a configuration at a time."""

# pandas types its results too widely for these rules.
# pyright: reportArgumentType=false, reportReturnType=false, reportOperatorIssue=false

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from gradalign.store.places import Place, is_file, place_of, read_parquet, write_whole
from gradalign.store.schema import Column

FIRST_STEPS = (
    Column("question", pa.string(), "", "the question whose success is asked for; its steps are those of the other half of the questions"),
    Column("teacher", pa.string(), "", "teacher as the user wrote it"),
    Column("objective", pa.string(), "", "objective as the user wrote it"),
    Column("questions", pa.string(), "", "how questions are weighted in training: uniform, or as a configuration wrote it"),
    Column("tokens", pa.string(), "", "how tokens are weighted: all alike, or as a configuration wrote it"),
    Column(
        "adam",
        pa.float64(),
        "success per unit of learning rate",
        "derivative of success along Adam's expected first step; missing where questions or rollouts are too few",
    ),
    Column("plain", pa.float64(), "success per unit of learning rate", "derivative of success along the mean gradient itself"),
    Column(
        "norm2", pa.float64(), "",
        "squared length of that mean gradient, without what the spread of batches adds to it (may be negative)",
    ),
    Column("rollouts", pa.int64(), "rollouts", "base rollouts of each question that were used, at most"),
    Column("batch", pa.int64(), "rollouts", "rollouts of one step of the optimiser"),
)  # fmt: skip
_SCHEMA = pa.schema([pa.field(c.name, c.type, metadata={"unit": c.unit, "meaning": c.meaning}) for c in FIRST_STEPS])
Key = tuple[str, str, str, str]


class FirstSteps:
    """Rows of `FIRST_STEPS` by teacher, objective and weightings, made with so many rollouts a question and an optimiser's batch."""

    KEYS = ("teacher", "objective", "questions", "tokens")

    def __init__(self, run: Place | str, rollouts: int, batch: int):
        self.root = place_of(run)
        self.made = {"rollouts": rollouts, "batch": batch}

    def frame(self) -> pd.DataFrame:
        """All rows that were made so."""
        frame = read_first_steps(self.root)
        return frame[(frame[list(self.made)] == pd.Series(self.made)).all(axis=1)]

    def known(self, questions: Collection[str]) -> set[Key]:
        """The keys that have rows for all these questions; in a run that has grown since they have them no more."""
        return {key for key, rows in self.frame().groupby(list(self.KEYS)) if {*questions} <= {*rows["question"]}}

    def add(self, key: Key, rows: Iterable[Mapping[str, Any]]) -> None:
        """Keep the rows of a key in place of those it had."""
        old = read_first_steps(self.root)
        old = old[~(old[list(self.KEYS)] == list(key)).all(axis=1)]
        new = pd.DataFrame([dict(zip(self.KEYS, key, strict=True)) | self.made | row for row in rows])
        table = pa.concat_tables(
            [pa.Table.from_pandas(each, _SCHEMA, preserve_index=False) for each in (old, new) if len(each)]
        )
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        write_whole(self.root, _file(self.root), sink.getvalue().to_pybytes())


def read_first_steps(run: Place | str) -> pd.DataFrame:
    """What `gradalign foretell` found for a run; empty if it was never asked."""
    file = _file(place_of(run))
    return (read_parquet(file, schema=_SCHEMA) if is_file(file) else _SCHEMA.empty_table()).to_pandas()


def _file(root: Place) -> Place:
    return root / "first_steps.parquet"
