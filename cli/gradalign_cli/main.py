"""The command line's front door: options common to all commands, and how faults are shown."""

import os
import shlex
import sys
from typing import Annotated

import typer

from gradalign import __version__
from gradalign.types import GradalignError
from gradalign_cli.console import Interrupted, errors, line_of, safe
from gradalign_cli.contexts import app as contexts
from gradalign_cli.doctor import doctor
from gradalign_cli.export import export
from gradalign_cli.findings import findings
from gradalign_cli.foretell import foretell
from gradalign_cli.paced import paced
from gradalign_cli.paths import paths
from gradalign_cli.pbsd import pbsd
from gradalign_cli.rank import rank
from gradalign_cli.report import report
from gradalign_cli.score import score
from gradalign_cli.show import show
from gradalign_cli.status import status

app = typer.Typer(
    name="gradalign",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Does a teacher push a student toward success? Token-level answers before any distillation run.",
)
app.command()(score)
app.command()(rank)
app.command()(foretell)
app.command()(paths)
app.command()(findings)
app.add_typer(contexts, name="contexts")
app.command()(pbsd)
app.command()(paced)
app.command()(report)
app.command()(show)
app.command()(status)
app.command()(export)
app.command()(doctor)


@app.callback()
def common(
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.", is_eager=True)] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of a fault.")] = False,
) -> None:
    """Options that stand before the command."""


def main() -> None:
    """Run the command; a fault the user can mend is one line and exit code 2, an interrupt says how to go on."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    if arguments[:1] == ["--version"]:
        print(f"gradalign {__version__}")
        return
    try:
        app(args=arguments, prog_name="gradalign")
    except GradalignError as error:
        if debug:
            raise
        errors.print(f"[bold red]error:[/] {line_of(error)}", soft_wrap=True)
        sys.exit(2)
    except Interrupted:
        command = shlex.join(["gradalign", *arguments])
        errors.print(f"\ninterrupted; nothing finished is lost. To go on: [bold]{safe(command)}[/]", soft_wrap=True)
        sys.exit(130)


if __name__ == "__main__":
    main()
