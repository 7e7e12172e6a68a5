"""A bound on the time of templates that come with models. Knows how Jinja names its code, and nothing of what a template says."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SECONDS = 3.0
_TEMPLATE = "<template>"  # what Jinja gives as the file of a template that is none
_VALUES = {
    f"jinja2.{name}" for name in ("filters", "runtime", "sandbox", "tests", "utils")
}  # of Jinja, what works on a template's values


class _Late(BaseException):
    """No Exception, since Jinja drops those of what it computes as it compiles."""


@contextmanager
def templates_end(seconds: float = SECONDS) -> Iterator[None]:
    """TimeoutError in any Jinja template that is still at work in this thread after so long.

    Loops and macros are stopped at their next line, and so are Jinja's filters and globals, also as it compiles. One operation that is
    long in itself, such as the repetition of a text or a power, is not. Nothing is raised in other code that may run meanwhile: what a
    callback of the garbage collector raises is dropped, and with it the trace.
    """
    end, before = time.monotonic() + seconds, sys.gettrace()

    def at_line(frame: FrameType, event: str, argument: Any) -> Any:
        if time.monotonic() > end:
            raise _Late
        return at_line

    def at_call(frame: FrameType, event: str, argument: Any) -> Any:
        return at_line if _on_values(frame) else None

    sys.settrace(at_call)
    try:
        yield
    except _Late:
        raise TimeoutError(f"it took longer than {seconds:g} s") from None
    finally:
        sys.settrace(before)


def _on_values(frame: FrameType) -> bool:
    """Is this the code of a template, or of Jinja where it works for one? What reads and compiles one takes as long as it is."""
    return frame.f_code.co_filename == _TEMPLATE or frame.f_globals.get("__name__") in _VALUES
