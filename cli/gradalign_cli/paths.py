"""`gradalign paths`: are incorrect paths better aligned than correct ones?"""

from gradalign_cli.options import BootstrapSeed, Draws, RunFolder, Support, Table


def paths(
    run: RunFolder,
    support: Support = "visited",
    draws: Draws = 2000,
    seed: BootstrapSeed = 0,
    out: Table = None,
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
