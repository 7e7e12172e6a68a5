"""`gradalign rank`: the ranking of a finished run."""

from pathlib import Path
from typing import Annotated

import typer


def rank(
    run: Annotated[Path, typer.Argument(help="The run folder that `gradalign score` wrote.")],
    by: Annotated[
        str | None,
        typer.Option(
            help="transfer_drive (the default), transfer, drive, gain, pooled_cosine, weighted_cosine, mean_cosine or "
            "teacher_advantage.",
            show_default=False,
        ),
    ] = None,
    support: Annotated[str, typer.Option(help="Support of the cosines: visited or full.")] = "visited",
    draws: Annotated[int, typer.Option(help="Bootstrap resamples of questions.", min=100, max=100_000)] = 2000,
    seed: Annotated[int, typer.Option(help="Seed of the bootstrap.", min=0)] = 0,
) -> None:
    """Rank the teachers and objectives of a run, with intervals over questions.

    **Examples**

    `gradalign rank runs/mine`

    `gradalign rank runs/mine --by gain --draws 10000`
    """
    from gradalign.findings import rank as rank_run
    from gradalign.store import load_run
    from gradalign_cli.tables import print_ranking

    print_ranking(rank_run(load_run(run), by, support, draws, seed))
