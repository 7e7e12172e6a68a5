"""Where targeted rollouts go: depth windows, the random choice of nodes, candidate tokens, allocation. Pure.

What decides which nodes are in the sample looks at no outcome; inclusion probabilities are kept, so that sums can be put back on
the on-policy nodes (Horvitz and Thompson, 1952). How many rollouts a branch gets may look at outcomes, but never at its own.
"""

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


def priority(
    coefficient_MNK: Float[np.ndarray, "M N K"], length2_M: Float[np.ndarray, " M"], visits_N: Float[np.ndarray, " N"]
) -> Float[np.ndarray, "N K"]:
    """What a rollout at each branch is worth to all M compared sums together: the root mean square of their coefficients.

    `coefficient_MNK` of S at the branch in <g, d>, `length2_M` the pooled |d|^2 that makes objectives of different length
    comparable (as in `gain`; one a hundredth as long as the longest counts as that), `visits_N` visits per rollout.
    """
    scale_M = np.maximum(length2_M, 1e-4 * length2_M.max(initial=0.0))
    scale_M = np.where(scale_M > 0, scale_M, 1.0)
    return visits_N[:, None] * np.sqrt((coefficient_MNK**2 / scale_M[:, None, None]).mean(0))


def wanted_rollouts(
    size_N: Float[np.ndarray, " N"],
    distance_N: Float[np.ndarray, " N"],
    window_N: Int[np.ndarray, " N"],
    cost_N: Float[np.ndarray, " N"],
    budget: float,
) -> Float[np.ndarray, " N"]:
    """Rollouts wanted at each node, a real number, worth `budget` in all at `cost_N` each (cost-aware Neyman allocation).

    Six tenths go by size / sqrt(cost), three tenths by the same within depth windows that share equally, so that no depth goes unseen,
    and a tenth by `distance_N`, visits times how far the teachers' distributions lie from the student's: nodes where the student is
    sure of one token and a teacher of another hardly move <g, d>, but make the teacher's advantage. All zero where no node has a size.
    """
    worth, far = size_N / np.sqrt(cost_N), distance_N / np.sqrt(cost_N)
    if not worth.sum() > 0:
        return np.zeros_like(worth)
    in_window = np.bincount(window_N, weights=worth)
    within = np.divide(worth, in_window[window_N], out=np.zeros_like(worth), where=in_window[window_N] > 0)
    share = _WINDOW_SHARE * within / (in_window > 0).sum()
    share += (1 - _WINDOW_SHARE - _DISTANCE_SHARE) * worth / worth.sum() + _DISTANCE_SHARE * far / max(far.sum(), 1e-300)
    return share * budget / (share * cost_N).sum()


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
    success_MK: Float[np.ndarray, "M K"], n_MK: Int[np.ndarray, "M K"], prior: float
) -> Float[np.ndarray, "M K"]:
    """S(1 - S) of a branch as the *other* branches of its node tell it, shrunk to `prior` with the weight of two rollouts.

    A branch's own outcomes have no say in how many rollouts it gets, so its mean stays unbiased under adaptive allocation.
    `success_MK` counts successes among `n_MK` targeted rollouts.
    """
    others = n_MK.sum(1, keepdims=True) - n_MK
    value = (success_MK.sum(1, keepdims=True) - success_MK + _PRIOR_ROLLOUTS * prior) / (others + _PRIOR_ROLLOUTS)
    return np.maximum(value * (1 - value), _LEAST_VARIANCE)


def pilot_rollouts(
    pilot_MK: Bool[np.ndarray, "M K"], cost_MK: Float[np.ndarray, "M K"], count: int, limit: float
) -> Int[np.ndarray, "M K"]:
    """`count` rollouts for each pilot branch; equally fewer where they would cost more than `limit`, at last the cheapest only."""
    for each in range(count, 0, -1):
        if (pilot_MK * cost_MK).sum() * each <= limit:
            return pilot_MK * each
    order = np.argsort(np.where(pilot_MK, cost_MK, np.inf), axis=None, kind="stable")[: int(pilot_MK.sum())]
    counts = np.zeros(pilot_MK.size, dtype=np.int64)
    counts[order[np.cumsum(cost_MK.ravel()[order]) <= limit]] = 1
    return counts.reshape(pilot_MK.shape)


def allocate(
    worth_MK: Float[np.ndarray, "M K"], cost_MK: Float[np.ndarray, "M K"], had_MK: Int[np.ndarray, "M K"], limit: float
) -> Int[np.ndarray, "M K"]:
    """Rollouts in all for each branch: proportional to worth / sqrt(cost) (Neyman, 1934), no fewer than `had_MK`, within `limit`."""
    pull = worth_MK / np.sqrt(cost_MK)

    def counts(scale: float) -> np.ndarray:
        return np.maximum(had_MK, np.floor(scale * pull + 0.5)).astype(np.int64)

    if not pull.sum() > 0 or (had_MK * cost_MK).sum() >= limit:
        return had_MK
    low, high = 0.0, 1 / pull.max()
    while (counts(high) * cost_MK).sum() <= limit:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if (counts(middle) * cost_MK).sum() <= limit else (low, middle)
    return counts(low)
