"""Ours against what people do today, as rows of one table: what a benchmark of speed tells `bench.py`, which asks for it."""

import json
import os
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

ASKED = "GRADALIGN_COMPARISONS"  # names the file that comparisons are to be added to


@dataclass(frozen=True)
class Comparison:
    """What was measured of ours, turn by turn, and in the same turns of a baseline; without one, `bar` is for ours itself.

    The ratio is ours over the baseline's, of turns that lie side by side where there are as many of both, else of medians; where `more` is
    better, the bar is the least that there may be, else the most.
    """

    what: str
    unit: str
    ours: list[float]
    against: str = ""
    theirs: list[float] = field(default_factory=list)
    bar: float | None = None
    more: bool = False

    @property
    def ratios(self) -> list[float]:
        if not self.theirs:
            return []
        if len(self.ours) == len(self.theirs):
            return [mine / other for mine, other in zip(self.ours, self.theirs, strict=True)]
        return [statistics.median(self.ours) / statistics.median(self.theirs)]

    @property
    def met(self) -> bool | None:
        """Is the bar kept? None where there is none."""
        if self.bar is None:
            return None
        value = statistics.median(self.ratios or self.ours)
        return value >= self.bar if self.more else value <= self.bar

    def cells(self) -> list[str]:
        """The row: what, unit, ours, the baseline and its figure, ratio, bar, whether it is kept."""
        bar = "" if self.bar is None else f"{'≥' if self.more else '≤'} {self.bar:g}"
        kept = {None: "", True: "yes", False: "no"}[self.met]
        return [self.what, self.unit, spread(self.ours), self.against, spread(self.theirs), spread(self.ratios), bar, kept]


def spread(values: Sequence[float]) -> str:
    """Median, and the smallest and largest where there are several."""
    if not values:
        return ""
    told = [
        f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
        for value in (statistics.median(values), min(values), max(values))
    ]
    return told[0] if len(values) == 1 else f"{told[0]} ({told[1]} to {told[2]})"


def tell(comparisons: Sequence[Comparison]) -> None:
    """Hand comparisons to `bench.py`, if it asked."""
    if place := os.environ.get(ASKED):
        Path(place).write_text(json.dumps([asdict(comparison) for comparison in comparisons]))
