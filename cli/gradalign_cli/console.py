"""The two consoles, and text made safe for a terminal."""

from rich.console import Console
from rich.markup import escape

from gradalign.visible import visible

_LONGEST = 1000
output = Console()
errors = Console(stderr=True)


def safe(text: str) -> str:
    """Untrusted text for the terminal: nothing in it is obeyed, and no markup is read from it."""
    return escape(visible(text))


def line_of(error: Exception) -> str:
    """What an error says, in one line for the terminal; the middle of a very long one is left out."""
    said = " ".join(str(error).split())
    if len(said) > _LONGEST:
        said = f"{said[: _LONGEST // 2]} […] {said[-_LONGEST // 2 :]}"
    return safe(said)


class Interrupted(Exception):
    """Ctrl-C while work was under way."""
