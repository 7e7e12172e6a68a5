"""`gradalign rank`: the ranking of a finished run."""

from pathlib import Path
from typing import Annotated

import typer

from gradalign_cli.options import BootstrapSeed, Draws, LearningRate, RunFolder, Steps, Support, Table


def rank(
    run: RunFolder,
    configs: Annotated[
        Path | None, typer.Option(help="Rank training configurations: a YAML file of them, or a folder of such files.")
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(
            help="foretold or first_step (the default after `gradalign foretell`), transfer_drive (the default before it), transfer, "
            "drive, gain, pooled_cosine, weighted_cosine, mean_cosine or teacher_advantage; with --configs also difficulty, window or "
            "path, to break the scores down.",
            show_default=False,
        ),
    ] = None,
    steps: Steps = None,
    learning_rate: LearningRate = None,
    support: Support = "visited",
    draws: Draws = 2000,
    seed: BootstrapSeed = 0,
    out: Table = None,
) -> None:
    """Rank the teachers and objectives of a run, or training configurations, with intervals over questions.

    **Examples**

    `gradalign rank runs/mine`

    `gradalign rank runs/mine --by gain --draws 10000`

    `gradalign rank runs/mine --configs configs.yaml --out ranking.csv`

    `gradalign rank runs/mine --configs configs.yaml --by difficulty`

    `gradalign rank runs/mine --steps 200 --learning-rate 1e-5`
    """
    from gradalign.configurations import load_configurations
    from gradalign.findings import BREAK_DOWNS, Horizon, break_down, rank_configurations
    from gradalign.findings import rank as rank_run
    from gradalign.store import load_run
    from gradalign_cli.tables import print_sheets
    from gradalign_cli.writing import check_suffix, write_frame

    if out is not None:
        check_suffix(out)
    scored, horizon = load_run(run), Horizon(steps, learning_rate)
    if configs is None:
        found = rank_run(scored, by, support, draws, seed, horizon=horizon)
    elif by in BREAK_DOWNS:
        found = break_down(scored, load_configurations(configs), by, support, draws, seed)
    else:
        found = rank_configurations(scored, load_configurations(configs), by, support, draws, seed, horizon)
    print_sheets(found.sheets())
    if out is not None:
        write_frame(found.frame, out)
