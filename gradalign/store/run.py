"""A run read back: pandas frames of its finished parts."""

from collections.abc import Collection
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from gradalign.sheets import Head, Sheet
from gradalign.store.parts import checked_parts, part_path, read_description, read_outcome
from gradalign.store.places import Place, at_once, place_of, read_parquet
from gradalign.store.schema import TABLES, arrow_schema
from gradalign.types import GradalignError

_PARTS = 32  # of a piece: 100 MB of steps, with 8 questions a part and 10 pairs of teacher and objective


class Run:
    """A run folder as pandas frames: `run.frame("alignment")`, or `run.alignment`, one attribute for each table."""

    def __init__(self, path: Place, description: dict[str, Any], parts: list[int]):
        self.path = path
        self.description = description
        self.parts = parts

    @property
    def identity(self) -> dict[str, Any]:
        """The configuration and the fingerprints of models and data."""
        return self.description["identity"]

    @property
    def outcome(self) -> dict[str, Any]:
        """What the run ended with, such as a decision; empty if nothing was asked of it but its budget."""
        return read_outcome(self.path)

    def table(self, name: str, columns: list[str] | None = None, where: pc.Expression | None = None) -> pa.Table:
        """A table of the run over all finished parts, as Arrow; with `where` only the rows for which it holds."""
        if name not in TABLES:
            raise GradalignError(f"a run has no table {name!r}; choose from {', '.join(TABLES)}")
        names = arrow_schema(name).names if columns is None else columns
        if not self.parts:
            return arrow_schema(name).empty_table().select(names)
        files = at_once(self.path, lambda part: part_path(self.path, name, part), self.parts).values()
        return read_parquet(*files, columns=columns, schema=arrow_schema(name), filters=where).select(names)

    def frame(self, name: str, columns: list[str] | None = None, where: pc.Expression | None = None) -> pd.DataFrame:
        """A table of the run as a pandas frame; `gradalign.store.TABLES` says what its columns mean."""
        return self.table(name, columns, where).to_pandas()

    def pieces(self) -> list["Run"]:
        """The run in pieces of some parts each, for what reads them one after the other; a question lies in one of them, whole."""
        starts = range(0, len(self.parts), _PARTS)
        return [Run(self.path, self.description, self.parts[start : start + _PARTS]) for start in starts]

    def holding(self, questions: Collection[str]) -> "Run":
        """The same run with only the parts that hold any of these questions: their rows, and those of their neighbours, are soon read."""
        where = pc.field("question").isin(list(questions))

        def holds(part: int) -> bool:
            return read_parquet(part_path(self.path, "questions", part), columns=["question"], filters=where).num_rows > 0

        found = at_once(self.path, holds, self.parts)
        return Run(self.path, self.description, [part for part, held in found.items() if held])

    def __getattr__(self, name: str) -> pd.DataFrame:
        if name in TABLES:
            return self.frame(name)
        raise AttributeError(name)

    def _repr_html_(self) -> str:
        return self.summary().html()

    def summary(self) -> Sheet:
        """What the run is and how far it went."""
        questions = self.frame("questions", ["question", "rollouts", "targeted_rollouts", "sampled_tokens", "pass_rate"])
        rates = questions["pass_rate"].dropna().to_numpy(dtype=float)
        planned = self.description["provenance"].get("questions", len(questions))
        rows = (
            ("student", str(self.identity.get("student"))),
            ("questions", f"{self.identity.get('questions')}, {len(questions):,} of {planned:,} scored"),
            ("teachers", ", ".join(self.identity.get("teachers", ()))),
            ("objectives", ", ".join(self.identity.get("objectives", ()))),
            ("student's pass rate", f"{rates.mean():.2f}" if len(rates) else "-"),
            ("rollouts", f"{questions['rollouts'].sum():,} base, {questions['targeted_rollouts'].sum():,} targeted"),
            ("tokens sampled", f"{questions['sampled_tokens'].sum():,}"),
            ("folder", str(self.path)),
        )
        return Sheet("Run", (Head("", number=False), Head("", number=False)), rows)

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}: {len(self.parts)} parts, student {self.identity.get('student')})"


def load_run(path: str | Place) -> Run:
    """Open a run for reading, from a folder or an address such as `s3://bucket/run`.

    Only finished parts are read, and a damaged one is refused by name.
    """
    folder = place_of(path)
    description = read_description(folder)
    parts = checked_parts(folder)
    for problem in parts.values():
        if problem is not None:
            raise GradalignError(
                f"run {folder} is damaged: {problem}; run its `gradalign score` command again to redo that part"
            )
    if not parts:
        raise GradalignError(f"run {folder} has no finished part yet; let its `gradalign score` go on")
    return Run(folder, description, sorted(parts))
