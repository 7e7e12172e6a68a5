r"""Numbers as models write them: separators of thousands, fractions, mixed numbers, percent, currencies, LaTeX. Exact, never rounded.

`quantity` finds the number that a text gives as its answer, or says why there is none; `whole_quantity` asks that the text be nothing else.
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from gradalign.questions.stated import TEXT_COMMAND, Ungradable

_LONGEST = 2000
_NEAR = 120  # characters beside a number in which another one is looked for
_DROPPED = re.compile(
    r"\\(?:left|right|displaystyle|boldsymbol|limits|quad|qquad|bf|rm|checkmark|blacksquare|square|qed)(?![A-Za-z])|\\!|\*\*|`|\\\$|[$\u20ac\u00a3\u00a5\u20b9]"
)
_BLANK = re.compile(r"\\[,;: ]|[~\u00a0\u2002-\u200a\u202f\u205f\u3000]")
_FRACTION = re.compile(
    r"\\[dtc]?frac\s{0,4}(?:\{\s{0,4}([^{}]{1,80})\}\s{0,4}\{\s{0,4}([^{}]{1,80})\}|(\d)\s{0,4}(\d)|(\d)\s{0,4}\{(\d{1,60})\})"
)
_VULGAR = {"½": "1/2", "⅓": "1/3", "⅔": "2/3", "¼": "1/4", "¾": "3/4", "⅕": "1/5", "⅖": "2/5", "⅗": "3/5", "⅘": "4/5", "⅙": "1/6",
           "⅛": "1/8", "⅜": "3/8", "⅝": "5/8", "⅞": "7/8"}  # fmt: skip
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")

_PLAIN = r"(?:\d{1,1000}(?:\.\d{0,1000})?|\.\d{1,1000})"
_GROUPED = r"(?:\d{1,3}(?:,\d{3}){1,200}|\d{1,3}(?:,\d{2}){1,60},\d{3}|\d{1,3}(?:[ '\u2019]\d{3}){1,200})(?:\.\d{0,1000})?"
_EUROPEAN = r"(?:\d{1,3}(?:\.\d{3}){1,200},\d{1,1000}|\d{1,3}(?:\.\d{3}){2,200})"
_POWER = r"(?:\^|\*\*)\s{0,4}[{(]?\s{0,4}(?P<%s>[-+]?\d{1,3})\s{0,4}[})]?"
_NUMBER = re.compile(
    r"(?<![A-Za-z0-9_.\\/^*])(?P<sign>[-+]?)(?:"
    r"(?P<whole>\d{1,60})\s{0,4}(?:and\s{1,4}|\s)(?P<over>\d{1,9})/(?P<under>\d{1,9})"
    rf"|10{_POWER % 'ten'}"
    rf"|(?P<european>{_EUROPEAN})|(?P<comma>\d{{1,60}},\d{{1,2}})(?![\d,])|(?P<plain>{_GROUPED}(?!\d)|{_PLAIN})"
    rf"(?:[eE](?P<exponent>[-+]?\d{{1,3}})(?!\d)|\s{{0,4}}\*\s{{0,4}}10{_POWER % 'scale'})?"
    rf"(?:\s{{0,2}}/\s{{0,2}}(?P<by>{_PLAIN}))?"
    r")(?!\d)"
)
_WORDS = re.compile(
    r"\s{0,4}(%|percentage\s{1,4}points?\b|per\s?cent\b|pct\b|thousand\b|million\b|billion\b|trillion\b)", re.IGNORECASE
)
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_RAISED_UNIT = r"(?:\s{0,2}\^\s{0,2}\{?[23]\}?|[23\u00b2\u00b3])?"
UNIT = (  # one letter only where it is a unit and apart from the number: 2k and 5t are products
    r"(?:(?:(?<=\s)(?!(?:[abcxyz]{3,}|[p-t]{3,}|squared|cubed|factorial|dozen|hundreds?|halves|thirds|fourths|fifths|sixths|tenths)\b)"
    r"[A-Za-z]{3,20}|(?<=\s)(?:[mghsL]|in|yd|mi|hr|oz|mg|dm|lb|am|pm|sq)|(?:mm|cm|km|kg|ft|mL|ml|lbs|mph))(?![A-Za-z])"
    rf"{_RAISED_UNIT}(?:(?:\s{{0,2}}/\s{{0,2}}[A-Za-z]{{1,20}}|\.?\s{{1,4}}[A-Za-z]{{2,20}}){_RAISED_UNIT}){{0,5}}"
    r"|(?:\^\{?\\?circ\}?|\\circ|\u00b0)\s{0,2}[CF]?|[\u2103\u2109])"
)
_UNIT = re.compile(rf"\s{{0,4}}(?:{UNIT})?[.\s]{{0,4}}")
_MORE = re.compile(
    r"\s{0,4}(?:[A-Za-z%\u00b0]{1,20}\s{1,4})?(?:or|and(?=\s[\d.,]{1,20}(?:\s\w{1,20})?$))\s{1,4}(?=[-+.]?\d)", re.IGNORECASE
)
_GOES_ON = (
    (re.compile(r"[-\u2013\u2014]\d|\s[-\u2013\u2014]\s\d|\s{1,4}to\s{1,4}[-+]?\d"), "a range, not one number"),
    (
        re.compile(
            r"\s{0,4}[*\u00d7\u00f7]\s{0,4}[\d(]|\s{1,4}x\s{1,4}\d|\+\d|\s[+/]\s\d|\s{0,4}\^\s{0,4}\{?\d|/\s?[-\d(]"
            r"|[\u00b9\u00b2\u00b3\u2070-\u2079]|\(\s{0,2}[-\d]|\s{0,2}[-+]\s{0,2}\(\s{0,2}[-\d]"
            r"|\)\s{0,3}(?:[-+*/^]\s{0,3})?\(?\s{0,2}\d"
        ),
        "arithmetic that is not worked out",
    ),
    (re.compile(r":\d"), "a time or a ratio, not one number"),
    (re.compile(r"\s{0,4},\s{0,4}[-+]?\d"), "several numbers"),
    (re.compile(r"\s{0,4}(?:[\u2264\u2265\u2260]|!=|[<>]=|[<>]\s{0,2}[-\d]|\s[<>]\s)"), "a bound, not one number"),
    (
        re.compile(
            r"[abeijnqruxyz](?![A-Za-z])|\s{0,2}[\u03c0\u221a\u221e]|\s{0,4}[^\s\\]{0,20}\\(?!circ|degree)[A-Za-z]"
            r"|\s{0,3}[-+*/]\s{0,3}(?:\d{0,4}[b-z](?![A-Za-z'])|\\)"
        ),
        "an expression, not one number",
    ),
)  # fmt: skip
_DENIED = re.compile(r"\b(?:not|never|neither)\b|n't\b", re.IGNORECASE)
_BOUND = re.compile(r"(?:[<>!]=?|[\u2264\u2265\u2260]|\\(?:leq?|geq?|neq?|lt|gt)(?![A-Za-z]))\s{0,4}$")
_OPERATED = re.compile(
    r"(?:(?:(?<![A-Za-z])[A-Za-z]|[\d)\]])\s{0,3}[-+*/^]\s{0,3}|[A-Za-z*/^+-]\s{0,2}\(\s{0,2}"
    r"|(?<![A-Za-z])(?:sqrt|sin|cos|tan|log|ln|exp)\s{0,3})$"
)
_SYMBOL = re.compile(r"(?:(?<![A-Za-z])[A-Za-z]\s|[)\]])\s{0,3}$")  # before a sign
_EQUALS = re.compile(r"(?<![<>!])=(?!>)|\\approx(?![A-Za-z])|\u2248")
_ASSIGNED = re.compile(r"(?:^|[\s,;(])[A-Za-z](?:_\{?\w{1,3}\}?)?\s{0,2}$")
_SENTENCE = re.compile(r"(?<!\b[A-Za-z])(?:[.?;]|!(?!\s{0,4}=))\s|\n")
_REASON = re.compile(r"[,\s](?:since|because|where|when|as|if)\b", re.IGNORECASE)
_REMARK = re.compile(r"(?<![-*+/=^x\s])\s{1,4}\([^()]{0,200}\)(?!\s{0,2}[=*+/^\u2248-])")
_COMMAND = re.compile(r"\\(?!circ|degree)[A-Za-z]{1,30}|[\u221a\u221e]")


@dataclass(frozen=True)
class Quantity:
    """A number and the word it came with: `%`, `million`, or nothing."""

    value: Fraction
    word: str = ""

    def __str__(self) -> str:
        return f"{self.value}{self.word if self.word in ('', '%') else ' ' + self.word}"

    @property
    def scaled(self) -> Fraction:
        """The number with its word multiplied out."""
        return self.value * (Fraction(1, 100) if self.word == "%" else _SCALES.get(self.word, 1))


def equal_quantities(answer: Quantity, said: Quantity) -> bool:
    """Exactly equal. A percent sign on one side only may be a unit (50% for 50) or count (50% for 0.5)."""
    if answer.word == said.word:
        return answer.value == said.value
    percent = "%" in (answer.word, said.word) and "" in (answer.word, said.word)
    return answer.scaled == said.scaled or (percent and answer.value == said.value)


def is_number(text: str) -> bool:
    """Is the whole text one number, without unit or word?"""
    match = _NUMBER.fullmatch(text.replace("\u2212", "-").strip()) if len(text) <= _LONGEST else None
    return match is not None and not match["comma"] and not match["whole"]


@lru_cache(maxsize=1024)
def quantity(said: str) -> Quantity:
    """The number that `said` gives: the first one of the first sentence that has any, behind its last equals sign.

    A reason behind the number, and a remark in parentheses, do not count. Where a symbol gets another value than what stands before, as in
    "x = 5 or x = -5", there are several. Rollouts of a question end in few different ways, so what was read is remembered.
    """
    for sentence in _SENTENCE.split(plain(said[:_LONGEST])):
        if first := _NUMBER.search(sentence):
            sentence = sentence[: first.end()] + _REMARK.sub(" ", sentence[first.end() :])
            reason = _REASON.search(sentence, first.end())
            if found := _behind_equals(sentence[: reason.start()] if reason else sentence):
                return found
    raise Ungradable("no number in the stated answer")


def _behind_equals(sentence: str) -> Quantity | None:
    start = max((sign.end() for sign in _EQUALS.finditer(sentence)), default=0)
    left = sentence[start:]
    match = _NUMBER.search(left)
    if match is None:
        return None
    found = _checked(left, match)
    symbol = _ASSIGNED.search(sentence[: start - 1]) if start else None
    earlier = sentence[max(0, symbol.start() - _NEAR) : symbol.start()] if symbol else ""
    if _NUMBER.search(earlier):
        before = _behind_equals(earlier)
        if before is None or not equal_quantities(before, found):
            raise Ungradable("several numbers")
    return found


def whole_quantity(text: str) -> Quantity | None:
    """The number that the whole text is, with a percent sign, a word such as million or a unit at most; None if it is more than that."""
    left = plain(text[:_LONGEST])
    match = _NUMBER.match(left)
    if match is None or match["comma"] or match["european"]:
        return None
    found, rest = _named(match, left)
    return found if found is not None and _UNIT.fullmatch(rest) else None


def plain(text: str) -> str:
    """Text with LaTeX's ways to write numbers, and typographic ones, in plain characters."""
    text = TEXT_COMMAND.sub(r" \1 ", text.replace("\u2019", "'").replace("{,}", ",").replace("\\%", "%").replace("\u2212", "-"))
    text = _DROPPED.sub("", _BLANK.sub(" ", text))
    text = re.sub(r"\\[()\[\]]", " ", text)
    text = re.sub(r"\\(?:times|cdot)(?![A-Za-z])|[\u00d7\u00b7\u22c5]", "*", text)
    text = _FRACTION.sub(lambda m: " " + "/".join(part.strip() for part in m.groups() if part), text)
    for sign, fraction in _VULGAR.items():
        text = text.replace(sign, f" {fraction}")
    text = re.sub(r"(?<=10)[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]{1,4}", lambda m: "^" + m.group().translate(_RAISED), text)
    text = re.sub(r"\b(?:minus|negative)\s{1,4}(?=[.\d])", "-", text, flags=re.IGNORECASE)
    text = re.sub(r"(^|[\s(=])\u2013(?=[.\d])", r"\1-", text)
    return re.sub(r"(^\s{0,8}|[=(]\s{0,4})-\s{1,4}(?=[.\d])", r"\1-", text).strip()


