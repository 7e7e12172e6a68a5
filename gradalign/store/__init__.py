"""The run folder: its schema as data, parts written and read. Knows no torch, no model and no formula."""

from gradalign.store.first_steps import FIRST_STEPS, FirstSteps, read_first_steps
from gradalign.store.folder import RunFolder
from gradalign.store.log import RunLog, session
from gradalign.store.places import Place, place_of
from gradalign.store.run import Run, load_run
from gradalign.store.schema import TABLES, Column, arrow_schema, arrow_table, ragged
from gradalign.store.status import Status, status

__all__ = [
    "FIRST_STEPS",
    "TABLES",
    "Column",
    "FirstSteps",
    "Place",
    "Run",
    "RunFolder",
    "RunLog",
    "Status",
    "arrow_schema",
    "arrow_table",
    "load_run",
    "place_of",
    "ragged",
    "read_first_steps",
    "session",
    "status",
]
