"""When a run may stop: looks at the standing that are few and known beforehand, and what each may conclude."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gradalign.findings import Standing
from gradalign.pipeline.budget import Budget, Effort

FIRST_LOOK = 16
_PASSES = (0.25, 0.5, 1.0)


def passes(effort: Effort) -> list[Budget]:
    """The budgets that a run goes through in turn: the whole at once, or a quarter, a half and the whole where it may stop."""
    if not effort.sequential:
        return [effort.budget]
    budgets = [effort.budget.times(share) for share in _PASSES]
    return [budget for i, budget in enumerate(budgets) if budget not in budgets[:i]]


def looks(questions: int) -> list[int]:
    """Numbers of scored questions at which the first pass is looked at: 16, 32, 64, ... and all."""
    counts = []
    count = FIRST_LOOK
    while count < questions:
        counts.append(count)
        count *= 2
    return [*counts, questions]


@dataclass(eq=False)
class Watch:
    """Looks at a run as it grows and says when it has reached its goal.

    To decide, the pair that leads must beat every other at one-sided level alpha / (looks x others): so whatever the number of looks and
    of pairs, the chance to name one that is not the best is at most alpha (Bonferroni). A pair beaten at any look is dropped:
    it can no longer win, and no rollout is spent for it.
    """

    effort: Effort
    looks_in_all: int
    dropped: set[tuple[str, str]] = field(default_factory=set)
    stopped: str = ""
    winner: tuple[str, str] | None = None

    def look(self, standing: Standing) -> bool:
        """Look once; True if the run may stop."""
        if self.effort.decide is not None:
            self._decide(standing, self.effort.decide)
        elif self.effort.precision is not None:
            self._measure(standing, self.effort.precision)
        return bool(self.stopped)

    def _decide(self, standing: Standing, confidence: float) -> None:
        tail = (1 - confidence) / (self.looks_in_all * max(len(standing.keys) - 1, 1))
        beaten = standing.beaten("drive", tail)
        self.dropped |= {key for key, lost in zip(standing.keys, beaten, strict=True) if lost}
        left = [key for key in standing.keys if key not in self.dropped]
        if len(left) == 1 and len(standing.keys) > 1:
            self.winner = left[0]
            self.stopped = f"{' '.join(left[0])} is best with confidence {confidence:g}"

    def _measure(self, standing: Standing, precision: float) -> None:
        low, high = standing.interval("gain")
        widest = float(np.nanmax((high - low) / 2)) if np.isfinite(high).any() else np.inf
        if widest <= precision:
            self.stopped = f"every gain is known to within {widest:.2g}"

    def verdict(self, standing: Standing, spent: Sequence[int]) -> dict[str, Any]:
        """What the run ended with, for outcome.json."""
        return {
            "goal": {"precision": self.effort.precision, "decide": self.effort.decide, "budget": str(self.effort.budget)},
            "stopped": self.stopped,
            "winner": None if self.winner is None else list(self.winner),
            "dropped": sorted(map(list, self.dropped)),
            "questions": len(standing.questions),
            "rollouts": spent[0],
            "tokens": spent[1],
            **_widths(standing),
        }


def _widths(standing: Standing) -> dict[str, float | None]:
    """The widest half-width of a gain's interval, and about what would be left of it with endless rollouts on these questions."""
    low, high = standing.interval("gain")
    half, noise = (high - low) / 2, 1.96 * standing.noise("gain")
    if not np.isfinite(half).any():
        return {"gain_half_width": None, "gain_half_width_left": None}
    widest = int(np.nanargmax(half))
    left = np.sqrt(np.maximum(half[widest] ** 2 - np.nan_to_num(noise[widest]) ** 2, 0.0))
    return {"gain_half_width": float(half[widest]), "gain_half_width_left": float(left)}
