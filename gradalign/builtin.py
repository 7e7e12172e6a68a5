"""Where the built-in data lies: in `gradalign/data` of an installed wheel, in `data` of a checkout."""

from pathlib import Path

_PACKAGE = Path(__file__).parent


def builtin_path(kind: str) -> Path:
    """The folder of the built-in `students` or `questions`."""
    installed = _PACKAGE / "data"
    return (installed if installed.is_dir() else _PACKAGE.parent / "data") / kind


def builtin_names(kind: str) -> list[str]:
    """Names of the built-in `students` or `questions`, sorted."""
    folder = builtin_path(kind)
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir()) if folder.is_dir() else []
