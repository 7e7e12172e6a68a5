"""The run folder: its schema as data, parts written and read. Knows no torch, no model and no formula."""

from gradalign.store.folder import RunFolder
from gradalign.store.run import Run, load_run
from gradalign.store.schema import TABLES, Column, arrow_schema

__all__ = ["TABLES", "Column", "Run", "RunFolder", "arrow_schema", "load_run"]
