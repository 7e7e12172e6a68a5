"""The display of a run under way: a bar with what remains, under the ranking as it tightens."""

import logging
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.live import Live
from rich.logging import RichHandler
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from gradalign.visible import VisibleLogs
from gradalign_cli.console import Interrupted, errors

if TYPE_CHECKING:
    from gradalign.findings import Standing


def plain_bar() -> Progress:
    """A bar with what is done, the time that passed, and an estimate of what remains; gone when it is done."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("elapsed,"),
        TimeRemainingColumn(),
        TextColumn("left"),
        console=errors,
        transient=True,
    )


class ProgressDisplay:
    """A bar with elapsed time and an estimate of what remains, under the standing so far (`gradalign.pipeline.Progress`)."""

    def __init__(self) -> None:
        self.bar = plain_bar()
        self.task = self.bar.add_task("starting", total=None)
        self.table: RenderableType | None = None
        self.live = Live(get_renderable=self._render, console=errors, refresh_per_second=8, transient=True)

    def _render(self) -> RenderableType:
        bar = self.bar.get_renderable()
        return bar if self.table is None else Group(self.table, bar)

    def __enter__(self) -> "ProgressDisplay":
        handler = RichHandler(console=errors, show_path=False)
        handler.addFilter(VisibleLogs())
        logging.basicConfig(level=logging.WARNING, handlers=[handler], format="%(message)s")
        self.live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.live.stop()
        if kind is KeyboardInterrupt:
            raise Interrupted from error

    def begin(self, units: int, done: int) -> None:
        self.bar.reset(self.task, total=units or None, completed=done)

    def stage(self, what: str) -> None:
        self.bar.update(self.task, description=f"{what:<20}")

    def advance(self, units: int) -> None:
        self.bar.advance(self.task, units)

    def standing(self, standing: "Standing", spent: tuple[int, int]) -> None:
        """Show where teachers and objectives stand, as far as a terminal's height allows."""
        if errors.is_terminal and len(standing.questions) > 1:
            from gradalign_cli.tables import standing_table

            self.table = standing_table(standing, spent, rows=max(3, errors.height - 8))
