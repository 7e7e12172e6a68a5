"""Untrusted text made fit to be looked at: what a terminal or a browser would obey instead of showing is replaced."""

import logging
import re

# Control characters but tab and newline, the marks that turn the direction of writing, and halves of characters, which cannot be printed.
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_COLOURS = re.compile("\x1b\\[[0-9;]*m")


def visible(text: str) -> str:
    """The text with a replacement character for each one that would be obeyed and not shown."""
    return _OBEYED.sub("\ufffd", text)


class VisibleLogs(logging.Filter):
    """Makes what a handler shows fit to be looked at: messages may hold names that stand in files. Colours, as libraries set them, go."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = visible(_COLOURS.sub("", record.getMessage())), ()
        return True
