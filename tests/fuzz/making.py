"""How cases are made: texts, JSON and mutations of whole files, as hypothesis strategies of bytes."""

import json
import random
from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import strategies as st

_HOSTILE = (
    "",
    " ",
    "\x00",
    "\x1b[2J\x1b]0;t\x07",
    "\u202e",
    "\ud800",
    "\uffff",
    "é" * 300,
    "a" * 5000,
    "../../etc/passwd",
    "/dev/zero",
    "{{",
    "%s%n",
    "-1",
    "0",
    "1e999",
    "nan",
    "inf",
    "9" * 400,
    "1_0",
    "٣",
    "²",
    "<script>",
    "$(id)",
    "CON",
    "\r\n",
    "[red]",
    "__class__",
)
_ODD_BYTES = (
    b"\x00",
    b"\xff",
    b"\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"\x80",
    b"\n",
    b"{",
    b"[",
    b'"',
    b"\xed\xa0\x80",
    b"-",
    b"9" * 40,
)

hostile_text = st.one_of(st.sampled_from(_HOSTILE), st.text(max_size=40))
_leaves = st.one_of(
    st.none(), st.booleans(), st.integers(), st.sampled_from((10**400, -(2**63), 2**63, 0.1, 1e308)), st.floats(), hostile_text
)


def encoded(text: str) -> bytes:
    """Text as a file or an argument brings it, halves of characters included."""
    return text.encode("utf-8", "surrogatepass")


def decoded(case: bytes) -> str:
    """The argument that a case is; bytes that are no UTF-8 become halves of characters, as Python's own arguments do."""
    return case.decode("utf-8", "surrogateescape")


def words(*parts: str) -> st.SearchStrategy[bytes]:
    """Texts put together from the words of a notation and hostile ones."""
    word = st.one_of(st.sampled_from(parts), st.sampled_from(parts), hostile_text)
    return st.lists(word, min_size=1, max_size=7).map(lambda found: encoded("".join(found)))


def values(keys: Sequence[str] = ()) -> st.SearchStrategy[Any]:
    """What JSON can hold, with the given keys among those of its objects."""
    key = st.one_of(st.sampled_from(keys), hostile_text) if keys else hostile_text
    return st.recursive(
        _leaves, lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(key, inner, max_size=5)), max_leaves=8
    )


def objects(fields: dict[str, Sequence[Any]]) -> st.SearchStrategy[dict[str, Any]]:
    """Objects with some of the fields, each right or hostile."""
    return st.fixed_dictionaries(
        {}, optional={name: st.one_of(st.sampled_from(right), values()) for name, right in fields.items()}
    )


def written(value: Any) -> bytes:
    """JSON with everything that Python's parser takes, NaN and halves of characters too."""
    return encoded(json.dumps(value, ensure_ascii=False))


def deep() -> st.SearchStrategy[bytes]:
    """Nested deeper than parsers follow."""
    return st.sampled_from(
        (b"[" * 50_000, b'{"a":' * 50_000, b"[" * 900 + b"]" * 900, b"- " * 20_000, b"(" * 20_000, b"{" * 300 + b"}" * 300)
    )


def mutated(seeds: Sequence[bytes], edits: int = 6) -> st.SearchStrategy[bytes]:
    """Whole files with a few bytes changed, removed, repeated or put in, or cut short, or crossed with another."""
    return st.builds(
        lambda which, chance: _edited(seeds[which % len(seeds)], seeds, random.Random(chance), edits),
        st.integers(0, 1000),
        st.integers(0, 2**64 - 1),
    )


def _edited(content: bytes, seeds: Sequence[bytes], chance: random.Random, edits: int) -> bytes:
    for _ in range(chance.randint(1, edits)):
        at = chance.randrange(len(content) + 1)
        stop = min(len(content), at + int(2 ** chance.uniform(0, 8)))
        match chance.randrange(7):
            case 0 | 1:
                byte = bytes([content[at] ^ (1 << chance.randrange(8))]) if at < len(content) else b"\x00"
                content = content[:at] + byte + content[at + 1 :]
            case 2:
                content = content[:at] + content[stop:]
            case 3:
                content = content[:stop] + content[at:stop] * chance.randint(1, 3) + content[stop:]
            case 4:
                content = content[:at] + chance.choice(_ODD_BYTES) + content[at:]
            case 5:
                content = content[:at] if chance.random() < 0.3 else content[:at] + chance.randbytes(stop - at) + content[stop:]
            case _:
                other = chance.choice(seeds)
                content = content[:at] + other[chance.randrange(len(other) + 1) :][:4096]
    return content


def changed(seeds: Sequence[Any], write: Callable[[Any], bytes] = written) -> st.SearchStrategy[bytes]:
    """JSON documents with a few values replaced by hostile ones, removed, or put in under a key of another place."""

    def change(which: int, chance: int, hostile: list[Any]) -> bytes:
        document, pick = json.loads(json.dumps(seeds[which % len(seeds)])), random.Random(chance)
        for value in hostile:
            document = _replaced(document, value, pick)
        return write(document)

    return st.builds(change, st.integers(0, 1000), st.integers(0, 2**64 - 1), st.lists(values(), min_size=1, max_size=3))


def _replaced(document: Any, value: Any, pick: random.Random) -> Any:
    if not isinstance(document, dict | list) or not document or pick.random() < 0.08:
        return value
    keys = list(document) if isinstance(document, dict) else range(len(document))
    key = pick.choice(keys)
    if pick.random() < 0.6:
        document[key] = _replaced(document[key], value, pick)
    elif pick.random() < 0.4:
        del document[key]
    elif isinstance(document, dict) and pick.random() < 0.3:
        document[pick.choice(_HOSTILE)] = value
    else:
        document[key] = value
    return document
