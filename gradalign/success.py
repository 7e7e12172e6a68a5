"""Success estimates: how often the student succeeds once token k is chosen at u and it goes on by itself. Pure.

A rollout counts at a branch (u, k) if it passed there and was sampled on-policy from there on: base rollouts everywhere on
their path, a targeted rollout at the branch it was forced through and below, never above. No rollout, no value: NaN, not 0.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import beta

from gradalign.tree import PrefixTree


@dataclass(frozen=True, eq=False)
class SuccessEstimates:
    """Estimates of S at branches, any shape (here "B").

    `n` valid rollouts, `mean` their mean reward (NaN at n = 0), `lower` and `upper` the 95% interval, `variance` an unbiased
    estimate of the variance of `mean` for subtracting, `smooth_variance` one that is never 0 by chance at 0/n and n/n, for
    intervals (both NaN at n < 2). Where `exact`, the branch ends the rollout, its reward is known, and both variances are 0.
    """

    n: Int[np.ndarray, "*B"]
    mean: Float[np.ndarray, "*B"]
    lower: Float[np.ndarray, "*B"]
    upper: Float[np.ndarray, "*B"]
    variance: Float[np.ndarray, "*B"]
    smooth_variance: Float[np.ndarray, "*B"]
    exact: Bool[np.ndarray, "*B"]


def estimate_success(
    n: Int[np.ndarray, "*B"], total: Float[np.ndarray, "*B"], squares: Float[np.ndarray, "*B"], exact: Bool[np.ndarray, "*B"]
) -> SuccessEstimates:
    """From the number of rollouts, the sum of their rewards and the sum of squared rewards (rewards in [0, 1])."""
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = total / n
        variance = np.maximum(squares / n - mean**2, 0) / (n - 1)
        smooth = (total + 0.5) / (n + 1)
        smooth_variance = smooth * (1 - smooth) / (n - 1)
    lower, upper = jeffreys_interval(n, total)
    known = exact & (n > 0)
    return SuccessEstimates(
        n=n,
        mean=mean,
        lower=np.where(known, mean, lower),
        upper=np.where(known, mean, upper),
        variance=np.where(known, 0.0, np.where(n >= 2, variance, np.nan)),
        smooth_variance=np.where(known, 0.0, np.where(n >= 2, smooth_variance, np.nan)),
        exact=known,
    )


def jeffreys_interval(
    n: Int[np.ndarray, "*B"], total: Float[np.ndarray, "*B"], level: float = 0.95
) -> tuple[Float[np.ndarray, "*B"], Float[np.ndarray, "*B"]]:
    """Equal-tailed Jeffreys interval for a proportion (Brown, Cai and DasGupta, 2001): reaches 0 at 0/n and 1 at n/n."""
    tail = (1 - level) / 2
    lower = np.where(total <= 0, 0.0, beta.ppf(tail, total + 0.5, n - total + 0.5))
    upper = np.where(total >= n, 1.0, beta.ppf(1 - tail, total + 0.5, n - total + 0.5))
    return np.where(n > 0, lower, np.nan), np.where(n > 0, upper, np.nan)


def branch_success(
    tree: PrefixTree,
    reward_R: Float[np.ndarray, " R"],
    forced_R: Int[np.ndarray, " R"],
    terminal_N: Bool[np.ndarray, " N"],
    child: Int[np.ndarray, "*B"],
) -> SuccessEstimates:
    """Estimates for branches of a tree of base and targeted rollouts, each named by the `child` it leads to (-1: no rollout took it).

    `forced_R` is the depth of the node at which a rollout's token was forced, -1 for a base rollout: the steps from there on
    are valid. `terminal_N` marks children that end the rollout.
    """
    steps = np.arange(tree.path_RT.shape[1])
    valid_RT = (tree.path_RT >= 0) & (steps >= forced_R[:, None])
    there = child >= 0

    def count(weight_R: np.ndarray) -> np.ndarray:
        return np.where(there, tree.branch_sums(valid_RT, weight_R)[child], 0.0)

    n = count(np.ones(len(reward_R))).astype(np.int64)
    return estimate_success(n, count(reward_R), count(reward_R**2), there & terminal_N[child])


def shrink(success: SuccessEstimates, centre: Float[np.ndarray, "*B"]) -> Float[np.ndarray, "*B"]:
    """Posterior means under a Beta prior at `centre` (the node's value), its strength fitted to all branches (empirical Bayes).

    By moments: the spread of the means about their centres beyond Bernoulli noise says how unlike branches are (Morris,
    1983). A branch with no rollout takes the centre; a known one stays.
    """
    useful = (success.n >= 2) & ~success.exact & ~np.isnan(centre)
    n, mean, middle = success.n[useful], success.mean[useful], np.clip(centre[useful], 0.02, 0.98)
    noise = middle * (1 - middle)
    beyond = ((mean - middle) ** 2 - noise / np.maximum(n, 1)).sum()
    alike = noise.sum() / max(beyond, 1e-3 * noise.sum(), 1e-12)
    strength = float(np.clip(alike - 1, 0.5, 1000.0))
    total = np.where(success.n > 0, success.mean, 0.0) * success.n
    shrunken = (total + strength * centre) / (success.n + strength)
    return np.where(success.exact, success.mean, shrunken)
