"""A finding as people read it: a table of text with a title and remarks, for the terminal, the report and Jupyter alike.

Cells are plain, untrusted text; whoever shows a sheet escapes it. Knows no file, no terminal and no score.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

import numpy as np

from gradalign.visible import visible

Kind = Literal["plain", "warning", "note"]


@dataclass(frozen=True)
class Head:
    """A column: its name, whether it holds numbers, whether it is the one to look at, and whether it can go where space is short."""

    text: str
    number: bool = True
    strong: bool = False
    spare: bool = False


@dataclass(frozen=True)
class Remark:
    """A sentence below a table."""

    text: str
    kind: Kind = "plain"


@dataclass(frozen=True)
class Sheet:
    """A table of text, each row as long as `heads`, and what has to be said with it."""

    title: str
    heads: tuple[Head, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    remarks: tuple[Remark, ...] = ()

    def html(self) -> str:
        """The sheet as an HTML fragment, everything in it escaped."""
        head = "".join(f'<th scope="col"{_class(h)}>{_text(h.text)}</th>' for h in self.heads)
        body = "".join(
            f"<tr>{''.join(f'<td{_class(h)}>{_text(cell)}</td>' for h, cell in zip(self.heads, row, strict=True))}</tr>"
            for row in self.rows
        )
        table = f"<table><caption>{_text(self.title)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        said = "".join(f'<p class="{remark.kind}">{_text(remark.text)}</p>' for remark in self.remarks)
        region = f'<div class="scroll" tabindex="0" role="region" aria-label="{_text(self.title)}">{table}</div>'
        return (region if self.heads else "") + said

    def _repr_html_(self) -> str:
        return self.html()


class Shown:
    """What Jupyter shows of a finding: its sheets."""

    def sheets(self) -> Sequence[Sheet]:
        """The finding as tables."""
        raise NotImplementedError

    def _repr_html_(self) -> str:
        return "".join(sheet.html() for sheet in self.sheets())


def signed(values: np.ndarray | Sequence[float], scale: float = 1.0) -> Callable[[float], str]:
    """A format for numbers of a column, with as many decimals as its largest needs for three digits; a missing one is a dash."""
    largest = np.abs(np.asarray(values, dtype=np.float64)) * scale
    top = np.nanmax(largest) if np.isfinite(largest).any() else 1.0
    decimals = int(np.clip(2 - np.floor(np.log10(max(top, 1e-6))), 0, 8))
    return lambda value: "-" if np.isnan(value) else f"{value * scale:+.{decimals}f}"


def number(value: float, form: str) -> str:
    """A number in a format of Python's; a missing one is a dash."""
    return "-" if np.isnan(value) else format(value, form)


def percent(share: float) -> str:
    """A share in whole hundredths."""
    return "-" if np.isnan(share) else f"{100 * share:.0f}%"


def interval(low: float, high: float, show: Callable[[float], str]) -> str:
    """The two ends of an interval."""
    return f"[{show(low)}, {show(high)}]"


def _class(head: Head) -> str:
    names = [name for name, holds in (("number", head.number), ("strong", head.strong)) if holds]
    return f' class="{" ".join(names)}"' if names else ""


def _text(text: str) -> str:
    return escape(visible(text))
