"""Figures of the report as SVG text: readable in light and dark, without colour alone telling anything apart. Knows frames, no files."""

# pandas types its results too widely for these rules.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false, reportCallIssue=false
# pyright: reportReturnType=false

import io
import re
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gradalign.visible import visible

# Okabe and Ito's colours, told apart by the colour-blind; every series has a marker of its own too.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8a8a8a")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
MOST = len(COLOURS)
_INK, _LINE = "#010203", "#040506"  # put in the place of the page's own colours
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none", "svg.hashsalt": "gradalign", "text.parse_math": False, "font.size": 10, "font.family": "sans-serif",
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": _LINE, "axes.labelcolor": _INK, "text.color": _INK,
    "xtick.color": _INK, "ytick.color": _INK, "grid.color": _LINE, "axes.grid": True, "grid.linewidth": 0.5, "legend.frameon": False,
}  # fmt: skip


def ranking_figure(frame: pd.DataFrame, scores: Sequence[tuple[str, str]], names: Sequence[str]) -> str:
    """Intervals of some scores (column, label), best first, one row a configuration."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(9, 0.8 + 0.32 * len(frame)), layout="constrained")
        panels = figure.subplots(1, len(scores), sharey=True, squeeze=False)[0]
        y = np.arange(len(frame))[::-1]
        for axes, (column, label) in zip(panels, scores, strict=True):
            _bars(axes, frame, column, y, COLOURS[0], "o")
            axes.axvline(0, color=_INK, linewidth=0.8)
            axes.set_xlabel(label)
        panels[0].set_yticks(y, [_short(name) for name in names])
        return _svg(figure, "ranking")


def paths_figure(frame: pd.DataFrame) -> str:
    """Mean cosine on correct and incorrect paths, and the paired difference with its interval."""
    rows = frame[frame["cosine"] == "mean"].reset_index(drop=True)
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(9, 1.0 + 0.32 * len(rows)), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        y = np.arange(len(rows))[::-1]
        left.hlines(y, rows["correct"], rows["incorrect"], color=_LINE)
        left.plot(rows["correct"], y, "o", color=COLOURS[0], label="correct paths")
        left.plot(rows["incorrect"], y, "^", color=COLOURS[5], label="incorrect paths")
        left.set_xlabel("mean cosine")
        left.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
        _bars(right, rows, "paired", y, COLOURS[0], "o")
        right.axvline(0, color=_INK, linewidth=0.8)
        right.set_xlabel("incorrect less correct, by question")
        left.set_yticks(y, [_short(f"{row['teacher']}, {row['objective']}") for row in rows.to_dict("records")])
        return _svg(figure, "paths")


def profile_figure(frame: pd.DataFrame, teachers: Sequence[str], label: str, salt: str) -> str:
    """Mean cosine over groups of nodes, one line for each of at most `MOST` teachers (of one objective)."""
    groups = list(dict.fromkeys(frame.loc[frame["nodes"] > 0, "group"]))
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(9, 3.4), layout="constrained")
        axes = figure.subplots()
        for i, teacher in enumerate(teachers):
            rows = frame[frame["teacher"] == teacher].set_index("group").reindex(groups)
            x = np.arange(len(groups)) + (i - (len(teachers) - 1) / 2) * 0.08
            values, low, high = (
                rows[name].to_numpy(dtype=np.float64) for name in ("mean_cosine", "mean_cosine_low", "mean_cosine_high")
            )
            spread = np.nan_to_num(np.stack([values - low, high - values]).clip(min=0))
            axes.errorbar(x, values, spread, color=COLOURS[i], marker=MARKERS[i], capsize=2, linewidth=1, label=_short(teacher))
        axes.axhline(0, color=_INK, linewidth=0.8)
        axes.set_xticks(np.arange(len(groups)), [_short(str(group)) for group in groups])
        axes.set_xlabel(label)
        axes.set_ylabel("mean cosine")
        _legend(axes, len(teachers))
        return _svg(figure, salt)


def scatter_figure(frame: pd.DataFrame, teachers: Sequence[str], quantity: str, label: str) -> str:
    """Alignment of nodes against a divergence, a marker for each of at most `MOST` teachers; points are drawn as one picture."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        axes = figure.subplots()
        for i, teacher in enumerate(teachers):
            rows = frame[frame["teacher"] == teacher]
            axes.plot(
                rows[quantity].clip(lower=1e-6), rows["cos"], MARKERS[i], color=COLOURS[i], markersize=3, alpha=0.5, rasterized=True,
                label=_short(teacher),
            )  # fmt: skip
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, place: f"{value:g}")
        axes.set_xlabel(label)
        axes.set_ylabel("alignment")
        axes.axhline(0, color=_INK, linewidth=0.8)
        _legend(axes, len(teachers))
        return _svg(figure, "scatter")


