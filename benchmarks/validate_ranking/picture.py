"""Foretold against measured change of success, a dot each configuration."""

from pathlib import Path

import matplotlib as mpl
import pandas as pd
from judging import measured, told_by
from matplotlib.figure import Figure
from settings import HORIZONS, SETS

_COLOURS = dict(zip(SETS, ("#0072b2", "#d55e00", "#009e73"), strict=True))


def draw(predictions: pd.DataFrame, training: pd.DataFrame, rate: float, place: Path) -> None:
    """A row of panels for each student, one for each horizon; leaks are crosses, and on the line what is foretold comes true."""
    found = measured(training[training["rate"] == rate]).merge(predictions, on=["questions", "student", "configuration"])
    students = sorted(found["student"].unique(), reverse=True)
    figure = Figure(figsize=(12, 3.1 * len(students) + 0.4), layout="constrained")
    panels = figure.subplots(len(students), len(HORIZONS), squeeze=False)
    for student, row in zip(students, panels, strict=True):
        for steps, panel in zip(HORIZONS, row, strict=True):
            panel.axline((0, 0), slope=1, color="#777777", linestyle="--", linewidth=1)
            mine = found[(found["student"] == student) & (found["steps"] == steps)]
            for (questions, leaks), group in mine.groupby(["questions", "leaks"]):
                told = 100 * told_by("foretold", group, rate, steps)
                marker, label = ("x", None) if leaks else ("o", questions)
                panel.scatter(
                    told, 100 * group["change"], s=22, marker=marker, color=_COLOURS[questions], alpha=0.8, label=label
                )
            panel.set_title(f"{student} student, {steps} step{'s' if steps > 1 else ''}", fontsize=10)
        row[0].set_ylabel("measured change, points")
    for panel in panels[-1]:
        panel.set_xlabel("foretold change, points")
    panels[0][0].legend(fontsize=8, frameon=False)
    with mpl.rc_context({"svg.hashsalt": "validation"}):
        figure.savefig(place, metadata={"Date": None, "Creator": None})
