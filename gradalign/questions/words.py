r"""Answers that are words: yes or no, the letter or the text of an option, and texts that are compared as they stand.

Each reader gets what a text states as its answer, and gives the form that is compared, or says why there is none.
"""

import re
from collections.abc import Sequence

from gradalign.questions.stated import TEXT_COMMAND, Ungradable

_LONGEST = 1000
_DELIMITER = re.compile(r"\$|\\[()\[\]]|\*\*|`|\\left|\\right|\\,|\\ ")
_ENDS = " .,;:!\"'*_`\u201c\u201d\u2018\u2019{}"

_POINT = re.compile(r"\.\d")

_TRUTH = {"yes": "yes", "true": "yes", "no": "no", "false": "no"}
_SAYS = re.compile(r"\b(yes|no|true|false)\b", re.IGNORECASE)
_OFFERED = re.compile(r"\W{0,4}(?:yes|true)\W{0,3}(?:or|/)\W{0,3}(?:no|false)\W{0,2}[:?]\s{0,4}", re.IGNORECASE)
_EITHER = re.compile(r"\W{0,3}(?:or|and|/)\W{0,3}(?:not\b|yes\b|no\b|true\b|false\b)|/(?:yes|no|true|false)\b", re.IGNORECASE)
_NO = re.compile(  # "no" as an answer: not "no idea", "no limit", "no-one"
    r"(?:\s{1,4}way)?(?:\s{0,4}(?!-\w)[^\w\s]|\s{0,4}(?:\n|$))"
    r"|\s{1,4}(?:because|since|as|it|this|that|these|those|they|there|he|she|we|you|i|the|but|not)\b",
    re.IGNORECASE,
)
_NOT = re.compile(r"\b(?:not|never|neither|nor|cannot|hardly|scarcely|unlikely|impossible|doubtful|no)\b|n't\b", re.IGNORECASE)
_NEGATED = re.compile(
    r"(?:\b(?:not|neither|never|cannot)|n't)(?:\s{1,4}(?:a|the|be|really|quite|actually|necessarily|at\s{1,4}all)){0,2}\s{1,4}$",
    re.IGNORECASE,
)
_REASONS = re.compile(r"\s{0,4}(?:since|because|as|while|although|though)\b", re.IGNORECASE)
_CONCLUDES = re.compile(r"\s{0,4}(?:so|thus|hence|therefore|yes|no|true|false)\b", re.IGNORECASE)
_OPENS = re.compile(r"[\s*\"'#>]{0,6}((?:yes|no|true|false)\b)[*\"']{0,3}[ \t]{0,4}(?:[.,;:!\n\u2013\u2014-]|$)", re.IGNORECASE)
_LISTED = re.compile(r"^[\s(\[*]{0,6}([A-Z])[*]{0,2}(?:[)\]]|[.:](?=\s)|[ \t]{0,4}$)", re.MULTILINE)
_CLAUSE = re.compile(r"[.,;:!?\n]|\b(?:because|since|as|but)\b", re.IGNORECASE)
_ALONE = {"y": "yes", "t": "yes", "n": "no", "f": "no"}

