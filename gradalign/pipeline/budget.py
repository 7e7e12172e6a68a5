"""How much may be sampled, and when to stop: budgets, a wanted precision, a decision. Rows of a run say how far it went."""

import math
import re
from dataclasses import dataclass
from typing import Literal

from gradalign.pipeline.targeted import Allowance
from gradalign.types import GradalignError

Unit = Literal["rollouts-per-question", "tokens"]
_FORM = re.compile(r"(\d+(?:\.\d+)?)([kKmM]?)(?:-(rollouts-per-question|tokens))?")
_MOST = 2**53  # past it numbers of tokens are no longer exact
_SCALES = {"": 1, "k": 1_000, "m": 1_000_000}


@dataclass(frozen=True)
class Budget:
    """Targeted rollouts for each question, or tokens sampled in the whole run (base rollouts and demonstrations among them)."""

    amount: int = 64
    unit: Unit = "rollouts-per-question"

    def allowance(self, questions: int, spent: int) -> Allowance:
        """What one of `questions` questions may spend on targeted rollouts, having spent `spent` tokens on others."""
        if self.unit == "tokens":
            return Allowance(max(self.amount / questions - spent, 0.0), True)
        return Allowance(float(self.amount))

    def times(self, factor: float) -> "Budget":
        """A budget of the same kind, `factor` times as large."""
        return Budget(max(1, round(self.amount * factor)), self.unit)

    def __str__(self) -> str:
        return f"{self.amount}-{self.unit}"


def parse_budget(text: str) -> Budget:
    """`64`, `64-rollouts-per-question` or `200k-tokens`."""
    form = _FORM.fullmatch(text.strip())
    amount = float(form[1]) * _SCALES[form[2].lower()] if form else 0.0
    if not form or not 1 <= amount <= _MOST or amount != int(amount):
        raise GradalignError(f"budget {text!r} is not understood; write 64-rollouts-per-question or 200k-tokens")
    return Budget(int(amount), "tokens" if form[3] == "tokens" else "rollouts-per-question")


@dataclass(frozen=True)
class Effort:
    """How far a run goes: its budget, and whether it may stop earlier.

    `precision`: as soon as the 95% interval of every gain is at most this half-width. `decide`: as soon as one teacher and objective
    is best with this confidence, held over all looks together. Without either the whole budget is spent.
    """

    budget: Budget = Budget()
    precision: float | None = None
    decide: float | None = None

    def __post_init__(self) -> None:
        """Refuse goals that make no sense, in a line each."""
        if self.precision is not None and not 0 < self.precision < math.inf:
            raise GradalignError(f"precision is {self.precision}; it must be above 0 (the half-width of the interval of gain)")
        if self.decide is not None and not 0.5 < self.decide < 1:
            raise GradalignError(f"confidence to decide with is {self.decide}; it must lie between 0.5 and 1, as 0.95")
        if self.precision is not None and self.decide is not None:
            raise GradalignError("give --precision or --decide, not both: each says when to stop")

    @property
    def sequential(self) -> bool:
        """May the run stop before its budget is spent?"""
        return self.precision is not None or self.decide is not None
