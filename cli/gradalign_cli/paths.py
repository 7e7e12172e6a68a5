"""`gradalign paths`: are incorrect paths better aligned than correct ones?"""

from pathlib import Path
from typing import Annotated

import typer


def paths(
    run: Annotated[Path, typer.Argument(help="The run folder that `gradalign score` wrote.")],
    support: Annotated[str, typer.Option(help="Support of the cosines: visited or full.")] = "visited",
    draws: Annotated[int, typer.Option(help="Bootstrap resamples of questions.", min=100, max=100_000)] = 2000,
    seed: Annotated[int, typer.Option(help="Seed of the bootstrap and of the sign flips.", min=0)] = 0,
    out: Annotated[
        Path | None, typer.Option(help="Also write the whole table: a .csv, .json, .parquet, .md or .tex file.")
    ] = None,
) -> None:
    """Alignment on correct against incorrect paths, for every teacher and objective, tested by question.

    **Examples**

    `gradalign paths runs/mine`

    `gradalign paths runs/mine --support full --out paths.csv`
    """
    from gradalign.findings import compare_paths
    from gradalign.store import load_run
    from gradalign_cli.tables import print_sheets
    from gradalign_cli.writing import check_suffix, write_frame

    if out is not None:
        check_suffix(out)
    found = compare_paths(load_run(run), support, draws, seed=seed)
    print_sheets(found.sheets())
    if out is not None:
        write_frame(found.frame, out)
