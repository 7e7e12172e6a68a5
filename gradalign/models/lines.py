"""How rows that share prefixes lie in lines, one prefix each, or are taken in parts. Counts in, places out; knows no keys and no model."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

_CALL = 8192  # keys read in vain that cost as much as a call of a kernel
_PREFIX = 8  # reading one more prefix costs as much as so many idle places beside a prefix that is read anyway


@dataclass(frozen=True, eq=False)
class Layout:
    """B rows in P lines of R places: `row_C` says which row is at each of the P·R places (the first row at idle ones), `place_B` which
    place each row has, and `prefix_P` which prefix each line has.
    """

    width: int
    row_C: Int[np.ndarray, " C"]
    place_B: Int[np.ndarray, " B"]
    prefix_P: Int[np.ndarray, " P"]

    @property
    def full(self) -> bool:
        """Are the lines the rows as they lie?"""
        return len(self.row_C) == len(self.place_B)

    def most(self, each_B: Int[np.ndarray, " B"]) -> Int[np.ndarray, " P"]:
        """The largest number of a line's rows."""
        most_P = np.zeros(len(self.prefix_P), dtype=np.int64)
        np.maximum.at(most_P, self.place_B // self.width, each_B)
        return most_P


@dataclass(frozen=True)
class Part:
    """Rows from `start` to `stop`, which read the first `keys` of one line's prefix; all of these, if it is `even`."""

    line: int
    start: int
    stop: int
    keys: int
    even: bool


def parts_of(line_B: Int[np.ndarray, " B"], keys_B: Int[np.ndarray, " B"]) -> list[Part]:
    """Rows that lie together by line and by how many keys they read, in parts for a kernel that takes one prefix at a time.

    Rows of a line that read a few keys less go with those that read more, where that costs less than a call of their own.
    """
    starts = np.flatnonzero((np.diff(line_B, prepend=-1) != 0) | (np.diff(keys_B, prepend=-1) != 0))
    bounds = np.append(starts, len(line_B)).tolist()
    parts: list[Part] = []
    for line, keys, start, stop in zip(line_B[starts].tolist(), keys_B[starts].tolist(), bounds, bounds[1:], strict=False):
        last = parts[-1] if parts else None
        if last and last.line == line and min(keys, last.keys) and _in_vain(last, keys, stop - start) < _CALL:
            parts[-1] = Part(line, last.start, stop, max(keys, last.keys), False)
        else:
            parts.append(Part(line, start, stop, keys, True))
    return parts


def _in_vain(part: Part, keys: int, rows: int) -> int:
    """What those that read fewer keys would read more, if so many rows that read `keys` went with a part's."""
    return max(0, keys - part.keys) * (part.stop - part.start) + max(0, part.keys - keys) * rows


def one_each(count_N: Int[np.ndarray, " N"]) -> Layout:
    """A line for each prefix."""
    return _of_width(int(count_N.max(initial=1)), count_N)


def laid_out(count_N: Int[np.ndarray, " N"], keys_B: Int[np.ndarray, " B"]) -> Layout:
    """Lines for rows that lie together by prefix, `count_N` of each, that read `keys_B` of its keys.

    A prefix with many rows is given several lines, each with a copy of its keys, lest every other line be padded to as many, or rows that
    read few keys pay for those that read many. The width weighs such copies against idle places and keys that nobody reads.
    """
    widths = np.unique(np.append(count_N, 2 ** np.arange(int(count_N.max()).bit_length()))).tolist()
    layouts = [_of_width(width, count_N) for width in widths]
    return min(layouts, key=lambda layout: (layout.width + _PREFIX) * int(layout.most(keys_B + 1).sum()))


def _of_width(width: int, count_N: Int[np.ndarray, " N"]) -> Layout:
    lines_N = -(-count_N // width)
    first_N, before_N = (np.cumsum(of) - of for of in (lines_N, count_N))
    rows = np.arange(count_N.sum())
    place_B = np.repeat(first_N * width - before_N, count_N) + rows
    row_C = np.zeros(int(lines_N.sum()) * width, dtype=np.int64)
    row_C[place_B] = rows
    return Layout(width, row_C, place_B, np.repeat(np.arange(len(count_N)), lines_N))
