"""Tables as files, by their suffix."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from gradalign.types import GradalignError


def check_suffix(path: Path) -> None:
    """Refuse a file of a kind that is not written, before any work is done for it."""
    if path.suffix not in _WRITERS:
        raise GradalignError(f"cannot write {path}: give a file that ends in {', '.join(_WRITERS)}")


def write_frame(frame: pd.DataFrame, path: Path) -> None:
    """Write a table as the suffix of `path` says."""
    try:
        _WRITERS[path.suffix](frame, path)
    except OSError as error:
        raise GradalignError(f"cannot write {path}: {error.strerror or error}; choose another --out") from error


def _markdown(frame: pd.DataFrame, path: Path) -> None:
    cells = frame.map(lambda value: f"{value:.4g}" if isinstance(value, float) else str(value).replace("|", "\\|"))
    lines = [" | ".join(row) for row in ([*map(str, frame.columns)], ["---"] * frame.shape[1], *cells.to_numpy().tolist())]
    path.write_text("".join(f"| {line} |\n" for line in lines), encoding="utf-8")


_WRITERS: dict[str, Callable[[pd.DataFrame, Path], object]] = {
    ".csv": lambda frame, path: frame.to_csv(path, index=False),
    ".json": lambda frame, path: frame.to_json(path, orient="records", indent=1),
    ".parquet": lambda frame, path: frame.to_parquet(path, index=False),
    ".md": _markdown,
    ".tex": lambda frame, path: frame.to_latex(path, index=False, escape=True, float_format="%.4g"),
}
