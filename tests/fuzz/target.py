"""A fuzz target: how cases are made, what reads them, and what counts as a failure. Knows no parser."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gradalign_cli.console import line_of
from hypothesis.strategies import SearchStrategy

from gradalign.types import GradalignError

Verdict = Literal["success", "refused", "not read"]
SECONDS = 5.0
_LONGEST = 2000
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class Broken(AssertionError):
    """A fault was refused in a way that a user should not see."""


class NotRead(Exception):
    """A case that no parser was given; it counts for nothing."""


@dataclass(frozen=True)
class Target:
    """`read` takes a case and an empty folder that it may write into. A case is bytes, so that it can be stored, mutated and replayed.

    `share` is the part of a campaign's cases, relative to other targets; `seeds` are cases where mutation begins. `whole`, or else the
    first seed, is one that is read with success: a target that refuses it tries nothing. What `read` raises other than `GradalignError`
    is a failure, and so is what takes longer than SECONDS.
    """

    name: str
    cases: SearchStrategy[bytes]
    read: Callable[[bytes, Path], None]
    share: float = 1.0
    seeds: Sequence[bytes] = ()
    guided: bool = True  # may libFuzzer mutate it too
    whole: Callable[[], bytes] | None = None


def verdict(target: Target, case: bytes, folder: Path) -> Verdict:
    """How a case ends; raises what is a failure."""
    try:
        target.read(case, folder)
    except GradalignError as error:
        _check_line(error)
        return "refused"
    except NotRead:
        return "not read"
    return "success"


def _check_line(error: GradalignError) -> None:
    """What the command line prints of an error is one line of bounded length that a terminal only shows."""
    shown = line_of(error)
    if _CONTROL.search(shown):
        raise Broken(f"the line holds what a terminal obeys: {shown!r}")
    if not shown:
        raise Broken("the line is empty")
    if len(shown) > _LONGEST:
        raise Broken(f"the line has {len(shown):,} characters: {shown[:200]!r}…")
