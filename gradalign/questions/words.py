r"""Answers that are words: yes or no, the letter or the text of an option, and texts that are compared as they stand.

Each reader gets what a text states as its answer, and gives the form that is compared, or says why there is none.
"""

import re
from collections.abc import Sequence

from gradalign.questions.stated import TEXT_COMMAND, Ungradable

_LONGEST = 1000
_DELIMITER = re.compile(r"\$|\\[()\[\]]|\*\*|`|\\left|\\right|\\,|\\ ")
_ENDS = " .,;:!\"'*_`\u201c\u201d\u2018\u2019{}"

_TRUTH = {"yes": "yes", "true": "yes", "no": "no", "false": "no"}
_SAYS = re.compile(r"\b(yes|no|true|false)\b", re.IGNORECASE)
_OFFERED = re.compile(r"\W{0,4}(?:yes|true)\W{0,3}(?:or|/)\W{0,3}(?:no|false)\W{0,2}[:?]\s{0,4}", re.IGNORECASE)
_EITHER = re.compile(r"\W{0,3}(?:or|and|/)\W{0,3}(?:not\b|yes\b|no\b|true\b|false\b)|/(?:yes|no|true|false)\b", re.IGNORECASE)
_NO_ANSWER = re.compile(r"\s{1,4}(?:idea|answer|clue|opinion|information|conclusion|one\s{1,4}knows)\b", re.IGNORECASE)
_NEGATED = re.compile(
    r"(?:\bnot|n't|\bneither|\bnever)(?:\s{1,4}(?:a|the|really|quite|necessarily|at\s{1,4}all))?\s{1,4}$", re.IGNORECASE
)
_CLAUSE = re.compile(r"[.,;:!?\n]|\b(?:because|since|as|but)\b", re.IGNORECASE)
_ALONE = {"y": "yes", "t": "yes", "n": "no", "f": "no"}

_NAMED = r"[\s(\[*\"'#]{0,6}(?:(?:the\s{1,4})?(?:option|choice|answer|letter)\s{1,4}(?:is\s{1,4})?)?[\s(\[*\"']{0,6}"
_AFTER = re.compile(r"[\s)\]*\"'.:,;\-\u2013\u2014=>]{0,8}")
_ANOTHER = (
    r"[\s)\]*\"'.]{0,4}(?:,?\s{0,2}(?:or|and|&|/|\+)\s{0,2}|,\s{0,2}|\s{0,2}/\s{0,2})(?:option\s|choice\s|either\s)?"
    r"[\s(\[*\"']{0,4}[%s](?![A-Za-z'])"
)
_ASSERTS = re.compile(r"(?:is|was|because|since|as|would|fits|follows|seems|must|makes|the)\b|$|[^\w\s]", re.IGNORECASE)
_ARTICLE = re.compile(r"(?:a|an|the)\s{1,4}")
_DENIED = re.compile(r"\b(?:not|never|neither)\b|n't\b")
_DENIES = re.compile(r"\s{1,4}(?:is|was|are|can|would|does|could)(?:\s{0,4}not\b|n't\b)|\s{1,4}cannot\b", re.IGNORECASE)


def read_boolean(said: str) -> str:
    """`yes` or `no`: the word the text begins with, else what all its words of truth agree on, with "not" before one turning it."""
    text = unwrapped(said)
    text = text[match.end() :] if (match := _OFFERED.match(text)) else text
    if alone := _ALONE.get(text.strip(_ENDS + "()").lower()):
        return alone
    found = [*_SAYS.finditer(text)]
    if not found:
        raise Ungradable("neither yes nor no in the stated answer")
    first = found[0]
    if _EITHER.match(text, first.end()):
        raise Ungradable("both yes and no")
    if first.group().lower() == "no" and _NO_ANSWER.match(text, first.end()):
        raise Ungradable("no answer is given")
    if not text[: first.start()].strip(_ENDS + "()[]#"):
        return _TRUTH[first.group().lower()]
    clause = _CLAUSE.search(text, first.end())
    verdicts = {_turned(text, word) for word in found if clause is None or word.start() < clause.start()}
    if len(verdicts) > 1:
        raise Ungradable("both yes and no")
    return verdicts.pop()


