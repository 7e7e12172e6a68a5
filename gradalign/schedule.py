"""Where targeted rollouts go: depth windows, the random choice of nodes, candidate tokens. Pure; looks at no outcome.

Nodes are chosen with probability proportional to a size within windows of doubling depth, and the inclusion probabilities
are kept, so that averages can be put back on the on-policy nodes (Horvitz and Thompson, 1952).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

_UNIFORM_SHARE = 0.1


def depth_window(depth: Int[np.ndarray, " N"]) -> Int[np.ndarray, " N"]:
    """Index of the window [0,1), [1,2), [2,4), [4,8), ... that holds each depth."""
    return np.where(depth > 0, np.frexp(np.maximum(depth, 1).astype(np.float64))[1], 0)


def nodes_per_window(nodes_in_window: Int[np.ndarray, " W"], budget: int) -> int:
    """The largest equal number of nodes a window with which all windows together stay within `budget` nodes; 0 if none is."""
    per_window = 0
    limit = int(nodes_in_window.max(initial=1))
    while per_window < limit and np.minimum(nodes_in_window, per_window + 1).sum() <= budget:
        per_window += 1
    return per_window


def sampling_size(priority: Float[np.ndarray, " N"], visits: Int[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
    """What inclusion probabilities are proportional to: the node's part in the batch gradient, |d| x visits, with a tenth by visits alone.

    The tenth keeps every visited node's probability, and so its weight, within bounds.
    """
    gradient = priority * visits
    share = gradient / gradient.sum() if gradient.sum() > 0 else np.zeros_like(gradient)
    return (1 - _UNIFORM_SHARE) * share + _UNIFORM_SHARE * visits / visits.sum()


def inclusion_probabilities(size: Float[np.ndarray, " N"], count: int) -> Float[np.ndarray, " N"]:
    """min(1, c x size) with c such that they sum to `count` (or 1 each, if there are no more than `count`)."""
    if len(size) <= count:
        return np.ones(len(size))
    certain = np.zeros(len(size), dtype=bool)
    while True:
        left = count - certain.sum()
        probability = np.where(certain, 1.0, left * size / size[~certain].sum())
        exceeding = (probability >= 1) & ~certain
        if not exceeding.any():
            return probability
        certain |= exceeding


def systematic_sample(
    probability: Float[np.ndarray, " N"], start: float, order: Int[np.ndarray, " N"]
) -> Int[np.ndarray, " M"]:
    """Systematic sampling (Madow, 1949) in the given order: includes each unit with its probability, their sum's number of units."""
    edges = np.concatenate([[0.0], np.cumsum(probability[order])])
    edges[-1] = np.rint(edges[-1]) if abs(edges[-1] - np.rint(edges[-1])) < 1e-9 else edges[-1]
    crossed = np.floor(edges[1:] - start) - np.floor(edges[:-1] - start)
    return np.sort(order[crossed >= 1])


@dataclass(frozen=True, eq=False)
class NodeSample:
    """Chosen nodes in ascending order, and every node's inclusion probability (NaN under `top`, which has none)."""

    chosen: Int[np.ndarray, " M"]
    inclusion_N: Float[np.ndarray, " N"]


def choose_nodes(
    window_N: Int[np.ndarray, " N"],
    size_N: Float[np.ndarray, " N"],
    budget: int,
    rng: np.random.Generator,
    selection: str = "pps",
) -> NodeSample:
    """Choose at most `budget` nodes, equally many from each window: by probability proportional to size, or the top ones.

    With fewer nodes than windows, as many windows as there are nodes are drawn at random and give one node each. `top` takes the
    largest outright, as the published scheduler does: for looking at them, not for averages.
    """
    windows, counts = np.unique(window_N, return_counts=True)
    per_window = nodes_per_window(counts, budget)
    served, chance = windows, 1.0
    if per_window == 0:
        served, chance, per_window = rng.choice(windows, budget, replace=False), budget / len(windows), 1
    chosen, inclusion = [], np.full(len(size_N), np.nan)
    for window in windows:
        members = np.flatnonzero(window_N == window)
        if selection == "top":
            largest = np.argsort(-size_N[members], kind="stable")[:per_window]
            picked = members[np.sort(largest)]
        else:
            within = inclusion_probabilities(size_N[members], per_window)
            inclusion[members] = chance * within
            picked = members[systematic_sample(within, rng.random(), rng.permutation(len(members)))]
        chosen += [picked] if window in served else []
    return NodeSample(np.sort(np.concatenate(chosen)), inclusion)


def choose_candidates(
    sampled: Sequence[int], ranked: Sequence[Sequence[int]], shares: Mapping[int, Sequence[float]], limit: int, enough: float
) -> list[int]:
    """Candidate tokens at a node: the sampled one, then by turns the best of each ranking, up to `limit` tokens.

    `sampled` are the tokens that base rollouts took here, most visited first (the others of them come last); `ranked` the
    rankings by |d|, |tau - pi| and pi.
    `shares[token]` are the shares the token holds of pi and of each |d|^2; once at least two candidates hold `enough` of every one
    of them, no more are added. There are at least two where the rankings hold two: one token alone says nothing.
    """
    turns = [token for turn in zip(*ranked, strict=True) for token in turn]
    candidates: list[int] = []
    for token in [*sampled[:1], *turns, *sampled[1:]]:
        if len(candidates) >= max(limit, 2):
            break
        if token in candidates:
            continue
        if len(candidates) >= 2 and min(map(sum, zip(*(shares[c] for c in candidates), strict=True))) >= enough:
            break
        candidates.append(token)
    return candidates
