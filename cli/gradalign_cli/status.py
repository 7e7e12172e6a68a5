"""`gradalign status`: how far a run is."""

import json
import time
from dataclasses import asdict
from typing import Annotated

import typer

from gradalign_cli.options import RunFolder


def status(
    run: RunFolder,
    watch: Annotated[
        float | None, typer.Option(help="Look again every so many seconds, until it ends.", min=0.5, show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Tell from any terminal how far a run is: state, progress, rate, what is left, failures, questions that were set aside.

    It reads the run's own log, so it works while the run goes on, on another machine that sees the folder, and after the run was killed.

    **Examples**

    `gradalign status runs/mine`

    `gradalign status runs/mine --watch 5`

    `gradalign status s3://bucket/run --json`
    """
    from gradalign.store import status as status_of
    from gradalign_cli.console import output
    from gradalign_cli.tables import print_sheets

    while True:
        found = status_of(run)
        if as_json:
            print(json.dumps(asdict(found) | {"path": str(found.path)}, default=str))
        else:
            if watch is not None and output.is_terminal:
                output.clear()
            print_sheets(found.sheets())
        if watch is None or found.state not in ("starting", "running", "unknown"):
            return
        time.sleep(watch)
