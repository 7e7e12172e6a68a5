"""Graders: from the text of a rollout to a reward. The text is untrusted: it is only ever compared, never run.

The answer read is what follows the last "Answer:" (or "answer is"), else the last \\boxed{...}, else the whole text if it is no
more than a few words. A text with none of these is ungradable, which is its own outcome with reward 0.
"""

import re
from fractions import Fraction

from gradalign.types import Grade, Question

_MARKED = re.compile(r"answer[*_\s]{0,8}(?:is[*_\s]{0,8})?[:=]|answer\s{1,8}is\b", re.IGNORECASE)
_BOXED = re.compile(r"\\boxed\s{0,8}\{((?:[^{}]|\{[^{}]{0,200}\}){0,200})\}")
_FEW_WORDS = 4
_NUMBER = re.compile(r"[-+]?(?:(?:\d{1,3}(?:,\d{3})+|\d{1,60})(?:\.\d{0,60})?|\.\d{1,60})(?:[eE][-+]?\d{1,3})?(?:/\d{1,60})?")
_BOOLEANS = {"yes": "yes", "true": "yes", "no": "no", "false": "no"}


def grade(question: Question, text: str) -> Grade:
    """Reward 1 if the answer read from `text` equals the question's, else 0."""
    said = stated_answer(text)
    read = None if said is None else read_answer(question, said)
    if read is None:
        return Grade(0.0, "ungradable", said)
    right = read == read_answer(question, question.answer)
    return Grade(1.0 if right else 0.0, "right" if right else "wrong", read)


def read_answer(question: Question, said: str) -> str | None:
    """The answer that `said` states, in the form in which answers of the question's kind are compared; None if there is none."""
    return _READERS[question.kind](said, question)


def is_number(text: str) -> bool:
    """Is the whole text one number?"""
    return _NUMBER.fullmatch(text.replace("\u2212", "-").strip()) is not None


def stated_answer(text: str) -> str | None:
    """What stands on the line after the last answer mark, or in the last box; hidden reasoning is not read."""
    text = text.rpartition("</think>")[2]
    marks = list(_MARKED.finditer(text))
    if marks:
        after = text[marks[-1].end() :].strip()
        return (_last(_BOXED, after) or after.splitlines()[0].strip()) if after else None
    return _last(_BOXED, text) or (text.strip() if 0 < len(text.split()) <= _FEW_WORDS else None)


def _last(pattern: re.Pattern[str], text: str) -> str | None:
    found = pattern.findall(text)
    return found[-1].strip() if found else None


def _read_number(said: str, question: Question) -> str | None:
    """The first number after the last equals sign, as an exact fraction."""
    match = _NUMBER.search(said.replace("\u2212", "-").rpartition("=")[2])
    if not match:
        return None
    numerator, _, denominator = match.group().replace(",", "").partition("/")
    if denominator and not int(denominator):
        return None
    return str(Fraction(numerator) / int(denominator or 1))


def _read_boolean(said: str, question: Question) -> str | None:
    match = re.search(r"\b(yes|no|true|false)\b", said, re.IGNORECASE)
    return _BOOLEANS[match.group(1).lower()] if match else None


def _read_choice(said: str, question: Question) -> str | None:
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(question.choices) or 4]
    folded = [choice.strip().casefold() for choice in question.choices]
    text = said.strip(" .\"'*").casefold()
    if text in folded:
        return letters[folded.index(text)]
    match = re.match(rf"[\s(*\"']*([{letters}])(?![A-Za-z])", said, re.IGNORECASE)
    return match.group(1).upper() if match else None


def _read_exact(said: str, question: Question) -> str | None:
    return " ".join(said.strip(" .\"'*").split()).casefold() or None


_READERS = {"numeric": _read_number, "boolean": _read_boolean, "choice": _read_choice, "exact": _read_exact}
