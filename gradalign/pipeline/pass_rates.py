"""Ranges of pass rates as users write them. Knows no rollout."""

import re
from dataclasses import dataclass

from gradalign.types import GradalignError

_FORM = re.compile(r"pass_rate:(\d+(?:\.\d+)?|\.\d+)-(\d+(?:\.\d+)?|\.\d+)")


@dataclass(frozen=True)
class PassRates:
    """The pass rates of questions that are kept, both ends with them; `text` is how the user wrote them."""

    low: float
    high: float
    text: str


def parse_filter(text: str) -> PassRates:
    """`pass_rate:0.1-0.9` as a range of pass rates."""
    form = _FORM.fullmatch(text.strip())
    if form is None or not float(form[1]) <= float(form[2]) <= 1:
        raise GradalignError(
            f"filter {text!r} is not understood; write pass_rate:LOW-HIGH between 0 and 1, as pass_rate:0.1-0.9"
        )
    return PassRates(float(form[1]), float(form[2]), f"{form[1]}-{form[2]}")