_NAMED = (
    r"[\s(\[*\"'#]{0,6}(?:(?:(?:it|this|that)(?:\s{1,4}is|'s)|(?:the\s{1,4})?(?:correct\s{1,4})?(?:option|choice|answer|letter)\s{1,4}is"
    r"|therefore|thus|hence|clearly|definitely|obviously|probably|most\s{1,4}likely|likely),?\s{1,4}){0,3}"
    r"(?P<noun>(?:the\s{1,4})?(?:option|choice|answer|letter)\s{1,4})?[\s(\[*\"']{0,6}"
)
_AFTER = re.compile(r"[\s)\]*\"'.:,;\-\u2013\u2014=>]{0,8}")
_ANOTHER = (
    r"[\s)\]*\"'.]{0,4}(?:,?\s{0,2}(?:or|and|&|/|\+)\s{0,2}|,\s{0,2}|\s{0,2}/\s{0,2})(?:option\s|choice\s|either\s)?"
    r"[\s(\[*\"']{0,4}[%s](?![A-Za-z'])"
    r"(?!(?<=[AaIi])\s{1,4}(?!(?:is|are|both|and|or|would|could|can|may|might|seem|fit|because|since)\b)(?-i:[a-z]))"
)
_ASSERTS = re.compile(
    r"(?:is|was|because|since|as|would|fits|follows|seems|must|makes|the|due\s|for\s|by\s|which|but|has)\b|$|[^\w\s]",
    re.IGNORECASE,
)
_ARTICLE = re.compile(r"(?:a|an|the)\s{1,4}")
_DENIED = re.compile(r"\b(?:not|never|neither)\b|n't\b")
_DENIES = re.compile(
    r"\s{1,4}(?:(?:is|was|are|can|would|does|could|should)\s{1,4}(?:\w{2,12}ly\s{1,4})?(?:not|incorrect|wrong|false|impossible|excluded)"
    r"|\w{2,6}n't|cannot)\b",
    re.IGNORECASE,
)
_IN_NUMBER = (r"(?<!\d:)(?<![\w.,/{^*\u221a\u2212\u2013-])", r"(?![\w/^*]|[.,:\u2013-]\d)")


def read_boolean(said: str) -> str:
    """`yes` or `no`: the word the text begins with, else what the words of truth of its first clause that has any agree on.

    "Not" right before one turns it. A denial anywhere else before it leaves open what is said, unless the clause is a conclusion.
    """
    text = unwrapped(said)
    text = text[match.end() :] if (match := _OFFERED.match(text)) else text
    if alone := _ALONE.get(text.strip(_ENDS + "()").lower()):
        return alone
    found = [word for word in _SAYS.finditer(text) if word.group().lower() != "no" or _NO.match(text, word.end())]
    if not found:
        raise Ungradable("neither yes nor no in the stated answer")
    if _EITHER.match(text, found[0].end()):
        raise Ungradable("both yes and no")
    if not text[: found[0].start()].strip(_ENDS + "()[]#"):
        return _TRUTH[found[0].group().lower()]
    ends = [match.span() for match in _CLAUSE.finditer(text)]
    found = [word for word in found if text[next((end for end, _ in ends if end >= word.end()), -1)] != "?"]
    if not found:
        raise Ungradable("a question, and no answer to it")
    start = max((begin for _, begin in ends if begin <= found[0].start()), default=0)
    stop = next((end for end, _ in ends if end >= found[0].end()), len(text))
    verdicts = {_turned(text, start, word) for word in found if word.start() < stop}
    if len(verdicts) > 1:
        raise Ungradable("both yes and no")
    return verdicts.pop()


def _turned(text: str, start: int, word: re.Match[str]) -> str:
    """What a word of truth says in its clause, which begins at `start`."""
    truth = _TRUTH[word.group().lower()]
    near = max(start, word.start() - 40)
    turned = _NEGATED.search(text[near : word.start()])
    clear = turned or _CONCLUDES.match(text, start) or _REASONS.match(text)
    if _NOT.search(text, start if clear else 0, near + turned.start() if turned else word.start()):
        raise Ungradable("a denial whose reach is not clear")
    return {"yes": "no", "no": "yes"}[truth] if turned else truth


