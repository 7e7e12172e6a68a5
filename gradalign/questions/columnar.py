"""Rows of Parquet files and of Arrow streams as `datasets` saves them, block by block; class labels by their names. Knows no question."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gradalign.types import GradalignError

_ROWS = 256


def rows(path: Path, source: str) -> Iterator[dict[str, Any]]:
    """The rows of a file in its order, as plain Python values; no more than a block of it is held."""
    try:
        if path.suffix.lower() == ".arrow":
            with pa.memory_map(str(path)) as mapped, pa.ipc.open_stream(mapped) as stream:
                yield from _values(iter(stream), stream.schema)
        else:
            with pq.ParquetFile(path) as file:
                yield from _values(file.iter_batches(batch_size=_ROWS), file.schema_arrow)
    except (pa.ArrowException, OSError, ValueError, OverflowError, RecursionError) as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise GradalignError(f"{source} is damaged or no {path.suffix[1:]} file ({said}); get it again") from error


def _values(batches: Iterator[pa.RecordBatch], schema: pa.Schema) -> Iterator[dict[str, Any]]:
    labels = _class_labels(schema)
    for batch in batches:
        batch.validate(full=True)  # an Arrow stream's offsets are taken as they stand, and may lead out of the file
        for row in batch.to_pylist():
            yield row | {name: _label(row[name], names) for name, names in labels.items() if name in row}


def _label(value: Any, names: list[str]) -> Any:
    """The name of a class; a number that no class has, as the -1 of hidden labels, is missing."""
    return names[value] if isinstance(value, int) and 0 <= value < len(names) else None


def _class_labels(schema: pa.Schema) -> dict[str, list[str]]:
    """Names of the classes by column, as `datasets` notes them in a schema."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        found = {name: feature["names"] for name, feature in features.items() if _is_label(feature)}
        return {name: names for name, names in found.items() if all(isinstance(label, str) for label in names)}
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        return {}


def _is_label(feature: Any) -> bool:
    return isinstance(feature, Mapping) and feature.get("_type") == "ClassLabel" and isinstance(feature.get("names"), list)
