"""From a teacher's tokens to a student's and back, by the bytes they write: which student token comes first. Knows no model."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby

import numpy as np
from jaxtyping import Int

from gradalign.models.spelling import Spelling
from gradalign.spans import common_runs, edges_of, readable_parts

_SPECIAL = b"\xff"  # stands in a text where both have a special token; in UTF-8 it never occurs


@dataclass(frozen=True, eq=False)
class Reading:
    """A rollout in the teacher's tokens: M tokens with their edges (M + 1,) in `text`, and the edges (T + 1,) of the student's own.

    Where the teacher cannot read on, its edges stop short of the text.
    """

    text: bytes
    student_T1: Int[np.ndarray, " T1"]
    tokens_M: Int[np.ndarray, " M"]
    teacher_M1: Int[np.ndarray, " M1"]


@dataclass(frozen=True, eq=False)
class Crossings:
    """Teacher tokens that go on from bytes already written, each with the student token that comes next; and the tokens that end there."""

    teacher_K: Int[np.ndarray, " K"]
    student_K: Int[np.ndarray, " K"]
    ending: list[int]


@dataclass(frozen=True, eq=False)
class Ahead:
    """Student tokens that one more teacher token makes whole, each with that token."""

    student_K: Int[np.ndarray, " K"]
    teacher_K: Int[np.ndarray, " K"]

    def whole(self, token: int) -> int:
        """The student token that this one makes whole, -1 for none."""
        found = self.student_K[self.teacher_K == token]
        return int(found[0]) if len(found) else -1


class Translation:
    """Two spellings side by side.

    `first_V` is for each teacher token the first of the student's tokens that write the same, -1 where there is none. A teacher token
    that a student token equals byte for byte is that token; any other is cut as the student's tokenizer cuts it, standing alone. Special
    tokens are matched by name, those that end a turn by what they do.
    """

    def __init__(self, student: Spelling, teacher: Spelling):
        self.student, self.teacher = student, teacher
        self.pairs = _roles(teacher, student)
        self._back = _roles(student, teacher)
        self._cuts_V = self._cut(teacher.words_V)
        self.first_V = np.array([cut[0] if cut else self.pairs.get(token, -1) for token, cut in enumerate(self._cuts_V)])
        spelled = teacher.write([word or b"" for word in student.words_V])
        self.home_V = self._homes(spelled)
        self.ahead = _ahead(spelled)
        self._crossings: dict[tuple[int, bytes], Crossings] = {}

    def _homes(self, cuts: Sequence[list[int] | None]) -> Int[np.ndarray, " V"]:
        """For each student token the one that has the mass of the first teacher token in its text; itself where there is none.

        That one is shorter, or writes the same and is at home with itself, so following homes comes to an end.
        """
        found = [self._back.get(token, cut[0] if cut else -1) for token, cut in enumerate(cuts)]
        home_V = np.array([self.first_V[first] if first >= 0 else -1 for first in found])
        return np.where(home_V >= 0, home_V, np.arange(len(home_V)))

    def crossings(self, lead: int, written: bytes) -> Crossings:
        """Tokens of the teacher that start with `written` and go on, of which the student's next edge is `lead` bytes from the start.

        Left out are those that the student would have cut otherwise: whose text, in its tokens, has no edge after `written`. The student
        wrote the tokens up to there, so what comes cannot be a text that it writes with other ones.
        """
        if (lead, written) not in self._crossings:
            self._crossings[lead, written] = self._crossing(lead, written)
        return self._crossings[lead, written]

    def _crossing(self, lead: int, written: bytes) -> Crossings:
        found = self.teacher.words.beyond(written)
        words_V = self.teacher.words_V
        cuts = [self._cuts_V[z] for z in found] if not lead else self._cut([(words_V[z] or b"")[lead:] for z in found])
        nexts = [_next(cut, len(written) - lead, self.student.words_V) for cut in cuts]
        kept = np.array([token is not None for token in nexts], dtype=bool)
        student_K = np.array([token for token in nexts if token is not None], dtype=np.int64)
        return Crossings(found[kept], student_K, self.teacher.words.exactly(written))

    def _cut(self, words: Sequence[bytes | None]) -> list[list[int]]:
        """Each word in the student's tokens; empty where it cannot be written."""
        surface_V = self.teacher.surface_V if words is self.teacher.words_V else [""] * len(words)
        equal = [self.student.token(word, surface) if word else None for word, surface in zip(words, surface_V, strict=True)]
        others = iter(self.student.write([word for word, token in zip(words, equal, strict=True) if word and token is None]))
        return [
            [token] if token is not None else (next(others) or []) if word else []
            for word, token in zip(words, equal, strict=True)
        ]

    def read(self, tokens: Sequence[int]) -> Reading:
        """The student's tokens as the teacher reads their text.

        The teacher cuts the text as its tokenizer does, but for stretches that the student itself did not write as its own tokenizer
        would: there the teacher reads token by token. So one tokenizer on both sides reads every rollout in its own tokens.
        """
        words = [_SPECIAL if token in self._back else self.student.words_V[token] or b"" for token in tokens]
        read: list[int] = []
        whole = True
        for special, stretch in groupby(tokens, key=lambda token: token in self._back):
            group = list(stretch)
            more, whole = ([self._back[token] for token in group], True) if special else self._read(group)
            read += more
            if not whole:
                break
        sizes = [len(_SPECIAL if token in self.pairs else self.teacher.words_V[token] or b"") for token in read]
        return Reading(b"".join(words), edges_of(words), np.array(read, dtype=np.int64), np.cumsum([0, *sizes]))

    def _read(self, tokens: list[int]) -> tuple[list[int], bool]:
        """A stretch without special tokens; False where it could not be read to its end."""
        data = self.student.written(tokens)
        read, whole = self._cut_text(data)
        if not whole:
            return read, False
        student_T1 = edges_of([self.student.words_V[token] or b"" for token in tokens])
        odd_T = self._odd(tokens, data, student_T1)
        if not odd_T.any():
            return read, True
        teacher_M1 = edges_of([self.teacher.words_V[token] or b"" for token in read])
        mended, done = [], 0
        for mine, theirs in common_runs(student_T1, odd_T, teacher_M1):
            mended += read[done : theirs.start]
            for token in tokens[mine]:
                word = self.student.words_V[token] or b""
                alone = self.teacher.token(word, self.student.surface_V[token])
                more, whole = ([alone], True) if alone is not None else self._cut_text(word)
                mended += more
                if not whole:
                    return mended, False
            done = theirs.stop
        return mended + read[done:], True

    def _cut_text(self, data: bytes) -> tuple[list[int], bool]:
        """Bytes in the teacher's tokens, as far as they write just these."""
        read: list[int] = []
        for part in readable_parts(data):
            if isinstance(part, bytes):
                byte = self.teacher.words.exactly(part)
                if not byte:
                    return read, False
                read.append(byte[0])
                continue
            cut = self.teacher.cut([part])[0]
            if self.teacher.written(cut) != part.encode():
                return read + _agreeing(cut, part.encode(), self.teacher.words_V), False
            read += cut
        return read, True

    def _odd(self, tokens: Sequence[int], data: bytes, student_T1: Int[np.ndarray, " T1"]) -> np.ndarray:
        """Which tokens the student's tokenizer would not have written there; bytes that are no text it would write one by one."""
        words_V = self.student.words_V
        places: set[tuple[int, int]] = set()
        at = 0
        for part in readable_parts(data):
            own = self.student.words.exactly(part)[:1] if isinstance(part, bytes) else self.student.cut([part])[0]
            places |= {*zip(accumulate((len(words_V[token] or b"") for token in own), initial=at), own, strict=False)}
            at += len(part) if isinstance(part, bytes) else len(part.encode())
        return np.array([(place, token) not in places for place, token in zip(student_T1.tolist(), tokens, strict=False)])


