"""The prefix tree of a question's rollouts as flat arrays. Pure: token ids in, indices out; knows no model and no text.

Node 0 is the root (the prompt alone). A rollout of T tokens steps through nodes of depth 0 .. T-1, where it chooses a token,
and ends at one of depth T. The branch (u, k) is the child of u by token k, so branches and nodes other than the root
are the same thing, and counts over branches are counts over children.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int


@dataclass(frozen=True, eq=False)
class PrefixTree:
    """`parent`, `token`, `depth` (N,) with -1 at the root; `path_RT` the child that each step leads to, -1 past the end."""

    parent: Int[np.ndarray, " N"]
    token: Int[np.ndarray, " N"]
    depth: Int[np.ndarray, " N"]
    path_RT: Int[np.ndarray, "R T"]

    def __len__(self) -> int:
        return len(self.parent)

    def origin_RT(self) -> Int[np.ndarray, "R T"]:
        """The node at which each step is chosen (parent of where it leads), -1 past the end."""
        return np.where(self.path_RT >= 0, self.parent[self.path_RT], -1)

    def branch_sums(self, valid_RT: Bool[np.ndarray, "R T"], weight_R: np.ndarray) -> np.ndarray:
        """Sum of `weight_R` over the rollouts whose step into each node is valid: (N,)."""
        weights = np.broadcast_to(np.asarray(weight_R, dtype=np.float64)[:, None], self.path_RT.shape)
        return np.bincount(self.path_RT[valid_RT], weights=weights[valid_RT], minlength=len(self)).astype(np.float64)

    def visits(self) -> Int[np.ndarray, " N"]:
        """Number of rollouts that chose a token at each node: (N,); 0 where rollouts only end."""
        origin = self.origin_RT()
        return np.bincount(origin[origin >= 0], minlength=len(self))

    def weighted_visits(self, weight_R: np.ndarray) -> np.ndarray:
        """Sum of `weight_R` over the rollouts that chose a token at each node: (N,)."""
        origin = self.origin_RT()
        weights = np.broadcast_to(np.asarray(weight_R, dtype=np.float64)[:, None], origin.shape)
        return np.bincount(origin[origin >= 0], weights=weights[origin >= 0], minlength=len(self)).astype(np.float64)

    def child(self, node: Int[np.ndarray, "*B"], token: Int[np.ndarray, "*B"]) -> Int[np.ndarray, "*B"]:
        """The child of each node by each token, -1 where the tree has none (nodes stand sorted by parent, then token)."""
        base = int(max(self.token.max(initial=0), token.max(initial=0))) + 2
        keys = self.parent * base + self.token + 1
        wanted = node * base + token + 1
        place = np.searchsorted(keys[1:], wanted) + 1
        found = (place < len(self)) & (keys[np.minimum(place, len(self) - 1)] == wanted) & (node >= 0) & (token >= 0)
        return np.where(found, place, -1)

    def follow(self, sequences: Sequence[np.ndarray]) -> Int[np.ndarray, "P T2"]:
        """The nodes that each step of other sequences leads to, -1 from where they leave the tree on and past their ends."""
        lengths = np.array([len(sequence) for sequence in sequences], dtype=np.int64)
        tokens_PT = _padded(sequences, lengths)
        path_PT = np.full(tokens_PT.shape, -1, dtype=np.int64)
        here = np.zeros(len(sequences), dtype=np.int64)
        for step in range(tokens_PT.shape[1]):
            here = self.child(here, tokens_PT[:, step])
            path_PT[:, step] = here
        return path_PT

    def prefix(self, node: int) -> tuple[int, ...]:
        """The generated tokens that lead from the root to `node`."""
        tokens = []
        while node > 0:
            tokens.append(int(self.token[node]))
            node = int(self.parent[node])
        return tuple(reversed(tokens))


def build_tree(sequences: Sequence[np.ndarray]) -> PrefixTree:
    """The tree of `sequences` (R of them, ragged), nodes ordered by depth, then parent, then token: the same for any order."""
    lengths = np.array([len(sequence) for sequence in sequences], dtype=np.int64)
    tokens_RT = _padded(sequences, lengths)
    parents, tokens, depths = [np.array([-1])], [np.array([-1])], [np.array([0])]
    path_RT = np.full(tokens_RT.shape, -1, dtype=np.int64)
    here, size, base = np.zeros(len(sequences), dtype=np.int64), 1, int(tokens_RT.max(initial=0)) + 1
    for step in range(tokens_RT.shape[1]):
        rows = np.flatnonzero(lengths > step)
        unique, inverse = np.unique(here[rows] * base + tokens_RT[rows, step], return_inverse=True)
        here[rows] = size + inverse
        path_RT[rows, step] = here[rows]
        parents.append(unique // base)
        tokens.append(unique % base)
        depths.append(np.full(len(unique), step + 1))
        size += len(unique)
    return PrefixTree(np.concatenate(parents), np.concatenate(tokens), np.concatenate(depths), path_RT)


def _padded(sequences: Sequence[np.ndarray], lengths: np.ndarray) -> np.ndarray:
    padded = np.full((len(sequences), int(lengths.max(initial=0))), -1, dtype=np.int64)
    padded[np.arange(padded.shape[1]) < lengths[:, None]] = np.concatenate([np.asarray(s, dtype=np.int64) for s in sequences])
    return padded
