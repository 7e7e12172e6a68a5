"""The ranking as a table in the terminal: as many columns as its width allows."""

# pandas types its results too widely for these rules.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false, reportCallIssue=false

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.table import Table

from gradalign.findings import (
    CAVEAT,
    ConfigurationRanking,
    PacedDiagnostics,
    PathComparison,
    Ranking,
    RewardReweighting,
    Standing,
)
from gradalign_cli.console import output, safe

if TYPE_CHECKING:
    from gradalign.pipeline import Forecast

_HEADS = {
    "transfer_drive": "transfer drive ·10³",
    "transfer": "transfer",
    "drive": "drive ·10³",
    "gain": "gain",
    "pooled_cosine": "pooled cos",
    "weighted_cosine": "weighted cos",
    "mean_cosine": "mean cos",
    "teacher_advantage": "advantage ·10³",
}
_SCALE = {"transfer_drive": 1e3, "drive": 1e3, "teacher_advantage": 1e3}
_WIDTH_FOR_ALL = 150


def print_ranking(ranking: Ranking) -> None:
    """Best first: scores, the interval of the ordering score, the paired difference to the best, and what it rests on."""
    by, frame = ranking.by, ranking.frame
    others = [name for name in _HEADS if name != by] if output.width >= _WIDTH_FOR_ALL else []
    table = Table(
        title=f"Ranking by {by} over {ranking.questions} questions",
        box=SIMPLE_HEAD,
        padding=(0, 0),
        pad_edge=False,
        collapse_padding=True,
    )
    for head in ("", "teacher", "objective"):
        table.add_column(head, no_wrap=head != "teacher", overflow="fold")
    table.add_column(_HEADS[by], justify="right", style="bold")
    for head in ("95% interval", "less the best", *(["P(best)", *(_HEADS[name] for name in others)] if others else [])):
        table.add_column(head, justify="right", no_wrap=True)
    show = {name: _formatter(frame, name) for name in _HEADS}
    for place, row in enumerate(frame.to_dict("records"), start=1):
        table.add_row(
            f"{place}{'=' if row['tied'] and place > 1 else ''}",
            safe(row["teacher"]),
            safe(row["objective"]),
            show[by](row[by]),
            _interval(row, by, show[by]),
            "best" if place == 1 else _interval(row, "difference", show[by]),
            *([f"{row['p_best']:.2f}", *(show[name](row[name]) for name in others)] if others else []),
        )
    output.print(table)
    if frame["tied"].sum() > 1:
        output.print("'=' marks what cannot be told from the best (95% interval of the paired difference).")
    if ranking.left_out:
        output.print(f"{ranking.left_out} questions are left out: not every teacher could be scored on them.")
    _print_remarks(ranking.warnings, ranking.notes, bool(others))


def print_configurations(ranking: ConfigurationRanking) -> None:
    """Best first: what each configuration is, the ordering score with its interval, the paired difference to the best, and its cost."""
    by, frame = ranking.by, ranking.frame
    wide = output.width >= _WIDTH_FOR_ALL
    table = Table(title=f"Ranking by {by} over {ranking.questions} questions", box=SIMPLE_HEAD, padding=(0, 0), pad_edge=False,
                  collapse_padding=True)  # fmt: skip
    table.add_column("", no_wrap=True)
    table.add_column("configuration", overflow="fold")
    others = ["drive", "gain", "teacher_advantage"] if wide else []
    others = [name for name in others if name != by]
    table.add_column(_HEADS[by], justify="right", style="bold")
    more_heads = ["P(best)", *(_HEADS[name] for name in others), "helps", "harms", "teacher tokens"]
    for head in ("95% interval", "less the best", *(more_heads if wide else [])):
        table.add_column(head, justify="right", no_wrap=True)
    show = {name: _formatter(frame, name) for name in _HEADS}
    for place, row in enumerate(frame.to_dict("records"), start=1):
        mark = "=" if row["tied"] and place > 1 else ""
        more = [
            f"{row['p_best']:.2f}",
            *(show[name](row[name]) for name in others),
            _percent(row["helped"]),
            _percent(row["harmed"]),
            "-" if pd.isna(row["teacher_tokens"]) else f"{row['teacher_tokens']:,.0f}",
        ]
        table.add_row(
            f"{place}{mark}",
            safe(row["configuration"]),
            show[by](row[by]),
            _interval(row, by, show[by]),
            "best" if row["difference"] == 0 and row["tied"] else _interval(row, "difference", show[by]),
            *(more if wide else []),
        )
    output.print(table)
    if frame["tied"].sum() > 1:
        output.print("'=' marks what cannot be told from the best (95% interval of the paired difference).")
    if frame[by].isna().any():
        output.print(
            f"A configuration without a {by} weighs tokens in a way that the run kept no steps for: `gradalign score --configs` with it "
            "does, and `--by drive` compares all. An oracle analysis has none."
        )
    for reason in ranking.unscored.values():
        output.print(f"[yellow]! {safe(reason)}[/]")
    _print_remarks(ranking.warnings, ranking.notes, wide)


