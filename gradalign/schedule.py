"""Where targeted rollouts go: depth windows, the random choice of nodes, candidate tokens, allocation. Pure.

What decides which nodes are in the sample looks at no outcome; inclusion probabilities are kept, so that sums can be put back on
the on-policy nodes (Horvitz and Thompson, 1952). How many rollouts a branch gets may look at outcomes, but never at its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

_WINDOW_SHARE = 0.3
_DISTANCE_SHARE = 0.1
_PILOT_SHARE = 0.1
_LEAST_VARIANCE = 0.03
_PRIOR_ROLLOUTS = 2.0


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


def top_nodes(window_N: Int[np.ndarray, " N"], size_N: Float[np.ndarray, " N"], budget: int) -> Int[np.ndarray, " M"]:
    """The largest nodes outright, equally many a window: the published scheduler, for looking at nodes, not for averages.

    With fewer nodes than windows, the largest of all.
    """
    windows, counts = np.unique(window_N, return_counts=True)
    per_window = nodes_per_window(counts, budget)
    order = np.argsort(-size_N, kind="stable")
    if per_window == 0:
        return np.sort(order[:budget])
    return np.sort(np.concatenate([order[window_N[order] == window][:per_window] for window in windows]))


def priority(coefficient_MNK: Float[np.ndarray, "M N K"], visits_N: Float[np.ndarray, " N"]) -> Float[np.ndarray, "N K"]:
    """What a rollout at each branch is worth to all M compared sums together: the root mean square of their coefficients.

    `coefficient_MNK` of S at the branch in <g, d>, `visits_N` visits per rollout. All zero where nothing is compared.
    """
    return visits_N[:, None] * np.sqrt((coefficient_MNK**2).sum(0) / max(len(coefficient_MNK), 1))


@dataclass(frozen=True, eq=False)
class Reference:
    """What other questions are like: mean worth of all nodes, of those in each depth window, mean distance, lengths of rollouts.

    A node's chance of being chosen is measured by these and by what is known at the node itself. Were it measured by its own
    question's other nodes, it would depend on nodes below it, which are there only because of the tokens that rollouts took at it,
    and sums would be biased.
    """

    worth: float
    window_worth_W: Float[np.ndarray, " W"]
    distance: float
    lengths_R: Int[np.ndarray, " R"]

    @staticmethod
    def of(
        worth_N: Float[np.ndarray, " N"],
        distance_N: Float[np.ndarray, " N"],
        window_N: Int[np.ndarray, " N"],
        lengths_R: Int[np.ndarray, " R"],
    ) -> "Reference":
        """One question as a reference."""
        return Reference(float(worth_N.sum()), np.bincount(window_N, weights=worth_N), float(distance_N.sum()), lengths_R)

    @staticmethod
    def mean(references: Sequence["Reference"]) -> "Reference":
        """Several questions as one reference."""
        width = max(len(reference.window_worth_W) for reference in references)
        windows = [np.pad(reference.window_worth_W, (0, width - len(reference.window_worth_W))) for reference in references]
        return Reference(
            float(np.mean([reference.worth for reference in references])),
            np.mean(windows, axis=0),
            float(np.mean([reference.distance for reference in references])),
            np.concatenate([reference.lengths_R for reference in references]),
        )


def expected_tokens(lengths_R: Int[np.ndarray, " R"], depth_N: Int[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
    """Mean number of tokens that rollouts longer than each depth had to come after the next one; at least 1."""
    past_ND = np.maximum(lengths_R[None, :] - depth_N[:, None] - 1, 0)
    longer = (lengths_R[None, :] > depth_N[:, None]).sum(1)
    return np.maximum(past_ND.sum(1) / np.maximum(longer, 1), 1.0)


def wanted_rollouts(
    worth_N: Float[np.ndarray, " N"],
    distance_N: Float[np.ndarray, " N"],
    window_N: Int[np.ndarray, " N"],
    reference: Reference,
    budget: float,
) -> Float[np.ndarray, " N"]:
    """Rollouts wanted at each node, a real number: `budget` in all at a question like the reference (Neyman, 1934).

    Six tenths go by worth (priority over the square root of what a rollout costs), three tenths by the same within depth windows
    that share equally, so that no depth goes unseen, and a tenth by `distance_N`, visits times how far the teachers' distributions lie
    from the student's: nodes where the student is sure of one token and a teacher of another hardly move <g, d>, but make the
    teacher's advantage.
    """
    windows = reference.window_worth_W
    known = np.where(window_N < len(windows), np.pad(windows, (0, 1))[np.minimum(window_N, len(windows))], 0.0)
    within = np.divide(worth_N, known, out=np.zeros_like(worth_N), where=known > 0)
    share = _WINDOW_SHARE * within / max((windows > 0).sum(), 1)
    if reference.worth > 0:
        share += (1 - _WINDOW_SHARE - _DISTANCE_SHARE) * worth_N / reference.worth
    if reference.distance > 0:
        share += _DISTANCE_SHARE * distance_N / reference.distance
    return share * budget


def inclusion_probabilities(wanted_N: Float[np.ndarray, " N"], least_N: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
    """Chance that a node is chosen: 1 where it deserves at least the rollouts that a chosen node gets, else their ratio."""
    return np.minimum(1.0, wanted_N / least_N)


def poisson_sample(inclusion_N: Float[np.ndarray, " N"], uniform_N: Float[np.ndarray, " N"]) -> Int[np.ndarray, " M"]:
    """Each node by itself where its own uniform lies below its chance. With a larger budget the sample only grows."""
    return np.flatnonzero(uniform_N < inclusion_N)


def choose_candidates(
    turns_NJ: Int[np.ndarray, "N J"], shares_NJS: Float[np.ndarray, "N J S"], limit: int, enough: float
) -> Bool[np.ndarray, "N J"]:
    """Candidate tokens at each node, as a mask over `turns_NJ`: by turns the best of each ranking, up to `limit` tokens.

    `turns_NJ` holds the rankings by |d|, |tau - pi| and pi by turns (-1 for none), `shares_NJS` the share that each token holds of
    pi and of every |d|^2; once at least two candidates hold `enough` of all of them, no more are added. There are at least two where the
    rankings hold two: one token alone says nothing. Which tokens base rollouts took plays no part, or sums over what is left to
    them would be biased.
    """
    chosen = np.zeros(turns_NJ.shape, dtype=bool)
    held = np.zeros((len(turns_NJ), shares_NJS.shape[2]))
    for j in range(turns_NJ.shape[1]):
        count = chosen.sum(1)
        repeated = (chosen[:, :j] & (turns_NJ[:, :j] == turns_NJ[:, j : j + 1])).any(1)
        satisfied = (count >= 2) & (held.min(1) >= enough)
        chosen[:, j] = (turns_NJ[:, j] >= 0) & ~repeated & ~satisfied & (count < max(limit, 2))
        held += np.where(chosen[:, j, None], shares_NJS[:, j], 0.0)
    return chosen


def pilot_branches(priority_NK: Float[np.ndarray, "N K"], candidate_NK: Bool[np.ndarray, "N K"]) -> Bool[np.ndarray, "N K"]:
    """Candidates that a chosen node tries first: those with a tenth of its largest priority, the two largest at least."""
    worth = np.where(candidate_NK, priority_NK, -1.0)
    largest = worth.max(axis=1, keepdims=True, initial=0.0)
    rank = np.argsort(np.argsort(-worth, axis=1, kind="stable"), axis=1)
    return candidate_NK & ((worth > _PILOT_SHARE * largest) | (rank < 2))


def others_variance(
    success_MK: Float[np.ndarray, "M K"], n_MK: Int[np.ndarray, "M K"], prior_MK: Float[np.ndarray, "M K"]
) -> Float[np.ndarray, "M K"]:
    """S(1 - S) of a branch as the *other* branches of its node tell it, shrunk to `prior_MK` with the weight of two rollouts.

    A branch's own outcomes have no say in how many rollouts it gets, so its mean stays unbiased under adaptive allocation.
    `success_MK` counts successes among `n_MK` targeted rollouts; the prior must not rest on rollouts through the branch either.
    """
    others = n_MK.sum(1, keepdims=True) - n_MK
    value = (success_MK.sum(1, keepdims=True) - success_MK + _PRIOR_ROLLOUTS * prior_MK) / (others + _PRIOR_ROLLOUTS)
    return np.maximum(value * (1 - value), _LEAST_VARIANCE)


def pilot_rollouts(
    pilot_B: Bool[np.ndarray, " B"], cost_B: Float[np.ndarray, " B"], count: int, limit: float
) -> Int[np.ndarray, " B"]:
    """`count` rollouts for each pilot branch; equally fewer where they would cost more than `limit`, at last the cheapest only."""
    for each in range(count, 0, -1):
        if (pilot_B * cost_B).sum() * each <= limit:
            return pilot_B * each
    order = np.argsort(np.where(pilot_B, cost_B, np.inf), kind="stable")[: int(pilot_B.sum())]
    counts = np.zeros(len(pilot_B), dtype=np.int64)
    counts[order[np.cumsum(cost_B[order]) <= limit]] = 1
    return counts


def allocate(
    worth_B: Float[np.ndarray, " B"],
    deviation_B: Float[np.ndarray, " B"],
    cost_B: Float[np.ndarray, " B"],
    had_B: Int[np.ndarray, " B"],
    limit: float,
) -> Int[np.ndarray, " B"]:
    """Rollouts in all for each branch: proportional to worth x deviation / sqrt(cost) (Neyman, 1934), no fewer than `had_B`.

    The scale is set so that with the largest deviation everywhere, 1/2, the cost would just keep within `limit`. Outcomes enter by
    `deviation_B` alone, so that a branch's deviation moves no other branch's count, and where outcomes are nearly sure less than the
    limit is spent.
    """
    pull = worth_B / np.sqrt(cost_B)

    def counts(scale: float, deviation: np.ndarray | float) -> np.ndarray:
        return np.maximum(had_B, np.floor(scale * pull * deviation + 0.5)).astype(np.int64)

    if not pull.sum() > 0 or (had_B * cost_B).sum() >= limit:
        return had_B
    low, high = 0.0, 1 / pull.max()
    while (counts(high, 0.5) * cost_B).sum() <= limit:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if (counts(middle, 0.5) * cost_B).sum() <= limit else (low, middle)
    return counts(low, np.minimum(deviation_B, 0.5))
