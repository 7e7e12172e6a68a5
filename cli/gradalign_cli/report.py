"""`gradalign report`: one HTML file to read and to share."""

from pathlib import Path
from typing import Annotated

import typer

from gradalign_cli.console import output, safe
from gradalign_cli.options import BootstrapSeed, Draws, RunFolder
from gradalign_cli.progress import plain_bar


def report(
    run: RunFolder,
    compare: Annotated[str | None, typer.Option(help="Another run, to show beside this one.", show_default=False)] = None,
    configs: Annotated[
        Path | None,
        typer.Option(help="Rank training configurations too: a YAML file, or a folder of such files.", show_default=False),
    ] = None,
    questions: Annotated[int, typer.Option(help="Put in the tokens of so many questions at most.", min=0, max=5000)] = 200,
    draws: Draws = 1000,
    seed: BootstrapSeed = 0,
    out: Annotated[str | None, typer.Option(help="The file to write [default: RUN/report.html].", show_default=False)] = None,
) -> None:
    """Write one self-contained HTML file: findings in words, figures and tables, and every scored token with what was tried there.

    It needs no network and no server, and opens in any current browser. Its address holds the place that is looked at, so that a link
    opens it there.

    **Examples**

    `gradalign report runs/mine`

    `gradalign report runs/mine --compare runs/other --out mine.html`

    `gradalign report runs/mine --configs configs/`
    """
    with plain_bar() as bar:
        task = bar.add_task("reading the run", total=1.0)
        from gradalign.configurations import load_configurations
        from gradalign.report import write_report
        from gradalign.store import load_run

        configurations = () if configs is None else load_configurations(configs)
        scored, other = load_run(run), None if compare is None else load_run(compare)

        def stage(what: str, share: float) -> None:
            bar.update(task, description=f"{what:<28}", completed=share)

        made = write_report(scored, out, other, configurations, questions, draws, seed, stage)
    if made.token_questions < made.questions:
        output.print(f"It has the tokens of {made.token_questions:,} of {made.questions:,} questions.", style="dim")
    output.print(f"The report lies in [bold]{safe(str(made.path))}[/] ({made.size / 1e6:.1f} MB).", soft_wrap=True)
