"""What a context may draw on for one question: cleaned of hidden reasoning, and shortened to a budget of tokens."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, fields, replace

MARK = "\n[...]\n"
_THINKS, _THOUGHT = "<think>", "</think>"
_LACKS = {
    "correct": "no correct rollout",
    "wrong": "no wrong rollout",
    "summary": "no summary of a correct rollout",
    "solution": "no reference solution",
    "answer": "no answer",
}


@dataclass(frozen=True)
class Material:
    """What a context may draw on for one question; None is what the question lacks."""

    correct: str | None = None
    wrong: str | None = None
    summary: str | None = None
    solution: str | None = None
    answer: str | None = None

    def cleaned(self) -> "Material":
        """Without hidden reasoning and surrounding blanks; a text of which nothing is left lacks."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return Material(**{name: None if text is None else spoken(text) or None for name, text in values.items()})

    def lack(self, names: Collection[str]) -> str | None:
        """The reason why one of these is not to be had, or None."""
        return next((_LACKS[name] for name in names if getattr(self, name) is None), None)

    def shortened(self, names: Collection[str], limit: int, ids: "Ids", shown: "Shown") -> tuple["Material", int]:
        """With each piece of these names at most `limit` tokens long, the answer apart; and how many tokens were cut."""
        pieces, cut = {}, 0
        for name in names:
            text = getattr(self, name)
            if name != "answer" and text is not None:
                pieces[name], fewer = shortened(text, limit, ids, shown)
                cut += fewer
        return replace(self, **pieces), cut


Ids = Callable[[str], Sequence[int]]
Shown = Callable[[Sequence[int]], str]


def spoken(text: str) -> str:
    """What is said after the hidden reasoning, without surrounding blanks.

    Reasoning is all up to the last `</think>`, whether the text opens it itself or the prompt did; all of it where it is not closed.
    """
    said = text.rpartition(_THOUGHT)[2].strip()
    return "" if said.startswith(_THINKS) else said


def shortened(text: str, limit: int, ids: Ids, shown: Shown) -> tuple[str, int]:
    """The text if it has at most `limit` tokens, else its first and last ones, half each, around a mark; and how many tokens were cut."""
    tokens = ids(text)
    cut = len(tokens) - limit
    if cut <= 0:
        return text, 0
    first = limit - limit // 2
    start, end = shown(tokens[:first]), shown(tokens[first + cut :])
    return start.rstrip("\ufffd").rstrip() + MARK + end.lstrip("\ufffd").lstrip(), cut
