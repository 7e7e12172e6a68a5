r"""Where a text states its answer: after a mark, in a box. Knows no kinds of answers. The text is untrusted, and only ever searched.

Hidden reasoning (`<think>`) is not read. What counts is `<answer>...</answer>`; else the last box, unless a later line is a mark
("Answer:", "the answer is", a heading, GSM8K's `####`) and a few words; else what follows the last mark; else a whole text of a few words.
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
    r"[\s:*]{0,8}(?:correct|right|wrong|incorrect|consistent|confirmed|verified|reasonable|valid|indeed|clear|obvious|thus|therefore|then"
    r"|rounded|an\s{1,8}integer|(?:see|as|shown|stated|given)\s{1,8}(?:above|before)|in\s{1,8}the\s{1,8}form|as\s{1,8}follows)\b",
    re.IGNORECASE,
)
_ABOUT = re.compile(
    r"\b(?:of|for|behind|about)\s{1,4}(?:the|this|that|my|our)\s{1,4}(?:(?:final|correct)\s{1,4})?$", re.IGNORECASE
)
_LED_IN = r"[\s*_#>(]{0,8}(?:(?:so|thus|hence|therefore|but|and)[,\s]{1,4})?(?:(?:the|my|our)\s{1,4})?(?:(?:final|correct|right)\s{1,4})?$"
_LINE_BEGINS = re.compile(r"\n" + _LED_IN, re.IGNORECASE)
_SENTENCE_BEGINS = re.compile(r"(?:\n|[.!?]\s|\b(?=(?:so|thus|hence|therefore|but)\b))" + _LED_IN, re.IGNORECASE)
_SHORT_ANSWER = re.compile(r"[^\n]{0,60}\d[^\n]{0,60}|\W{0,8}(?:[A-Za-z]|yes|no|true|false)\W{0,8}", re.IGNORECASE)
_NEAR = 120  # characters around a mark that tell what it is
_WORK = re.compile(r"[\s:*]{0,8}(?:step\s{1,8}\d|let\b|let's\b)", re.IGNORECASE)
_FENCE = re.compile(r"\$\$?|\\\[|\\\(|`{3}\w{0,12}|\*\*|__")
_BULLET = re.compile(r"\s{0,8}[-*\u2022\u2013]\s{1,4}")
_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s{0,8}")
_BARE = re.compile(r"[^\s${}\\][^\s$]{0,99}|\\[^\s$]{1,99}")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_BETWEEN = re.compile(r"(?:[ \t$]{0,8}|[\s$]{0,8}(?:[,;][\s$]{0,8}(?:and|or)?|and|or)[\s$]{0,8})(?:\w{1,3}\s{0,2}=\s{0,2})?")
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
    shown = spoken_part(text)
    tagged = _tagged(shown)
    if tagged is not None:
        return _marked(tagged) or _cleaned(tagged)
    if _MARK.search(shown) or _BOX.search(shown):
        return _marked(shown)
    return _cleaned(shown) if len(shown.split(maxsplit=_FEW_WORDS)) <= _FEW_WORDS else None


def spoken_part(text: str) -> str:
    """The text behind hidden reasoning; nothing where the reasoning has no end."""
    shown = text.rpartition("</think>")[2]
    return "" if "<think>" in shown else shown


def _tagged(text: str) -> str | None:
    close = text.rfind("</answer>")
    start = text.rfind("<answer>", 0, max(close, 0))
    return text[start + len("<answer>") : close] if start >= 0 else None


def _marked(text: str) -> str | None:
    """The last box, unless a later line says nothing but another answer; without boxes the answer by the last mark that introduces one."""
    marks = [
        mark for mark in _MARK.finditer(text) if not _WORK.match(text, mark.end()) and not _ABOUT.search(_before(text, mark))
    ]
    sound = [mark for mark in marks if not _IDLE.match(text, mark.end())]
    if boxes := _boxes(text):
        later = [mark for mark in sound if mark.start() >= boxes[-1].end and _is_line(text, mark)]
        return _line(text, later[-1].end()) if later else _boxed(text, boxes)
    if sound and not _introduces(text, sound[-1]):  # "the answer is" within running prose
        sound = [mark for mark in sound if _introduces(text, mark) and _short(text, mark)] or sound
    return _line(text, (sound or marks)[-1].end()) if marks else None


def _before(text: str, mark: re.Match[str]) -> str:
    """What stands before a mark, and a line's end where that is all of it."""
    return ("\n" if mark.start() <= _NEAR else "") + text[max(0, mark.start() - _NEAR) : mark.start()]


def _introduces(text: str, mark: re.Match[str]) -> bool:
    """Is the mark a heading, followed by a colon, or at the beginning of a sentence or conclusion?"""
    return not mark.group()[-1].isalpha() or _SENTENCE_BEGINS.search(_before(text, mark)) is not None


def _short(text: str, mark: re.Match[str]) -> str | None:
    """The few words that a mark introduces; None where there are more, or another mark among them."""
    said = _line(text[: mark.end() + _NEAR], mark.end()) or ""
    return said if 0 < len(said.split()) <= _FEW_WORDS and not _MARK.search(said) else None


def _is_line(text: str, mark: re.Match[str]) -> bool:
    """Is a line the mark and a few words: any behind a colon or a heading, a number or a verdict behind "the answer is"?"""
    said = _short(text, mark)
    if said is None or not _LINE_BEGINS.search(_before(text, mark)):
        return False
    return not mark.group()[-1].isalpha() or mark.group()[0] in "#*\n" or _SHORT_ANSWER.fullmatch(said) is not None


def _line(text: str, start: int) -> str | None:
    """The first line from `start` on that says something; without a colon that is left of a mark, or the sign of a list's item."""
    bullet = False
    for i, line in enumerate(text[start:].split("\n")):
        if line.strip() and not _FENCE.fullmatch(line.strip()):
            return _cleaned(_BULLET.sub("", line, count=1) if bullet else line if i else line.lstrip(" \t:*\uff1a"))
        bullet = not line.strip(" \t*_:") and (i == 0 or bullet)
    return None


def _cleaned(text: str) -> str | None:
    """Without blanks and marks of emphasis around it."""
    return text.strip().strip("*`").strip() or None


def _boxed(text: str, boxes: list[_Box]) -> str | None:
    """The content of the last box, or of the last few on one line, or with "and", "or" or a comma between them, each once."""
    if not boxes:
        return None
    said = text[boxes[-1].open : boxes[-1].close].strip()
    seen = {said}
    for before, box in list(pairwise(boxes))[: -_MOST_BOXES - 1 : -1]:
        between = text[before.end : box.start] if 0 <= box.start - before.end <= _LONGEST_BETWEEN else None
        if between is None or not _BETWEEN.fullmatch(between):
            break
        content = text[before.open : before.close].strip()
        if content not in seen:
            said = f"{content}{' or ' if 'or' in between else ', '}{said}"
        seen.add(content)
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
