"""`gradalign foretell`: what a first training step does to other questions, and how far training may come."""

from pathlib import Path
from typing import Annotated

import typer

from gradalign_cli.options import Device, LearningRate, Load, Place, RunFolder, Steps, Table, TrustRemoteCode
from gradalign_cli.progress import ProgressDisplay


def foretell(
    run: RunFolder,
    configs: Annotated[
        Path | None, typer.Option(help="Also of training configurations: a YAML file of them, or a folder of such files.")
    ] = None,
    objective: Annotated[
        list[str] | None,
        typer.Option(help="Only this objective of the run; give it once for each. A function of your own has to be named."),
    ] = None,
    rollouts: Annotated[int, typer.Option(help="Base rollouts of each question that gradients are made of.", min=2)] = 16,
    batch: Annotated[int, typer.Option(help="Rollouts that a step of the optimiser will take.", min=1)] = 32,
    steps: Steps = None,
    learning_rate: LearningRate = None,
    device: Device = "auto",
    place: Place = None,
    load: Load = "auto",
    trust_remote_code: TrustRemoteCode = False,
    out: Table = None,
) -> None:
    """Find what a first training step on some questions does to others, in all parameters of the student, and rank by what it foretells.

    Takes gradients of the student on the run's own rollouts: for each teacher and objective a backward and six forward passes over them, in
    float32, with memory for five times the student's weights. What it finds is kept in the run's folder, and `rank` then goes by it.
    With rollouts that teachers sample themselves (`gradalign score --teacher-rollouts 16`) it also says how far training may come.

    **Examples**

    `gradalign foretell runs/mine`

    `gradalign foretell runs/mine --configs configs.yaml --steps 200 --learning-rate 1e-5`

    `gradalign foretell runs/mine --objective reverse_kl --rollouts 8 --device cuda:1`
    """
    from gradalign.configurations import load_configurations
    from gradalign.findings import Horizon, rank, rank_configurations
    from gradalign.first_step import foretell as foretell_run
    from gradalign.pipeline import Execution
    from gradalign.store import load_run
    from gradalign_cli.tables import print_sheets
    from gradalign_cli.writing import check_suffix, write_frame

    if out is not None:
        check_suffix(out)
    horizon, scored = Horizon(steps, learning_rate), load_run(run)
    wanted = () if configs is None else load_configurations(configs)
    execution = Execution(device=device, place=tuple(place or ()), load=load)
    with ProgressDisplay() as progress:
        found = foretell_run(scored, wanted, tuple(objective or ()), rollouts, batch, trust_remote_code, execution, progress)
    if configs is None:
        told = rank(scored, objectives=[*dict.fromkeys(found["objective"])], horizon=horizon)
    else:
        told = rank_configurations(scored, wanted, horizon=horizon)
    print_sheets(told.sheets())
    if out is not None:
        write_frame(told.frame, out)
