"""Untrusted text made fit to be looked at: what a terminal or a browser would obey instead of showing is replaced."""

import re

# Control characters but tab and newline, the marks that turn the direction of writing, and halves of characters, which cannot be printed.
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    """The text with a replacement character for each one that would be obeyed and not shown."""
    return _OBEYED.sub("\ufffd", text)
