r"""Where a text states its answer: after a mark, in a box. Knows no kinds of answers. The text is untrusted, and only ever searched.

Hidden reasoning (`<think>`) is not read. What counts is `<answer>...</answer>`; else a box after the last mark ("Answer:", "the answer is",
a heading, GSM8K's `####`), else the line after that mark; else the last box; else the whole text if it is no more than a few words.
Every pattern has bounded repetitions and braces are matched in one pass, so that time is linear in the text.
"""

import re
from dataclasses import dataclass
from itertools import pairwise

TEXT_COMMAND = re.compile(
    r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mbox|operatorname|emph|rm|bf)\s{0,4}\{([^{}]{0,400})\}"
)
_FEW_WORDS = 4
_MARK = re.compile(
    r"answers?[\"'*_\s]{0,8}(?:\([^()\n]{0,40}\)[*_\s]{0,8})?(?:is[*_\s]{0,8})?(?:[:=\uff1a\u2192]|->)"
    r"|answers?\s{1,8}(?:is|are|(?:must|should|would|will)\s{1,8}be)\b"
    r"|answer\s{1,8}to\s{1,8}(?:the|this|that|your)\s{1,8}(?:\w{1,30}\s{1,8}){0,3}?is\b"
    r"|\b(?:correct|right|best)\s{1,8}(?:option|choice)[*_\s]{0,8}(?:is\b|:)"
    r"|^[#*_> \t]{0,8}(?:final\s{1,8})?answer[*_ \t]{0,8}$"
    r"|^[ \t]{0,8}####\s{0,4}(?=(?:[-+$\u20ac\u00a3\u2212.\d][^\s]{0,60}(?:[ \t]{1,4}[^\s]{1,20}){0,2}"
    r"|[A-Za-z]|yes|no|true|false)[ \t]{0,8}$)",
    re.IGNORECASE | re.MULTILINE,
)
_IDLE = re.compile(
    r"[\s:*]{0,8}(?:correct|right|wrong|incorrect|consistent|confirmed|verified|reasonable|indeed|clear|obvious|thus|therefore|then"
    r"|in\s{1,8}the\s{1,8}form|as\s{1,8}follows)\b",
    re.IGNORECASE,
)
_WORK = re.compile(r"[\s:*]{0,8}(?:step\s{1,8}\d|let\b|let's\b)", re.IGNORECASE)
_FENCE = re.compile(r"\$\$?|\\\[|\\\(|`{3}\w{0,12}|\*\*|__")
_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s{0,8}")
_BARE = re.compile(r"[^\s${}\\][^\s$]{0,99}|\\[^\s$]{1,99}")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_BETWEEN = re.compile(r"[\s$,;.]{0,8}(?:and|or)?[\s$,;]{0,8}(?:\w{1,3}\s{0,2}=\s{0,2})?")
_LONGEST_BETWEEN = 24
_MOST_BOXES = 10


class Ungradable(Exception):
    """A text from which no answer can be read, and why, in a few words."""


@dataclass(frozen=True)
class _Box:
    """Where a box stands: `start` of its command, its content from `open` to `close`, and the `end` of it all."""

    start: int
    open: int
    close: int
    end: int


def stated_answer(text: str) -> str | None:
    """What the text states as its answer; None where it states none."""
    shown = text.rpartition("</think>")[2]
    if "<think>" in shown:
        return None
    tagged = _tagged(shown)
    if tagged is not None:
        return _marked(tagged) or _cleaned(tagged)
    if _MARK.search(shown) or _BOX.search(shown):
        return _marked(shown)
    return _cleaned(shown) if len(shown.split(maxsplit=_FEW_WORDS)) <= _FEW_WORDS else None


def _tagged(text: str) -> str | None:
    close = text.rfind("</answer>")
    start = text.rfind("<answer>", 0, max(close, 0))
    return text[start + len("<answer>") : close] if start >= 0 else None


def _marked(text: str) -> str | None:
    """The answer by the last mark that introduces one, or by the last box."""
    ends = [mark.end() for mark in _MARK.finditer(text)]
    ends = [end for end in ends if not _WORK.match(text, end)]
    sound = [end for end in ends if not _IDLE.match(text, end)]
    boxes = _boxes(text)
    if sound:
        behind = [box for box in boxes if box.start >= sound[-1]]
        said = _boxed(text, behind) or _line(text, sound[-1])
        if said:
            return said
    return _boxed(text, boxes) or (_line(text, ends[-1]) if ends and not sound else None)


def _line(text: str, start: int) -> str | None:
    """The first line from `start` on that says something."""
    for line in text[start:].split("\n"):
        if line.strip() and not _FENCE.fullmatch(line.strip()):
            return _cleaned(line)
    return None


def _cleaned(text: str) -> str | None:
    """Without blanks and marks of emphasis around it."""
    return text.strip().strip("*`").strip() or None


def _boxed(text: str, boxes: list[_Box]) -> str | None:
    """The content of the last box, or of the last few where nothing but "and", "or" or a comma stands between them."""
    if not boxes:
        return None
    said = text[boxes[-1].open : boxes[-1].close].strip()
    for before, box in list(pairwise(boxes))[: -_MOST_BOXES - 1 : -1]:
        between = text[before.end : box.start] if 0 <= box.start - before.end <= _LONGEST_BETWEEN else None
        if between is None or not _BETWEEN.fullmatch(between):
            break
        said = f"{text[before.open : before.close].strip()}{' or ' if 'or' in between else ', '}{said}"
    return said


def _boxes(text: str) -> list[_Box]:
    """Every box that is closed and not empty, in order."""
    found, closing = [], None
    for match in _BOX.finditer(text):
        start = match.end()
        if text[start : start + 1] == "{":
            closing = _closing(text) if closing is None else closing
            close = closing.get(start, start)
            if text[start + 1 : min(close, start + 200)].strip():
                found.append(_Box(match.start(), start + 1, close, close + 1))
        elif bare := _BARE.match(text, start):
            close = start + len(bare.group().rstrip(".,;:"))
            if close > start:
                found.append(_Box(match.start(), start, close, close))
    return found


def _closing(text: str) -> dict[int, int]:
    """Where each opened brace is closed; braces behind a backslash do not count."""
    opened, found = [], {}
    for match in _BRACE.finditer(text):
        if match.group() == "{":
            opened.append(match.start())
        elif match.group() == "}" and opened:
            found[opened.pop()] = match.start()
    return found
