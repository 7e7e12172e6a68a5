"""`gradalign paced`: how clear the gradient is at each pass rate, and the question weights that follow."""

from pathlib import Path
from typing import Annotated

import typer

from gradalign_cli.options import BootstrapSeed, Draws, RunFolder


def paced(
    run: RunFolder,
    bins: Annotated[int, typer.Option(help="Bins of pass rate, each with about equally many questions.", min=4)] = 6,
    draws: Draws = 300,
    seed: BootstrapSeed = 0,
    out: Annotated[Path | None, typer.Option(help="Also write the curves: a .csv, .json, .parquet, .md or .tex file.")] = None,
) -> None:
    """Signal-to-noise ratio of the questions' gradients over their pass rate, and exponents of p^alpha (1 - p)^beta fitted to it.

    **Examples**

    `gradalign paced runs/mine`

    `gradalign paced runs/mine --bins 8 --out clarity.csv`
    """
    from gradalign.findings import paced_diagnostics
    from gradalign.store import load_run
    from gradalign_cli.tables import print_sheets
    from gradalign_cli.writing import check_suffix, write_frame

    if out is not None:
        check_suffix(out)
    found = paced_diagnostics(load_run(run), bins, draws, seed)
    print_sheets(found.sheets())
    if out is not None:
        write_frame(found.curve, out)
