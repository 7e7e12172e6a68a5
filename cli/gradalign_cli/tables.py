"""The ranking as a table in the terminal."""

# pandas types its results too widely for these rules.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false, reportAssignmentType=false

import pandas as pd
from rich.table import Table

from gradalign.findings import CAVEAT, Ranking
from gradalign_cli.console import output, safe

_HEADS = {
    "drive": "drive ·10³",
    "gain": "gain ·10³",
    "pooled_cosine": "pooled cos",
    "weighted_cosine": "weighted cos",
    "mean_cosine": "mean cos",
    "teacher_advantage": "advantage ·10³",
}
_SCALE = {"drive": 1e3, "gain": 1e3, "teacher_advantage": 1e3}


def print_ranking(ranking: Ranking) -> None:
    """Best first: scores, the interval of the ordering score, the paired difference to the best, and what it rests on."""
    by, scale = ranking.by, _SCALE.get(ranking.by, 1.0)
    table = Table(title=f"Ranking by {by} over {ranking.questions} questions", caption=CAVEAT, caption_justify="left")
    table.add_column("")
    table.add_column("teacher", overflow="fold")
    table.add_column("objective")
    table.add_column(_HEADS[by], justify="right", style="bold")
    table.add_column("95% interval", justify="right")
    table.add_column("less the best", justify="right")
    table.add_column("P(best)", justify="right")
    others = [name for name in _HEADS if name != by]
    for name in others:
        table.add_column(_HEADS[name], justify="right")
    for place, row in ranking.frame.iterrows():
        marked = "=" if row["tied"] and place != 0 else ""
        table.add_row(
            f"{place + 1}{marked}",  # pyright: ignore[reportOperatorIssue]
            safe(row["teacher"]),
            safe(row["objective"]),
            number(row[by] * scale),
            interval(row, by, scale),
            "best" if row["difference"] == 0 else interval(row, "difference", scale),
            number(row["p_best"], 2),
            *(number(row[name] * _SCALE.get(name, 1.0)) for name in others),
        )
    output.print(table)
    if (ranking.frame["tied"].sum()) > 1:
        output.print("'=' marks what cannot be told from the best (95% interval of the paired difference).")
    if ranking.left_out:
        output.print(f"{ranking.left_out} questions are left out, since not every teacher could be scored on them.")
    for note in ranking.notes:
        output.print(f"[dim]· {safe(note)}[/]")


def number(value: float, digits: int = 3) -> str:
    """A number in fixed decimals; a missing one as a dash."""
    return "-" if pd.isna(value) else f"{value:+.{digits}f}" if digits == 3 else f"{value:.{digits}f}"


def interval(row: pd.Series, name: str, scale: float) -> str:
    return f"[{number(row[f'{name}_low'] * scale)}, {number(row[f'{name}_high'] * scale)}]".replace("[", r"\[")
