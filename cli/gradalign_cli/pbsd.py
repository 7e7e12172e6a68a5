"""`gradalign pbsd`: does reweighting a teacher by reward improve on matching it?"""

from typing import Annotated

import typer

from gradalign_cli.options import RunFolder, Table


def pbsd(
    run: RunFolder,
    samples: Annotated[int, typer.Option(help="Rollouts from which training would know a token's success.", min=1)] = 1,
    beta: Annotated[
        list[float] | None, typer.Option(help="A beta; give it once for each [default: 13 from 0.01 to 10].")
    ] = None,
    out: Table = None,
) -> None:
    """For each teacher of a run: does the target tau exp(S / beta) improve on plain matching, and for which beta?

    Where the run has both, it also says whether the student itself under a context or another model is the better teacher.

    **Examples**

    `gradalign pbsd runs/mine`

    `gradalign pbsd runs/mine --samples 8 --beta 0.1 --beta 1 --out pbsd.csv`
    """
    from gradalign.findings import reward_reweighting
    from gradalign.findings.pbsd import BETAS
    from gradalign.store import load_run
    from gradalign_cli.tables import print_sheets
    from gradalign_cli.writing import check_suffix, write_frame

    if out is not None:
        check_suffix(out)
    found = reward_reweighting(load_run(run), samples, tuple(beta) if beta else BETAS)
    print_sheets(found.sheets())
    if out is not None:
        write_frame(found.frame, out)
