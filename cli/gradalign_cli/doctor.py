"""`gradalign doctor`: what is installed, and what would be used."""

import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rich.table import Table

from gradalign_cli.console import output, safe

_NEEDED = ("torch", "transformers", "numpy", "scipy", "pandas", "pyarrow", "jinja2", "rich", "typer")
_OPTIONAL = {"gguf": "students in .gguf files", "accelerate": "students in .gguf files"}


def doctor() -> None:
    """Show what is installed and what `gradalign score` would use here.

    **Example**

    `gradalign doctor`
    """
    from gradalign.builtin import builtin_names

    table = Table(title=f"gradalign {version('gradalign')} on Python {platform.python_version()}, {platform.system()}")
    table.add_column("what")
    table.add_column("found")
    for name in _NEEDED:
        table.add_row(name, _installed(name) or "[red]missing: pip install gradalign[/]")
    for name, purpose in _OPTIONAL.items():
        table.add_row(name, _installed(name) or f"missing, needed for {purpose}: pip install 'gradalign\\[gguf]'")
    table.add_row("device", _device())
    table.add_row("cores", str(os.cpu_count()))
    table.add_row("free disk here", f"{shutil.disk_usage(Path.cwd()).free / 2**30:.1f} GiB")
    table.add_row("built-in models", ", ".join(f"builtin:{name}" for name in builtin_names("students")) or "[red]none found[/]")
    table.add_row(
        "built-in questions", ", ".join(f"builtin:{name}" for name in builtin_names("questions")) or "[red]none found[/]"
    )
    table.add_row("model cache", safe(os.environ.get("HF_HOME", "~/.cache/huggingface")))
    output.print(table)


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _device() -> str:
    if _installed("torch") is None:
        return "unknown without torch"
    import torch

    if torch.cuda.is_available():
        return ", ".join(f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count()))
    return "cpu (float32)"
