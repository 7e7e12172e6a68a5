"""What the small files of a run may hold: run.json and markers are taken apart here, whoever wrote or damaged them.

Knows JSON and the fields that readers rely on; nothing of folders or tables.
"""

import json
from collections.abc import Collection, Mapping
from typing import Any, NoReturn

from gradalign.store.places import Place
from gradalign.types import GradalignError

_TEXTS = "a list of texts"
_PLAIN = {"text": str, "yes or no": bool, "an object": dict}
_IDENTITY = {
    "student": "text",
    "questions": "text",
    "teachers": _TEXTS,
    "objectives": _TEXTS,
    "temperature": "a number",
    "rollouts": "a whole number",
    "seed": "a whole number",
    "max_tokens": "a whole number or nothing",
    "node_selection": "text",
    "chat_template": "text or nothing",
}
_OUTCOME = {
    "goal": "an object",
    "ended": "yes or no",
    "stopped": "text",
    "tokens": "a whole number",
    "gain_half_width": "a number or nothing",
    "gain_half_width_left": "a number or nothing",
    "time": "a whole number",
    "looks": "looks",
}
_PROVENANCE = {"questions": "a whole number", "notices": _TEXTS, "versions": "an object of texts"}


class Known(dict[str, Any]):
    """An object of run.json; what a reader asks of it and it lacks is damage, in a line."""

    def __init__(self, file: Place, content: Mapping[str, Any]):
        super().__init__(content)
        self._file = file

    def __missing__(self, key: str) -> NoReturn:
        raise GradalignError(f"{self._file} is damaged (it lacks {key!r}); score again into another folder")

    def __reduce__(self) -> tuple[type, tuple[Place, dict[str, Any]]]:
        return Known, (self._file, dict(self))


def parsed(file: Place) -> Any:
    """The JSON of a file; ValueError where it is none, or nested deeper than a parser follows."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def problem_of_description(record: Any) -> str | None:
    """What is wrong with the content of run.json, None if nothing is."""
    if not isinstance(record, dict) or not all(isinstance(record.get(key), dict) for key in ("identity", "provenance")):
        return "no identity or provenance"
    if "format" not in record:
        return "no format"
    for part, kinds in ((record["identity"], _IDENTITY), (record["provenance"], _PROVENANCE)):
        problem = _problem(part, kinds)
        if problem is not None:
            return problem
    return None


def problem_of_outcome(found: Any) -> str | None:
    """What is wrong with the content of outcome.json, None if nothing is."""
    if not isinstance(found, dict):
        return "no object"
    if (found.get("gain_half_width") is None) != (found.get("gain_half_width_left") is None):
        return "one of its half-widths is lacking"
    return _problem(found, _OUTCOME)


def problem_of_marker(found: Any, tables: Collection[str]) -> str | None:
    """What is wrong with the content of a part's marker, None if nothing is."""
    if not (_is(found.get("generation"), "a whole number") and found["generation"] > 0):
        return "its generation is no number above 0"
    note = found.get("note")
    if not isinstance(note, dict) or ("amount" in note and not _is(note["amount"], "a whole number")):
        return "its note is not one of this package"
    sums = found.get("tables")
    for table in tables:
        if not (isinstance(sums, dict) and isinstance(sums.get(table), dict) and _is(sums[table].get("sha256"), "text")):
            return f"it has no checksum of {table}"
    return None


def whole(value: Any) -> int:
    """A count from a file; 0 for what is none."""
    return value if _is(value, "a whole number") else 0


def seconds(value: Any) -> float:
    """A time from a file in seconds; 0 for what is none."""
    return float(value) if _is(value, "a number") else 0.0


def _problem(content: Mapping[str, Any], kinds: Mapping[str, str]) -> str | None:
    return next((f"{key} is not {kind}" for key, kind in kinds.items() if key in content and not _is(content[key], kind)), None)


def _is_look(look: Any) -> bool:
    """What one look found: the pairs beaten, the winner, and what was said."""
    if not isinstance(look, dict) or not _is(look.get("stopped"), "text") or not isinstance(look.get("beaten"), list):
        return False
    pairs = [*look["beaten"], *([] if look.get("winner") is None else [look["winner"]])]
    return "winner" in look and all(_is(pair, _TEXTS) and len(pair) == 2 for pair in pairs)


def _is(value: Any, kind: str) -> bool:
    """Is a value of JSON what a field holds? Numbers are finite, and whole ones of at most 64 bits."""
    if kind.endswith(" or nothing"):
        return value is None or _is(value, kind.removesuffix(" or nothing"))
    if kind == _TEXTS:
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    if kind == "an object of texts":
        return isinstance(value, dict) and all(isinstance(item, str) for item in value.values())
    if kind == "looks":
        return isinstance(value, dict) and all(map(_is_look, value.values()))
    if kind in _PLAIN:
        return isinstance(value, _PLAIN[kind])
    number = isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
    return number or (kind == "a number" and isinstance(value, float) and abs(value) < float("inf"))
