"""The prefix tree of a question's rollouts as flat arrays. Pure: token ids in, indices out; knows no model and no text.

Node 0 is the root (the prompt alone). A rollout of T tokens steps through nodes of depth 0 .. T-1, where it chooses a token,
and ends at one of depth T. The branch (u, k) is the child of u by token k, so branches and nodes other than the root
are the same thing, and counts over branches are counts over children.

A million rollouts of a hundred tokens have up to 1e8 nodes. So numbers of nodes and tokens have 32 bits, and whatever is made on the way is
made for a block of rollouts at a time.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

_BLOCK = 1 << 20  # steps in a block of rollouts


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
        return _origin(self.path_RT)

    def branch_sums(self, valid_RT: Bool[np.ndarray, "R T"], weight_R: np.ndarray) -> np.ndarray:
        """Sum of `weight_R` over the rollouts whose step into each node is valid: (N,)."""
        return _sums(self.path_RT, valid_RT, np.asarray(weight_R, dtype=np.float64), len(self))

    def visits(self) -> Int[np.ndarray, " N"]:
        """Number of rollouts that chose a token at each node: (N,); 0 where rollouts only end."""
        return _sums(self.origin_RT(), self.path_RT >= 0, np.ones(len(self.path_RT), dtype=np.int64), len(self))

    def weighted_visits(self, weight_R: np.ndarray) -> np.ndarray:
        """Sum of `weight_R` over the rollouts that chose a token at each node: (N,)."""
        return _sums(self.origin_RT(), self.path_RT >= 0, np.asarray(weight_R, dtype=np.float64), len(self))

    def child(self, node: Int[np.ndarray, "*B"], token: Int[np.ndarray, "*B"]) -> Int[np.ndarray, "*B"]:
        """The child of each node by each token, -1 where the tree has none (nodes stand sorted by parent, then token)."""
        asked = (node >= 0) & (token >= 0)
        if not asked.any():
            return np.full(node.shape, -1)
        span = np.array([node[asked].min(), node[asked].max() + 1], dtype=self.parent.dtype)  # of another all would be copied
        first, last = np.searchsorted(self.parent, span)
        near = slice(first - 1, last)  # with one before them, so that there is one
        base = int(max(self.token[near].max(), token.max(initial=0))) + 1
        keys, wanted = self.parent[near].astype(np.int64) * base + self.token[near], node.astype(np.int64) * base + token
        place = np.searchsorted(keys, wanted)
        found = asked & (keys[np.minimum(place, len(keys) - 1)] == wanted)
        return np.where(found, place + first - 1, -1)

    def follow(self, sequences: Sequence[np.ndarray]) -> Int[np.ndarray, "P T2"]:
        """The nodes that each step of other sequences leads to, -1 from where they leave the tree on and past their ends."""
        tokens_PT = _padded(sequences, _lengths(sequences))
        path_PT = np.full_like(tokens_PT, -1)
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
    """The tree of `sequences` (R of them, ragged), nodes ordered by depth, then parent, then token: the same for any order.

    With rollouts in lexicographic order, those that share a prefix stand together, and the nodes of a depth stand as they are first passed:
    each rollout begins new ones from where it leaves the one before it. Sequences may be views of one array, which a list of arrays
    of their own is more than twice as large as.
    """
    lengths = _lengths(sequences)
    if lengths.sum() >= np.iinfo(np.int32).max:
        raise ValueError(f"{lengths.sum():,} tokens are too many for one tree")
    tokens_RT = _padded(sequences, lengths)
    order = _lexicographic(tokens_RT)
    return _numbered(tokens_RT, lengths, order, _shared(tokens_RT, order))


def _lexicographic(tokens_RT: Int[np.ndarray, "R T"]) -> Int[np.ndarray, " R"]:
    """The order of rollouts by first token, then second, ...: numpy sorts rows of 32-bit numbers as texts of so many letters."""
    if tokens_RT.shape[1] == 0:
        return np.arange(len(tokens_RT))
    return np.argsort(tokens_RT.view(np.dtype((np.str_, tokens_RT.shape[1])))[:, 0], kind="stable")


def _shared(tokens_RT: Int[np.ndarray, "R T"], order: Int[np.ndarray, " R"]) -> Int[np.ndarray, " R"]:
    """How many first tokens each rollout has in common with the one before it in this order (past their ends all are alike)."""
    shared_R = np.zeros(len(order), dtype=np.int64)
    for at in _blocks(tokens_RT[1:]):
        alike = tokens_RT[order[1:][at]] == tokens_RT[order[:-1][at]]
        shared_R[1:][at] = np.logical_and.accumulate(alike, axis=1).sum(1)
    return shared_R


def _numbered(
    tokens_RT: Int[np.ndarray, "R T"],
    lengths: Int[np.ndarray, " R"],
    order: Int[np.ndarray, " R"],
    shared_R: Int[np.ndarray, " R"],
) -> PrefixTree:
    """The tree of rollouts in this order; numbers of nodes take the place of the tokens."""
    steps = tokens_RT.shape[1]
    ends = lengths[order]
    begin_D, end_D = (np.bincount(at, minlength=steps + 1) for at in (np.minimum(shared_R, ends), ends))
    begun_T = np.cumsum(begin_D - end_D)[:-1]
    depth = np.repeat(np.arange(steps + 1, dtype=np.int32), [1, *begun_T])
    parent, token = np.full_like(depth, -1), np.full_like(depth, -1)
    last_T = np.cumsum([0, *begun_T[:-1]], dtype=np.int32)[:steps]
    for at in _blocks(tokens_RT):
        tokens = tokens_RT[order[at]]
        begins = (tokens >= 0) & (np.arange(steps) >= shared_R[at, None])
        path = last_T + np.cumsum(begins, axis=0, dtype=np.int32)
        last_T = path[-1].copy()
        path[tokens < 0] = -1
        token[path[begins]] = tokens[begins]
        parent[path[begins]] = _origin(path)[begins]
        tokens_RT[order[at]] = path
    return PrefixTree(parent, token, depth, tokens_RT)


def _origin(path_RT: Int[np.ndarray, "R T"]) -> Int[np.ndarray, "R T"]:
    """Where each step starts: where the one before led to, at first the root; -1 past the end."""
    origin_RT = np.zeros_like(path_RT)
    origin_RT[:, 1:] = path_RT[:, :-1]
    origin_RT[path_RT < 0] = -1
    return origin_RT


def _sums(node_RT: Int[np.ndarray, "R T"], valid_RT: Bool[np.ndarray, "R T"], weight_R: np.ndarray, nodes: int) -> np.ndarray:
    """Sum of `weight_R` at each of so many nodes, over the valid cells."""
    sums = np.zeros(nodes, dtype=weight_R.dtype)
    for at in _blocks(node_RT):
        weights = np.broadcast_to(weight_R[at, None], valid_RT[at].shape)
        np.add.at(sums, node_RT[at][valid_RT[at]], weights[valid_RT[at]])
    return sums


def _lengths(sequences: Sequence[np.ndarray]) -> Int[np.ndarray, " R"]:
    return np.array([len(sequence) for sequence in sequences], dtype=np.int64)


def _padded(sequences: Sequence[np.ndarray], lengths: Int[np.ndarray, " R"]) -> Int[np.ndarray, "R T"]:
    """Tokens side by side, -1 past the end of each sequence."""
    padded = np.full((len(sequences), int(lengths.max(initial=0))), -1, dtype=np.int32)
    for at in _blocks(padded):
        within = np.arange(padded.shape[1]) < lengths[at, None]
        padded[at][within] = np.concatenate(sequences[at], dtype=np.int32, casting="unsafe")
    return padded


def _blocks(array_RT: np.ndarray) -> Iterator[slice]:
    """Ranges of its rows that hold about as many cells as fit a cache."""
    rows = max(1, _BLOCK // max(1, array_RT.shape[1]))
    return (slice(start, start + rows) for start in range(0, len(array_RT), rows))
