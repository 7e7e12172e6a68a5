"""Two tokenisations of one text, aligned by its bytes: where tokens end, which tokens go on from what is written. Knows no tokenizer."""

from bisect import bisect_left, bisect_right
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Int


class Spellings:
    """The tokens of a vocabulary by the bytes that they write; tokens that write none (None, or empty) are left out.

    Of those that write the same, the ones in `last` come last.
    """

    def __init__(self, words_V: Sequence[bytes | None], last: Container[int] = ()):
        self.words_V = words_V
        order = sorted((word, token in last, token) for token, word in enumerate(words_V) if word)
        self._words = [word for word, _, _ in order]
        self._ids = np.array([token for _, _, token in order], dtype=np.int64)

    @cached_property
    def longest(self) -> int:
        """Bytes of the longest token."""
        return max(map(len, self._words), default=0)

    def exactly(self, word: bytes) -> list[int]:
        """Tokens that write just this."""
        return self._ids[bisect_left(self._words, word) : bisect_right(self._words, word)].tolist()

    def beyond(self, start: bytes) -> Int[np.ndarray, " K"]:
        """Tokens that start so and write at least one byte more."""
        return self._ids[slice(*self._range(start))]

    def reach(self, text: bytes, start: int) -> int:
        """The last place up to which some token that starts at `start` can write `text` and go on past it; `start` if none can."""
        end = start
        while end < len(text) and np.diff(self._range(text[start : end + 1]))[0] > 0:
            end += 1
        return end

    def cut(self, word: bytes) -> list[int] | None:
        """Tokens that write `word`, the longest that fits first; None where none fits."""
        tokens: list[int] = []
        while word:
            sizes = range(min(len(word), self.longest), 0, -1)
            found = next((ids for size in sizes if (ids := self.exactly(word[:size]))), None)
            if found is None:
                return None
            tokens.append(found[0])
            word = word[len(self.words_V[found[0]] or b"") :]
        return tokens

    def _range(self, start: bytes) -> tuple[int, int]:
        first = bisect_right(self._words, start)
        after = _after(start)
        return first, len(self._words) if after is None else bisect_left(self._words, after)


def _after(start: bytes) -> bytes | None:
    """The first word in order after all those that start so; None if there is none."""
    kept = start.rstrip(b"\xff")
    return kept[:-1] + bytes([kept[-1] + 1]) if kept else None


def edges_of(words: Sequence[bytes]) -> Int[np.ndarray, " T1"]:
    """Where T tokens begin in their text, and where the last one ends: (T + 1,) in bytes."""
    return np.cumsum([0, *map(len, words)])


@dataclass(frozen=True, eq=False)
class Alignment:
    """Where the T nodes of the student's tokens lie among the M tokens of the teacher, in one text.

    `before_T` counts the teacher's tokens that end at or before each node; `written_T` are the bytes after them up to the node, of the
    teacher's next token, 0 where both tokenisations have an edge. `lead_M1` are the bytes from each edge of the teacher to the
    student's next one.
    """

    before_T: Int[np.ndarray, " T"]
    written_T: Int[np.ndarray, " T"]
    lead_M1: Int[np.ndarray, " M1"]


def align(student_T1: Int[np.ndarray, " T1"], teacher_M1: Int[np.ndarray, " M1"]) -> Alignment:
    """Align the edges of two tokenisations; the teacher's may stop short of the text."""
    at_T = student_T1[:-1]
    before_T = np.searchsorted(teacher_M1, at_T, side="right") - 1
    following = student_T1[np.minimum(np.searchsorted(student_T1, teacher_M1), len(student_T1) - 1)]
    return Alignment(before_T, at_T - teacher_M1[before_T], following - teacher_M1)


def common_runs(
    student_T1: Int[np.ndarray, " T1"], odd_T: Bool[np.ndarray, " T"], teacher_M1: Int[np.ndarray, " M1"]
) -> list[tuple[slice, slice]]:
    """The shortest runs of student tokens between edges of both that hold all `odd_T`, each with the teacher's of the same bytes."""
    common = np.intersect1d(student_T1, teacher_M1)
    runs: list[tuple[slice, slice]] = []
    for i in np.flatnonzero(odd_T):
        if runs and i < runs[-1][0].stop:
            continue
        first = common[np.searchsorted(common, student_T1[i], side="right") - 1]
        last = common[np.searchsorted(common, student_T1[i + 1])]
        mine, theirs = (
            slice(int(np.searchsorted(edges, first)), int(np.searchsorted(edges, last))) for edges in (student_T1, teacher_M1)
        )
        runs.append((mine, theirs))
    return runs


def readable_parts(data: bytes) -> Iterator[str | bytes]:
    """The bytes in order: as text where they are valid UTF-8, and byte by byte where they are not."""
    start = 0
    while start < len(data):
        try:
            yield data[start:].decode()
            return
        except UnicodeDecodeError as error:
            if error.start:
                yield data[start : start + error.start].decode()
            yield from (data[i : i + 1] for i in range(start + error.start, start + error.end))
            start += error.end
