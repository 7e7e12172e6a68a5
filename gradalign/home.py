"""Paths as users write them. Knows the home folder and opens nothing."""

from pathlib import Path


def expanded(path: str | Path) -> Path:
    """The path with `~` put in; `~somebody` of nobody's, or what no file can be named, stays as it is: a file that does not exist."""
    try:
        return Path(path).expanduser()
    except (RuntimeError, ValueError):
        return Path(path)
