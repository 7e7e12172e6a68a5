"""Jinja without trust: names that a template uses, and its text, of bounded length.

Imported for the templates of this package; run as a script it is the process in which templates of users are rendered (`apart`), where
time and memory can be bounded too. Knows Jinja and nothing of this package.
"""

import json
import sys
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from jinja2 import StrictUndefined, Template, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

LONGEST = 1_000_000  # characters
_MEMORY = 1 << 30  # bytes of address space, of which Python and Jinja take a few hundredths
_ENVIRONMENT = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=False, autoescape=False)


def names_used(source: str) -> list[str]:
    """Variables that a template needs from outside, sorted. Raises what Jinja raises."""
    return sorted(meta.find_undeclared_variables(_ENVIRONMENT.parse(source)))


def render(source: str, variables: Mapping[str, Any]) -> str:
    """The text of a template; OverflowError where it is longer than LONGEST, else whatever the template provokes."""
    pieces, length = [], 0
    for piece in _compiled(source).generate(**variables):
        length += len(piece)
        if length > LONGEST:
            raise OverflowError(f"it makes more than {LONGEST:,} characters")
        pieces.append(piece)
    return "".join(pieces)


@lru_cache(maxsize=64)
def _compiled(source: str) -> Template:
    return _ENVIRONMENT.from_string(source)


def _answer(line: str) -> dict[str, Any]:
    asked = json.loads(line)
    try:
        if asked["variables"] is None:
            return {"found": names_used(asked["source"])}
        return {"found": render(asked["source"], asked["variables"])}
    except MemoryError:
        return {"fault": "it needs too much memory"}
    except Exception as error:  # a template can fail in any way
        return {"fault": (str(error).strip() or type(error).__name__).splitlines()[0][:300]}


def main() -> None:
    """Answer one line of JSON with another until there are no more."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    except (ImportError, OSError, ValueError):
        pass  # not every system has it; time is bounded from outside all the same
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(_answer(line)), flush=True)


if __name__ == "__main__":
    main()
