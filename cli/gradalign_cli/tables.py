"""Sheets and tables for the terminal: as many columns as its width allows."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

from gradalign.findings.wording import SCORE_HEADS, SCORE_SCALE
from gradalign.sheets import Sheet, interval, signed
from gradalign_cli.console import output, safe

if TYPE_CHECKING:
    from gradalign.findings import Standing
    from gradalign.pipeline import Forecast

_WIDTH_FOR_ALL = 150
_LEAST_TEXT = 10
_MARKS = {"plain": "", "warning": "! ", "note": "· "}
_STYLES = {"plain": "", "warning": "yellow", "note": "dim"}


def print_sheets(sheets: Iterable[Sheet]) -> None:
    """Print tables with what has to be said of them; columns that can be spared need a wide terminal."""
    spared = False
    for sheet in sheets:
        kept = [i for i, head in enumerate(sheet.heads) if not head.spare or output.width >= _WIDTH_FOR_ALL]
        spared |= len(kept) < len(sheet.heads)
        if sheet.heads:
            output.print(_table(sheet, kept))
        for remark in sheet.remarks:
            output.print(f"{_MARKS[remark.kind]}{safe(remark.text)}", style=_STYLES[remark.kind], highlight=False)
    if spared:
        output.print(f"· a terminal of {_WIDTH_FOR_ALL} columns shows the other columns too", style="dim")


def _table(sheet: Sheet, kept: list[int]) -> Table:
    table = Table(title=safe(sheet.title), box=SIMPLE_HEAD, padding=(0, 0), pad_edge=False, collapse_padding=True)
    for i in kept:
        head = sheet.heads[i]
        justify, style = ("right" if head.number else "left"), ("bold" if head.strong else None)
        least = None if head.number or not head.text else _LEAST_TEXT
        table.add_column(safe(head.text), justify=justify, no_wrap=head.number, overflow="fold", style=style, min_width=least)
    for row in sheet.rows:
        table.add_row(*(safe(row[i]) for i in kept))
    return table


def standing_table(standing: "Standing", spent: tuple[int, int], rows: int) -> Table:
    """The ranking of a run under way, best first: drive and gain with their intervals, and what has been spent."""
    order = np.argsort(-np.nan_to_num(standing.score("drive"), nan=-np.inf), kind="stable")[:rows]
    caption = f"{len(standing.questions)} questions · {spent[0]:,} rollouts · {spent[1]:,} tokens so far"
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), caption=caption, caption_justify="left")
    for head in ("teacher", "objective"):
        table.add_column(head, no_wrap=True)
    columns = {}
    for name in ("drive", "gain"):
        low, high = standing.interval(name)
        columns[name] = (standing.score(name), low, high)
        table.add_column(f"{SCORE_HEADS[name]} [95%]", justify="right", no_wrap=True)
    show = {name: signed(np.stack(values), SCORE_SCALE.get(name, 1.0)) for name, values in columns.items()}
    for m in order:
        cells = [
            safe(f"{show[name](score[m])} {interval(low[m], high[m], show[name])}")
            for name, (score, low, high) in columns.items()
        ]
        table.add_row(*map(safe, standing.keys[m]), *cells)
    return table


def print_forecast(found: "Forecast") -> None:
    """What a run would cost, line by line."""
    table = Table(title=f"Planned for {found.questions:,} questions", box=SIMPLE_HEAD, show_header=False)
    table.add_column("")
    table.add_column("", justify="right")
    for what, count in (
        *([("rollouts to filter by", found.filter_rollouts)] if found.filter_rollouts else []),
        ("base rollouts", found.base_rollouts),
        ("rollouts for demonstrations", found.demonstrations),
        *([("rollouts of the teachers", found.teacher_rollouts)] if found.teacher_rollouts else []),
        ("nodes visited", found.visited_nodes),
        ("nodes chosen for targeted rollouts", found.chosen_nodes),
        ("targeted rollouts", found.targeted_rollouts),
        ("tokens to sample", found.tokens),
    ):
        table.add_row(what, f"{count:,}")
    table.add_row("estimated time", _duration(found.seconds))
    output.print(table)
    output.print(
        f"[dim]Scaled up from {found.measured} questions scored in {_duration(found.measured_seconds)}; nothing was kept. "
        "Loading the models comes on top.[/]"
    )


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