def read_choice(said: str, choices: Sequence[str]) -> str:
    """The letter of an option, by its letter or its text (four letters where the options are not listed)."""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(choices) or 4]
    folded = [_folded(choice) for choice in choices]
    if len(bare := _folded(unwrapped(said)).upper()) == 1 and bare in letters:
        return bare
    if (index := _same(said, choices, folded)) is not None:
        return letters[index]
    text = unwrapped(said)
    named = re.match(rf"({_NAMED})([{letters}])(?![A-Za-z0-9'_])", text, re.IGNORECASE)
    mentioned = _mentioned(_folded(text), folded)
    if named is None or _is_article(text, named):
        return letters[_only(text, folded, mentioned)]
    letter, rest = named.group(3).upper(), text[named.end() :]
    if re.match(_ANOTHER % letters, rest, re.IGNORECASE):
        raise Ungradable("several options")
    if _DENIES.match(rest):
        raise Ungradable("only what the answer is not")
    beside = _mentioned(_folded(rest[_AFTER.match(rest).end() :]), folded, at_start=True)  # pyright: ignore[reportOptionalMemberAccess]
    if beside and letters.index(letter) not in beside:
        raise Ungradable("a letter with the text of another option")
    return letter


def _same(said: str, choices: Sequence[str], folded: Sequence[str]) -> int | None:
    """The option that is stated and nothing else: written the same, else but for case where no other option reads like it."""
    exact = _bare(said)
    if exact and (same := next((i for i, choice in enumerate(choices) if _bare(choice) == exact), None)) is not None:
        return same
    for whole in (_folded(said), *_ways(said)):
        if whole in folded:
            if len({choices[i] for i, other in enumerate(folded) if other == whole}) > 1:
                raise Ungradable("several options")
            return folded.index(whole)
    return None


def opened_boolean(text: str) -> str | None:
    """The word of truth that a text begins with, before a stop: "Yes, since ..."."""
    found = _OPENS.match(text)
    return found.group(1) if found else None


def opened_choice(text: str) -> str | None:
    """The line that a text begins with, where it names an option as lists do, "B) ...", and no later line names another."""
    named = [match.group(1) for match in _LISTED.finditer(text.lstrip())]
    begins = _LISTED.match(text.lstrip())
    return text.strip().splitlines()[0] if begins and len({*named}) == 1 else None


def read_exact(said: str) -> str:
    """The text without case, extra blanks, and marks around it."""
    read = " ".join(unwrapped(said).strip(" .\"'*").split()).casefold()
    if not read:
        raise Ungradable("nothing is stated")
    return read


def unwrapped(said: str) -> str:
    r"""Without \text{...}, delimiters of mathematics and emphasis; with plain apostrophes."""
    said = said[:_LONGEST].replace("\u2019", "'")
    return _DELIMITER.sub("", TEXT_COMMAND.sub(r"\1", said)).strip() if set(said) & {"\\", "$", "*", "`"} else said.strip()


def _bare(text: str) -> str:
    """Without extra blanks and marks around it; a point before a digit is not one."""
    text = " ".join(text.replace("\u2019", "'").split()).lstrip(_ENDS.replace(".", ""))
    return text.rstrip(_ENDS) if _POINT.match(text) else text.strip(_ENDS)


def _folded(text: str) -> str:
    return _bare(text).casefold()


def _ways(said: str) -> list[str]:
    """The stated text as an option may be written: without marks around it, and without an article."""
    text = _folded(unwrapped(said))
    return [text, _ARTICLE.sub("", text, count=1) if _ARTICLE.match(text) else text]


def _is_article(text: str, named: re.Match[str]) -> bool:
    """Is the letter the word "a" or "I" of a sentence?"""
    letter = named.group(3)
    if named["noun"] or letter.upper() not in "AI" or not text[named.end() : named.end() + 1].isspace():
        return False
    return letter.islower() or not _ASSERTS.match(text[named.end() :].lstrip())


def _mentioned(text: str, folded: Sequence[str], at_start: bool = False) -> set[int]:
    """Options whose text stands in `text` as whole words and whole numbers; of options within one another the longest."""
    spans: dict[int, tuple[int, int]] = {}
    for i, option in enumerate(folded):
        if not option:
            continue
        before = _IN_NUMBER[0] if option[0].isdigit() else r"(?<!\w)"
        after = _IN_NUMBER[1] if option[-1].isdigit() else r"(?!\w)"
        match = re.search(before + re.escape(option) + after, text)
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
