"""`gradalign findings`: what alignment goes with."""

from pathlib import Path
from typing import Annotated

import typer

from gradalign_cli.options import BootstrapSeed, Draws, RunFolder, Support


def findings(
    run: RunFolder,
    support: Support = "visited",
    draws: Draws = 1000,
    seed: BootstrapSeed = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Also write the whole tables: a .csv, .json, .parquet, .md or .tex file, with -associations, -profiles and -selective "
            "put to its name."
        ),
    ] = None,
) -> None:
    """Alignment against divergences, entropies, depth and difficulty, and what keeping only well-aligned tokens would keep.

    **Examples**

    `gradalign findings runs/mine`

    `gradalign findings runs/mine --out mine.csv` writes mine-associations.csv, mine-profiles.csv and mine-selective.csv.
    """
    from gradalign.findings import alignment_findings
    from gradalign.store import load_run
    from gradalign_cli.tables import print_sheets
    from gradalign_cli.writing import check_suffix, write_frame

    if out is not None:
        check_suffix(out)
    found = alignment_findings(load_run(run), support, draws, seed)
    print_sheets(found.sheets())
    if out is not None:
        for name in ("associations", "profiles", "selective"):
            write_frame(getattr(found, name), out.with_name(f"{out.stem}-{name}{out.suffix}"))
