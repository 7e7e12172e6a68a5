"""`gradalign doctor`: what is installed, and what would be used."""

import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rich.table import Table

from gradalign_cli.console import output, safe

_NEEDED = ("torch", "transformers", "numpy", "scipy", "pandas", "pyarrow", "jinja2", "rich", "typer")
_OPTIONAL = {
    "gguf": ("students in .gguf files", "gguf"),
    "accelerate": ("students in .gguf files, quantised and sharded models", "gguf"),
    "peft": ("adapters as models", "peft"),
    "torchao": ("--quantize 8bit", "quantized"),
    "bitsandbytes": ("--quantize 4bit", "quantized"),
    "openai": ("served models", "server"),
    "ray": ("--executor ray", "ray"),
    "s3fs": ("runs in s3://", "s3"),
}


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
    for name, (purpose, extra) in _OPTIONAL.items():
        table.add_row(name, _installed(name) or f"missing, needed for {purpose}: pip install 'gradalign\\[{extra}]'")
    table.add_row("vllm", _vllm())
    table.add_row("device", _device())
    table.add_row("engine auto", _engine())
    table.add_row("cores", str(os.cpu_count()))
    table.add_row("C++ compiler", _compiler())
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


def _vllm() -> str:
    if _installed("torch") is None:
        return "unknown without torch"
    from gradalign.engines.vllm_setup import KNOWN, is_known, vllm_version

    release = vllm_version()
    if release is None:
        return "missing, needed for --engine vllm: pip install 'gradalign\\[vllm]'"
    return f"{release}, {'' if is_known(release) else 'not '}among the versions known to work ({', '.join(KNOWN)})"


def _engine() -> str:
    if _installed("torch") is None:
        return "unknown without torch"
    import torch

    from gradalign.engines import suited_engine

    return suited_engine("cuda" if torch.cuda.is_available() else "cpu")


def _compiler() -> str:
    if _installed("torch") is None:
        return "unknown without torch"
    from gradalign.pipeline.native import compiler

    return safe(
        compiler() or "missing: on a CPU the pass over a large vocabulary takes longer; install g++ or clang++, or set CXX"
    )


def _device() -> str:
    if _installed("torch") is None:
        return "unknown without torch"
    import torch

    if torch.cuda.is_available():
        return ", ".join(f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count()))
    return "cpu (float32)"
