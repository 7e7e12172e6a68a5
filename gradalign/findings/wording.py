"""What is common to the tables of scores: names of the scores, their scale, and the sentences below them."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from gradalign.findings.foretold import FORETOLD
from gradalign.findings.notes import CAVEAT
from gradalign.findings.validated import validated
from gradalign.sheets import Remark, interval, signed

SCORE_HEADS = {
    "foretold": "foretold, points",
    "first_step": "step at 1e-4, points",
    "transfer_drive": "transfer drive ·10³",
    "transfer": "transfer",
    "drive": "drive ·10³",
    "gain": "gain",
    "pooled_cosine": "pooled cos",
    "weighted_cosine": "weighted cos",
    "mean_cosine": "mean cos",
    "teacher_advantage": "advantage ·10³",
}
TIES = "'=' marks what cannot be told from the best (95% interval of the paired difference)."
SCORE_SCALE = {"foretold": 1e2, "first_step": 1e-2, "transfer_drive": 1e3, "drive": 1e3, "teacher_advantage": 1e3}


def score_formats(frame: pd.DataFrame, names: Iterable[str]) -> dict[str, Callable[[float], str]]:
    """A format for each score that fits its values and the ends of its intervals."""
    return {
        name: signed(np.asarray(frame[[name, f"{name}_low", f"{name}_high"]], dtype=np.float64), SCORE_SCALE.get(name, 1.0))
        for name in names
    }


def other_scores(frame: pd.DataFrame, by: str) -> list[str]:
    """The scores beside the ordering one; what first steps say only where they are known."""
    known = {name for name in FORETOLD if bool(frame[name].notna().any())}
    return [name for name in SCORE_HEADS if name != by and (name in known or name not in FORETOLD)]


def score_interval(row: dict[str, Any], name: str, show: Callable[[float], str]) -> str:
    """The ends of the interval that stand beside a number in its row."""
    return interval(row[f"{name}_low"], row[f"{name}_high"], show)


def score_cell(row: dict[str, Any], name: str, show: Callable[[float], str]) -> str:
    """A number with its interval; a missing one is a dash."""
    return "-" if np.isnan(row[name]) else f"{show(row[name])} {score_interval(row, name, show)}"


def placed(place: int, tied: bool) -> str:
    """A place in a ranking, marked where it cannot be told from the first."""
    return f"{place}{'=' if tied and place > 1 else ''}"


def remarks(warnings: Sequence[str], notes: Sequence[str], by: str | None = None) -> tuple[Remark, ...]:
    """Warnings, what was counted, what scores are, and how well what is ranked by came true."""
    return (
        *(Remark(warning, "warning") for warning in warnings),
        *(Remark(note, "note") for note in notes),
        *([Remark(validated(), "note")] if by in FORETOLD else []),
        Remark(CAVEAT, "note"),
    )
