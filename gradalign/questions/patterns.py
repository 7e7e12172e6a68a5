"""Answers that are patterns of re2: matched in time linear in the text. Patterns come from question files, and are untrusted too."""

from functools import lru_cache
from typing import Any

import re2

_MEMORY = 1 << 20  # bytes that a compiled pattern may take


def matches(pattern: str, said: str) -> bool:
    """Does the pattern match the whole stated answer, with or without a full stop and quotation marks around it?"""
    compiled = _compiled(pattern)
    said = said.encode("utf-8", "replace").decode()
    return any(compiled.fullmatch(text) is not None for text in (said, said.strip(" .\"'*`")))


def pattern_fault(pattern: str) -> str | None:
    """Why the pattern cannot be used; None if it can."""
    try:
        _compiled(pattern)
    except (re2.error, UnicodeEncodeError) as error:
        reason = error.args[0] if error.args else error
        reason = reason.decode("utf-8", "replace") if isinstance(reason, bytes) else str(reason)
        return f"the pattern {pattern[:80]!r} is not in re2's language ({' '.join(reason.split())[:80]})"
    return None


@lru_cache(maxsize=1024)
def _compiled(pattern: str) -> Any:
    options = re2.Options()
    options.log_errors = False
    options.max_mem = _MEMORY
    return re2.compile(pattern, options)
