"""`gradalign export`: hand a training configuration over to a trainer."""

import difflib
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gradalign.types import GradalignError
from gradalign_cli.options import RunFolder

if TYPE_CHECKING:
    from gradalign.configurations import Configuration
    from gradalign.handover import Export

_READY = Path("configs")


def export(
    run: RunFolder,
    config: Annotated[str | None, typer.Option(help="Name of the configuration.", show_default=False)] = None,
    configs: Annotated[
        Path | None,
        typer.Option(help="A YAML file of configurations, or a folder of such files [default: configs/].", show_default=False),
    ] = None,
    to: Annotated[str, typer.Option(help="trl, json or parquet.")] = "trl",
    out: Annotated[
        Path | None, typer.Option(help="Folder to write into [default: RUN/export/NAME].", show_default=False)
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write into a folder that is not empty.")] = False,
) -> None:
    """Hand a training configuration over to a trainer: weights of questions and tokens, and for TRL a script that trains.

    What the trainer cannot do as the configuration says is named, in the files and on the terminal.

    **Examples**

    `gradalign export runs/mine --config 'PACED, forward KL'`

    `gradalign export runs/mine --configs mine.yaml --config best --out handover`

    `gradalign export runs/mine --config 'GKD, beta 0.5' --to parquet`
    """
    from gradalign.configurations import load_configurations
    from gradalign.handover import default_folder, export_configuration
    from gradalign.store import load_run

    if configs is None and not _READY.is_dir():
        raise GradalignError("no configurations: there is no folder configs/ here; give a file or folder with --configs")
    chosen = _chosen(config, load_configurations(configs or _READY), configs or _READY)
    found = load_run(run)
    _show(export_configuration(found, chosen, out or default_folder(found, chosen), to, force), chosen)


def _chosen(name: str | None, known: "tuple[Configuration, ...]", place: Path) -> "Configuration":
    """The configuration of that name."""
    names = [configuration.name for configuration in known]
    if name is None:
        raise GradalignError(f"no configuration is named; give one with --config: {', '.join(map(repr, names))}")
    if name not in names:
        lowered = {each.lower(): each for each in names}
        near = difflib.get_close_matches(name.lower(), lowered, n=3, cutoff=0.4)
        hint = (
            f"did you mean {' or '.join(repr(lowered[each]) for each in near)}?" if near else f"choose from {', '.join(names)}"
        )
        raise GradalignError(f"{place} has no configuration {name!r}; {hint}")
    return known[names.index(name)]


def _show(found: "Export", configuration: "Configuration") -> None:
    from gradalign_cli.console import output, safe

    output.print(f"[bold]{safe(configuration.name)}[/]: {found.questions} questions, {safe(', '.join(found.files))}")
    for reason, count in found.left_out.items():
        output.print(f"[dim]· {count} questions are left out, {safe(reason)}[/]", highlight=False)
    for note in found.notes:
        output.print(f"[dim]· {safe(note)}[/]", highlight=False)
    for lost in found.not_carried:
        output.print(f"[yellow]! not carried over: {safe(lost)}[/]", highlight=False)
    output.print(f"Written to [bold]{safe(str(found.folder))}[/].", soft_wrap=True)
    if found.trainer is not None:
        command = f"python {shlex.quote(str(found.folder / 'train.py'))} --model MODEL"
        output.print(
            f"To train with TRL's {found.trainer} (pip install 'gradalign\\[trl]'): [bold]{safe(command)}[/]", soft_wrap=True
        )
