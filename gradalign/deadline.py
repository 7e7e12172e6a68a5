"""A bound on the time of templates that come with models. Knows how Jinja names its code, and nothing of what a template says."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SECONDS = 3.0
_TEMPLATE = "<template>"  # what Jinja gives as the file of a template that is none


@contextmanager
def templates_end(seconds: float = SECONDS) -> Iterator[None]:
    """TimeoutError in any Jinja template that is still at work in this thread after so long.

    Loops and macros are stopped at their next line. One operation that is long in itself, such as the repetition of a text, is not.
    """
    end, before = time.monotonic() + seconds, sys.gettrace()

    def at_line(frame: FrameType, event: str, argument: Any) -> Any:
        if time.monotonic() > end:
            raise TimeoutError(f"it took longer than {seconds:g} s")
        return at_line

    def at_call(frame: FrameType, event: str, argument: Any) -> Any:
        return at_line if frame.f_code.co_filename == _TEMPLATE else None

    sys.settrace(at_call)
    try:
        yield
    finally:
        sys.settrace(before)