def _turned(text: str, word: re.Match[str]) -> str:
    truth = _TRUTH[word.group().lower()]
    return {"yes": "no", "no": "yes"}[truth] if _NEGATED.search(text[max(0, word.start() - 40) : word.start()]) else truth


def read_choice(said: str, choices: Sequence[str]) -> str:
    """The letter of an option, by its letter or its text (four letters where the options are not listed)."""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(choices) or 4]
    folded = [_folded(choice) for choice in choices]
    for whole in (said.strip(" .\"'*").casefold(), *_ways(said)):
        if whole in folded:
            return letters[folded.index(whole)]
    text = unwrapped(said)
    named = re.match(rf"({_NAMED})([{letters}])(?![A-Za-z0-9'\u2019_])", text, re.IGNORECASE)
    mentioned = _mentioned(_folded(text), folded)
    if named is None or _is_article(text, named):
        return letters[_only(text, folded, mentioned)]
    letter, rest = named.group(2).upper(), text[named.end() :]
    if re.match(_ANOTHER % letters, rest, re.IGNORECASE):
        raise Ungradable("several options")
    if _DENIES.match(rest):
        raise Ungradable("only what the answer is not")
    beside = _mentioned(_folded(rest[_AFTER.match(rest).end() :]), folded, at_start=True)  # pyright: ignore[reportOptionalMemberAccess]
    if beside and letters.index(letter) not in beside:
        raise Ungradable("a letter with the text of another option")
    return letter


def read_exact(said: str) -> str:
    """The text without case, extra blanks, and marks around it."""
    read = " ".join(unwrapped(said).strip(" .\"'*").split()).casefold()
    if not read:
        raise Ungradable("nothing is stated")
    return read


def unwrapped(said: str) -> str:
    r"""Without \text{...}, delimiters of mathematics and emphasis."""
    said = said[:_LONGEST]
    return _DELIMITER.sub("", TEXT_COMMAND.sub(r"\1", said)).strip() if set(said) & {"\\", "$", "*", "`"} else said.strip()


def _folded(text: str) -> str:
    return " ".join(text.split()).strip(_ENDS).casefold()


def _ways(said: str) -> list[str]:
    """The stated text as an option may be written: without marks around it, and without an article."""
    text = _folded(unwrapped(said))
    return [text, _ARTICLE.sub("", text, count=1) if _ARTICLE.match(text) else text]


def _is_article(text: str, named: re.Match[str]) -> bool:
    """Is the letter the word "a" or "I" of a sentence?"""
    letter, bare = named.group(2), not named.group(1).strip()
    if not bare or letter.upper() not in "AI" or not text[named.end() : named.end() + 1].isspace():
        return False
    return letter.islower() or not _ASSERTS.match(text[named.end() :].lstrip())


def _mentioned(text: str, folded: Sequence[str], at_start: bool = False) -> set[int]:
    """Options whose text stands in `text` as whole words; of options within one another the longest."""
    spans: dict[int, tuple[int, int]] = {}
    for i, option in enumerate(folded):
        if not option:
            continue
        match = re.search(rf"(?<!\w){re.escape(option)}(?!\w)", text)
        if match and not (at_start and match.start() > 0):
            spans[i] = match.span()
    return {
        i for i, (start, end) in spans.items()
        if not any(a <= start and end <= b and b - a > end - start for a, b in spans.values())
    }  # fmt: skip


def _only(text: str, folded: Sequence[str], mentioned: set[int]) -> int:
    if not mentioned:
        raise Ungradable("no option in the stated answer")
    if len(mentioned) > 1:
        raise Ungradable("several options")
    (index,) = mentioned
    if len(folded[index]) == 1 and folded[index].isalpha():
        raise Ungradable("no option in the stated answer")
    if _DENIED.search(_folded(text).partition(folded[index])[0]):
        raise Ungradable("only what the answer is not")
    return index
