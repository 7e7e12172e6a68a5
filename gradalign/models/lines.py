"""How rows that share prefixes are laid out in lines, one prefix each. Counts in, places out; knows no keys and no model."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

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