def _ahead(cuts: Sequence[list[int] | None]) -> dict[tuple[int, ...], Ahead]:
    """Student tokens of several teacher tokens, by all of these but the last."""
    found: dict[tuple[int, ...], list[tuple[int, int]]] = defaultdict(list)
    for student, cut in enumerate(cuts):
        if cut and len(cut) > 1:
            found[tuple(cut[:-1])].append((student, cut[-1]))
            for size in range(1, len(cut) - 1):
                found[tuple(cut[:size])] += []  # so that the way there is known
    return {before: Ahead(*np.array(pairs, dtype=np.int64).reshape(-1, 2).T) for before, pairs in found.items()}


def _roles(source: Spelling, target: Spelling) -> dict[int, int]:
    """Special tokens of one vocabulary by those of another: one that ends a turn by the one that does there, others by their names."""
    named = {name: token for token, name in target.specials.items() if token not in target.stops}
    stops = {target.surface_V[token]: token for token in target.stops}
    ending = {token: stops.get(source.surface_V[token], target.end) for token in source.stops}
    others = {token: named.get(name) for token, name in source.specials.items() if token not in source.stops}
    return {token: found for token, found in (others | ending).items() if found is not None}


def _next(cut: Sequence[int], written: int, words_V: Sequence[bytes | None]) -> int | None:
    """The token of `cut` that begins after so many bytes; None if none does."""
    starts = accumulate((len(words_V[token] or b"") for token in cut), initial=0)
    return next((token for token, start in zip(cut, starts, strict=False) if start == written), None)


def _agreeing(cut: Sequence[int], data: bytes, words_V: Sequence[bytes | None]) -> list[int]:
    """The first tokens, as long as they write the data."""
    ends = accumulate(len(words_V[token] or b"") for token in cut)
    starts = accumulate(words_V[token] or b"" for token in cut)
    return [token for token, end, start in zip(cut, ends, starts, strict=True) if data[:end] == start]
