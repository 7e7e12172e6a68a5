"""When a run may stop: looks at the standing that are few and known beforehand, and what each may conclude."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gradalign.findings import Standing
from gradalign.pipeline.budget import Budget, Effort

FIRST_LOOK = 32
_FIRST_SHARE = 0.8
_PASSES = (0.25, 0.5, 1.0)


def passes(effort: Effort) -> list[Budget]:
    """The budgets that a run goes through in turn: a quarter, a half and the whole where it may stop, else the whole at once.

    Tokens count base rollouts too, of which a part of the budget might pay for nothing else: they are spent at once.
    """
    if not effort.sequential or effort.budget.unit == "tokens":
        return [effort.budget]
    budgets = [effort.budget.times(share) for share in _PASSES]
    return [budget for i, budget in enumerate(budgets) if budget not in budgets[:i]]


def looks(questions: int) -> list[int]:
    """Numbers of scored questions at which the first pass is looked at: 32, 64, 128, ... and all."""
    counts = []
    count = FIRST_LOOK
    while count < questions:
        counts.append(count)
        count *= 2
    return [*counts, questions]


@dataclass(eq=False)
class Watch:
    """Looks at a run as it grows and says when it has reached its goal.

    To decide, the pair that leads must beat every other at the one-sided level of the look, over the number of others. The looks share
    alpha, each with twice the share of the one before, since each knows about twice as much: whatever the number of looks and of
    pairs, the chance to name one that is not the best is at most alpha, as far as t intervals keep their level (Bonferroni). A pair
    beaten at any look is dropped: it can no longer win, and no rollout is spent for it. Nothing is concluded before every one of
    `pairs` can be compared on `FIRST_LOOK` questions, or on all there are.

    Each look is kept under its name and, when a run goes on, taken as it was. When a finished run is asked again with more budget,
    its new looks share what the earlier ones left of alpha: four fifths for the first time, then four fifths of the rest.
    """

    effort: Effort
    looks_in_all: int
    pairs: int
    questions: int
    before: Mapping[str, Any] = field(default_factory=dict)
    dropped: set[tuple[str, str]] = field(default_factory=set)
    stopped: str = ""
    winner: tuple[str, str] | None = None
    taken: dict[str, dict[str, Any]] = field(default_factory=dict)
    time: int = 0

    def __post_init__(self) -> None:
        """Take up the looks of a run that goes on with the same goal; begin anew, with less of alpha, after one that ended."""
        if self.before.get("goal") == self.goal and not self.before.get("ended", True):
            self.taken, self.time = dict(self.before["looks"]), int(self.before["time"])
        elif self.before.get("goal", {}).get("decide") is not None:
            self.time = int(self.before["time"]) + 1

    @property
    def goal(self) -> dict[str, Any]:
        """What was asked of the run."""
        return {"precision": self.effort.precision, "decide": self.effort.decide, "budget": str(self.effort.budget)}

    def look(self, name: str, standing: Standing) -> bool:
        """Look once, or remember the look of that name; True if the run may stop."""
        if name not in self.taken:
            self.taken[name] = self._find(standing)
        found = self.taken[name]
        self.dropped |= {(teacher, objective) for teacher, objective in found["beaten"]}
        self.winner = tuple(found["winner"]) if found["winner"] else None
        self.stopped = found["stopped"]
        return bool(self.stopped)

    def _find(self, standing: Standing) -> dict[str, Any]:
        nothing = {"beaten": [], "winner": None, "stopped": ""}
        if len(standing.keys) < self.pairs or len(standing.questions) < min(FIRST_LOOK, self.questions):
            return nothing
        if self.effort.decide is not None:
            return self._decide(standing, self.effort.decide)
        assert self.effort.precision is not None
        low, high = standing.interval("gain")
        widest = float(np.nanmax((high - low) / 2)) if np.isfinite(high).any() else np.inf
        return nothing | {"stopped": f"every gain is known to within {widest:.2g}" if widest <= self.effort.precision else ""}

    def _decide(self, standing: Standing, confidence: float) -> dict[str, Any]:
        alpha = (1 - confidence) * _FIRST_SHARE * (1 - _FIRST_SHARE) ** self.time
        share = 2.0 ** len(self.taken) / (2.0**self.looks_in_all - 1)
        lost = standing.beaten("drive", alpha * share / max(len(standing.keys) - 1, 1))
        beaten = {key for key, below in zip(standing.keys, lost, strict=True) if below}
        left = [key for key in standing.keys if key not in self.dropped | beaten]
        leads = standing.keys[int(np.nanargmax(standing.score("drive")))]
        won = left == [leads]
        return {
            "beaten": sorted(map(list, beaten)),
            "winner": list(leads) if won else None,
            "stopped": f"{' '.join(leads)} is best with confidence {confidence:g}" if won else "",
        }

    def verdict(self, standing: Standing, spent: Sequence[int], ended: bool) -> dict[str, Any]:
        """What the run has come to, for outcome.json."""
        return {
            "goal": self.goal,
            "ended": ended,
            "stopped": self.stopped,
            "winner": None if self.winner is None else list(self.winner),
            "dropped": sorted(map(list, self.dropped)),
            "questions": len(standing.questions),
            "rollouts": spent[0],
            "tokens": spent[1],
            **_widths(standing),
            "time": self.time,
            "looks": self.taken,
        }


def _widths(standing: Standing) -> dict[str, float | None]:
    """The widest half-width of a gain's interval, and about what would be left of it with endless rollouts on these questions."""
    if len(standing.questions) < 2:
        return {"gain_half_width": None, "gain_half_width_left": None}
    low, high = standing.interval("gain")
    half, noise = (high - low) / 2, 1.96 * standing.noise("gain")
    if not np.isfinite(half).any():
        return {"gain_half_width": None, "gain_half_width_left": None}
    widest = int(np.nanargmax(half))
    left = np.sqrt(np.maximum(half[widest] ** 2 - np.nan_to_num(noise[widest]) ** 2, 0.0))
    return {"gain_half_width": float(half[widest]), "gain_half_width_left": float(left)}
