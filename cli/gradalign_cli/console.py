"""The two consoles, and text made safe for a terminal."""

from rich.console import Console
from rich.markup import escape

from gradalign.visible import visible

output = Console()
errors = Console(stderr=True)


def safe(text: str) -> str:
    """Untrusted text for the terminal: nothing in it is obeyed, and no markup is read from it."""
    return escape(visible(text))


class Interrupted(Exception):
    """Ctrl-C while work was under way."""