def _checked(left: str, match: re.Match[str]) -> Quantity:
    before = left[: match.start()]
    if _COMMAND.search(before) or _OPERATED.search(before):
        raise Ungradable("an expression, not one number")
    if match["sign"] and before and _SYMBOL.search(before):
        raise Ungradable("an expression, not one number")
    if _DENIED.search(before):
        raise Ungradable("only what the answer is not")
    if _BOUND.search(before):
        raise Ungradable("a bound, not one number")
    found, rest = _named(match, left)
    if found is None:
        raise Ungradable("a division by zero")
    more = _MORE.match(rest)
    if more:
        if not equal_quantities(found, quantity(rest[more.end() : more.end() + _NEAR])):
            raise Ungradable("several numbers")
        return found
    for pattern, reason in _GOES_ON:
        if pattern.match(rest):
            raise Ungradable(reason)
    return found


def _named(match: re.Match[str], text: str) -> tuple[Quantity | None, str]:
    """The number with its word, and the text behind both; None for a division by zero."""
    word = _WORDS.match(text, match.end())
    name = "" if word is None else word.group(1).lower()
    value = _value(match)
    rest = text[match.end() if word is None else word.end() :]
    return (None if value is None else Quantity(value, name if name in _SCALES or not name else "%")), rest


def _value(match: re.Match[str]) -> Fraction | None:
    part = match.groupdict()
    if part["whole"]:
        if not int(part["under"]):
            return None
        value = int(part["whole"]) + Fraction(int(part["over"]), int(part["under"]))
    elif part["ten"]:
        value = Fraction(10) ** int(part["ten"])
    elif part["european"]:
        value = Fraction(part["european"].replace(".", "").replace(",", "."))
    elif part["comma"]:
        value = Fraction(part["comma"].replace(",", "."))
    else:
        value = Fraction(re.sub(r"[,' \u2019]", "", part["plain"]))
    value *= Fraction(10) ** int(part["exponent"] or part["scale"] or 0)
    if part["by"]:
        by = Fraction(part["by"])
        if not by:
            return None
        value /= by
    return -value if part["sign"] == "-" else value