def print_break_down(frame: pd.DataFrame) -> None:
    """Scores of configurations by groups of questions or nodes; transfer where it is known, else drive."""
    score = "drive" if frame["transfer_drive"].isna().all() else "transfer_drive"
    by = frame["by"].iloc[0]
    table = Table(title=f"Configurations by {by}", box=SIMPLE_HEAD, padding=(0, 1))
    for head in (by, "configuration"):
        table.add_column(head, overflow="fold")
    names = [score, "drive", "gain"] if score != "drive" and output.width >= _WIDTH_FOR_ALL else [score, "gain"]
    for name in names:
        table.add_column(f"{_HEADS[name]} [95%]", justify="right", no_wrap=True)
    show = {name: _formatter(frame, name) for name in names}
    before = None
    for row in frame.to_dict("records"):
        group = f"{safe(row['group'])} ({row['questions']})" if by == "difficulty" else safe(row["group"])
        cells = [f"{show[name](row[name])} {_interval(row, name, show[name])}" for name in names]
        table.add_row(group if row["group"] != before else "", safe(row["configuration"]), *cells)
        before = row["group"]
    output.print(table)
    output.print(f"[dim]{CAVEAT}[/]")


def print_paced(found: PacedDiagnostics) -> None:
    """The fitted exponents of every teacher and objective beside the default, and the curve of the first of them."""
    table = Table(
        title="Question weights p^alpha (1 - p)^beta that follow the gradient's clarity", box=SIMPLE_HEAD, padding=(0, 1)
    )
    for head in ("teacher", "objective", "in"):
        table.add_column(head, overflow="fold")
    for head in ("alpha [95%]", "beta [95%]"):
        table.add_column(head, justify="right", no_wrap=True)
    for row in found.fit.to_dict("records"):
        cells = [
            "-" if pd.isna(row[name]) else rf"{row[name]:.2f} \[{row[f'{name}_low']:.2f}, {row[f'{name}_high']:.2f}]"
            for name in ("alpha", "beta")
        ]
        table.add_row(safe(row["teacher"]), safe(row["objective"]), row["space"], *cells)
    table.add_row("default", "", "", "1.00", "1.00")
    output.print(table)
    first = found.curve.iloc[0]
    curve = found.curve[
        (found.curve[["teacher", "objective", "space"]] == first[["teacher", "objective", "space"]]).all(axis=1)
    ]
    shown = Table(title=f"{safe(first['teacher'])}, {safe(first['objective'])}, output layer", box=SIMPLE_HEAD, padding=(0, 1))
    for head in ("pass rate", "questions", "signal to noise [95%]", "default weight"):
        shown.add_column(head, justify="right", no_wrap=True)
    for row in curve.to_dict("records"):
        p = row["pass_rate"]
        snr = "-" if pd.isna(row["snr"]) else rf"{row['snr']:.3f} \[{row['snr_low']:.3f}, {row['snr_high']:.3f}]"
        default = "-" if pd.isna(p) else f"{p * (1 - p):.3f}"
        shown.add_row(f"{row['low']:.2f} to {row['high']:.2f}", f"{row['questions']}", snr, default)
    output.print(shown)
    output.print(
        "[dim]A dash: fewer than four questions in the bin, or fewer than four such bins to fit to. --out writes every curve.[/]"
    )


def print_paths(found: PathComparison) -> None:
    """The mean cosine on either kind of path, the paired difference with its test, and the tests over nodes beside it."""
    wide = output.width >= _WIDTH_FOR_ALL
    title = f"Mean cosine on correct and incorrect paths, {found.questions} questions"
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 0), pad_edge=False, collapse_padding=True)
    table.add_column("teacher", overflow="fold", min_width=12)
    table.add_column("objective", overflow="fold", min_width=10)
    for head in (
        "correct",
        "incorrect",
        "by question [95%]",
        "p",
        *(["p adj.", "effect", "questions", "Welch p*", "rank p*"] if wide else []),
    ):
        table.add_column(head, justify="right", no_wrap=True)
    for row in found.frame[found.frame["cosine"] == "mean"].to_dict("records"):
        paired = rf"{row['paired']:+.3f} \[{row['paired_low']:+.3f}, {row['paired_high']:+.3f}]"
        cells = [f"{row['correct']:+.3f}", f"{row['incorrect']:+.3f}", paired, f"{row['p']:.2g}"]
        if wide:
            cells += [
                f"{row['p_adjusted']:.2g}",
                f"{row['effect']:+.2f}",
                f"{row['questions']}",
                f"{row['welch_p']:.2g}",
                f"{row['mannwhitney_p']:.2g}",
            ]
        table.add_row(safe(row["teacher"]), safe(row["objective"]), *(cell.replace("nan", "-") for cell in cells))
    output.print(table)
    output.print("By question: mean over questions of incorrect less correct; p by flipping signs of whole questions.")
    if wide:
        output.print("[dim]* taken node by node, as if nodes of one question were independent, which they are not.[/]")
    if found.one_kind:
        output.print(f"[dim]{found.one_kind} questions have one kind of path only, and say nothing of the difference.[/]")
    output.print(
        "[dim]--out writes weighted and pooled cosines too, p adjusted for the whole table (Benjamini-Hochberg), effect sizes, and "
        "tests over nodes as if they were independent.[/]"
    )