def clarity_figure(curve: pd.DataFrame) -> str:
    """Signal-to-noise ratio over pass rate for one teacher and objective, beside PACED's default weight."""
    known = curve[curve["snr"].notna()]
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(9, 3.0), layout="constrained")
        axes = figure.subplots()
        spread = np.nan_to_num(np.stack([known["snr"] - known["snr_low"], known["snr_high"] - known["snr"]]).clip(min=0))
        axes.errorbar(
            known["pass_rate"], known["snr"], spread, color=COLOURS[0], marker="o", capsize=2, label="signal to noise"
        )
        p = np.linspace(0, 1, 101)
        top = float(np.nanmax(known["snr"])) if len(known) else 1.0
        axes.plot(p, 4 * p * (1 - p) * top, color=COLOURS[5], linestyle="--", label="p (1 - p), scaled")
        axes.set_xlim(0, 1)
        axes.set_xlabel("pass rate p")
        axes.set_ylabel("signal to noise")
        _legend(axes, 2)
        return _svg(figure, "clarity")


def accuracy_figure(frame: pd.DataFrame) -> str:
    """Accuracy of rollouts under each context, by difficulty."""
    groups, teachers = list(dict.fromkeys(frame["group"])), list(dict.fromkeys(frame["teacher"]))
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(9, 0.9 + 0.36 * len(teachers)), layout="constrained")
        axes = figure.subplots()
        y = np.arange(len(teachers))[::-1]
        for i, group in enumerate(groups[:MOST]):
            rows = frame[frame["group"] == group].set_index("teacher").reindex(teachers).reset_index()
            _bars(
                axes,
                rows,
                "accuracy",
                y + (i - (min(len(groups), MOST) - 1) / 2) * 0.14,
                COLOURS[i],
                MARKERS[i],
                _short(str(group)),
            )
        axes.set_yticks(y, [_short(teacher) for teacher in teachers])
        axes.set_xlabel("accuracy")
        _legend(axes, len(groups))
        return _svg(figure, "accuracy")


def _bars(
    axes: Axes, frame: pd.DataFrame, column: str, y: np.ndarray, colour: str, marker: str, label: str | None = None
) -> None:
    """A dot and its interval for every row; a missing one leaves its line empty."""
    value, low, high = (frame[name].to_numpy(dtype=np.float64) for name in (column, f"{column}_low", f"{column}_high"))
    spread = np.nan_to_num(np.stack([value - low, high - value]).clip(min=0))
    axes.errorbar(value, y, xerr=spread, fmt=marker, color=colour, capsize=2, markersize=5, linewidth=1.2, label=label)


def _legend(axes: Axes, count: int) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=max(1, min(count, 4)))


def _short(name: str, most: int = 44) -> str:
    """A name that fits an axis; the table has it whole."""
    text = visible(name).replace("\n", " ")
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _svg(figure: Figure, salt: str) -> str:
    """SVG text for the inside of a page: ids of its own, and the page's colours for lines and words."""
    sink = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": salt}):
        figure.savefig(sink, format="svg", transparent=True, dpi=120, metadata={"Date": None, "Creator": None})
    text = sink.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r'\1 focusable="false" aria-hidden="true"', text, count=1)
    text = re.sub(r'(id="|url\(#|xlink:href="#)', lambda found: f"{found.group(1)}{salt}-", text)
    return text.replace(_INK, "currentColor").replace(_LINE, "var(--line)")