def print_reweighting(found: RewardReweighting) -> None:
    """Gain over beta for each teacher, what it is above plain matching, and a sentence for each."""
    table = Table(
        title=f"Matching a teacher reweighted by reward, over {found.questions} questions", box=SIMPLE_HEAD, padding=(0, 1)
    )
    table.add_column("teacher", no_wrap=True)
    for head in ("beta", "gain", "above plain matching [95%]"):
        table.add_column(head, justify="right", no_wrap=True)
    show, less = _formatter(found.frame, "gain"), _formatter(found.frame, "difference")
    before = None
    for row in found.frame.to_dict("records"):
        plain = np.isinf(row["beta"])
        above = "" if plain else f"{less(row['difference'])} {_interval(row, 'difference', less)}"
        name = safe(row["teacher"]) if row["teacher"] != before else ""
        table.add_row(name, "plain" if plain else f"{row['beta']:g}", show(row["gain"]), above)
        before = row["teacher"]
    output.print(table)
    for teacher, words in found.summary.items():
        output.print(f"{safe(teacher)} {safe(words)}.")
    _print_self_against_external(found)
    rollouts = "one rollout" if found.samples == 1 else f"{found.samples} rollouts"
    output.print(f"[dim]Success of a token is taken to be known from {rollouts} (--samples). {CAVEAT}[/]")


def _print_self_against_external(found: RewardReweighting) -> None:
    """What tells a self-teacher from an external one, and which of the two leads."""
    table = Table(title="The student itself under a context, or another model?", box=SIMPLE_HEAD, padding=(0, 1))
    for head in ("teacher", "kind"):
        table.add_column(head, overflow="fold")
    for head in ("KL, nats a rollout", "its own success", "pair information"):
        table.add_column(head, justify="right", no_wrap=True)
    for row in found.teachers.to_dict("records"):
        cells = (
            f"{row['kl']:.3g}",
            _percent(row["success"]),
            "-" if pd.isna(row["pair_information"]) else f"{row['pair_information']:.2f}",
        )
        table.add_row(safe(row["teacher"]), row["kind"], *cells)
    output.print(table)
    for verdict in found.verdicts:
        output.print(f"{safe(verdict)}.")
    if not found.verdicts:
        output.print("[dim]To compare, score contexts (--teacher ctx:…) and other models (--teacher model:…) in one run.[/]")
    if found.teachers["success"].isna().any():
        output.print(
            "[dim]A dash: `gradalign score --teacher-rollouts` measures success, an objective pbsd:BETA the pairs' information.[/]"
        )


def _percent(share: float) -> str:
    return "-" if pd.isna(share) else f"{100 * share:.0f}%"


def _print_remarks(warnings: Sequence[str], notes: Sequence[str], all_shown: bool) -> None:
    for warning in warnings:
        output.print(f"[yellow]! {safe(warning)}[/]")
    for note in notes:
        output.print(f"[dim]· {safe(note)}[/]")
    if not all_shown:
        output.print(f"[dim]· a terminal of {_WIDTH_FOR_ALL} columns shows the other scores too[/]")
    output.print(f"[dim]{CAVEAT}[/]")


def standing_table(standing: Standing, spent: tuple[int, int], rows: int) -> Table:
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
        table.add_column(f"{_HEADS[name]} [95%]", justify="right", no_wrap=True)
    show = {name: _decimals(np.stack(values), _SCALE.get(name, 1.0)) for name, values in columns.items()}
    for m in order:
        cells = [
            rf"{show[name](score[m])} \[{show[name](low[m])}, {show[name](high[m])}]"
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


def _formatter(frame: pd.DataFrame, name: str) -> Callable[[float], str]:
    """Numbers of a column with as many decimals as its largest needs for three digits; a missing one as a dash."""
    return _decimals(frame[[name, f"{name}_low", f"{name}_high"]].to_numpy(), _SCALE.get(name, 1.0))


def _decimals(values: np.ndarray, scale: float) -> Callable[[float], str]:
    largest = np.abs(values) * scale
    top = np.nanmax(largest) if np.isfinite(largest).any() else 1.0
    decimals = int(np.clip(2 - np.floor(np.log10(max(top, 1e-6))), 0, 8))
    return lambda value: "-" if pd.isna(value) else f"{value * scale:+.{decimals}f}"


def _interval(row: dict, name: str, show: Callable[[float], str]) -> str:
    """The two ends stored beside a score."""
    return rf"\[{show(row[f'{name}_low'])}, {show(row[f'{name}_high'])}]"
