"""Sums over all on-policy nodes of a question, linear in success, from every valid rollout: unbiased, with standard errors. Pure.

Two facts make rollouts go far. First, <g, d> = sum_k a_k S_k with a_k = pi_k lift_k and lift_k = d_k - sum_j pi_j d_j is also
the mean over k ~ pi of lift_k S_k: so a rollout that passes a node freely is evidence on its <g, d>, and a single rollout on
that of every node on its path (the policy gradient's log-derivative identity; Williams, 1992). Second, at nodes where the sampled token
rarely matters, rollouts forced through chosen tokens say more (stratification). Every node's term mixes the two, by weights that look
at no outcome, and values are carried up the tree: a branch counts with the stratified value of the node that it leads to.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float, Int

from gradalign.tree import PrefixTree

_FREE_VARIANCE = 1.5
_SPREAD = 0.25
_LEAST_VARIANCE = 0.03


@dataclass(frozen=True, eq=False)
class Passage:
    """How R rollouts run through a tree of N nodes: which steps were free, which forced, and how many arrived where.

    `forced_R` is the depth of the node at which a rollout's token was forced, -1 for a base rollout. A rollout counts at the
    branch it was forced through and at all below, nowhere above. Counts are by the node that a step leads to.
    """

    tree: PrefixTree
    forced_R: Int[np.ndarray, " R"]
    free_RT: Bool[np.ndarray, "R T"]
    free_N: Float[np.ndarray, " N"]
    forced_N: Float[np.ndarray, " N"]
    arrived_N: Float[np.ndarray, " N"]
    end_R: Int[np.ndarray, " R"]


def passage(tree: PrefixTree, forced_R: Int[np.ndarray, " R"]) -> Passage:
    """Count the free and the forced steps into every node."""
    steps = np.arange(tree.path_RT.shape[1])
    there = tree.path_RT >= 0
    free = there & (steps > forced_R[:, None])
    forced = there & (steps == forced_R[:, None])
    one = np.ones(len(forced_R))
    into_free, into_forced = tree.branch_sums(free, one), tree.branch_sums(forced, one)
    arrived = into_free + into_forced
    arrived[0] = (forced_R < 0).sum()
    end = tree.path_RT[np.arange(len(forced_R)), there.sum(1) - 1]
    return Passage(tree, forced_R, free, into_free, into_forced, arrived, end)


def branch_shares(flow: Passage, probability_N: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
    """How much each node's value counts in its parent's: pi where it was forced (`probability_N`), else its share of free arrivals."""
    tree = flow.tree
    arrived = flow.arrived_N[tree.parent]
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(arrived > 0, flow.free_N / arrived, 0.0)
    share = np.where(flow.forced_N > 0, probability_N, share)
    share[0] = 0.0
    return share


def _levels(tree: PrefixTree) -> list[slice]:
    """Nodes of depth 1, 2, ...: a tree's nodes stand sorted by depth."""
    edges = np.searchsorted(tree.depth, np.arange(1, int(tree.depth.max(initial=0)) + 2))
    return [slice(int(start), int(stop)) for start, stop in pairwise(edges)]


def stratified_values(
    flow: Passage, reward_R: Float[np.ndarray, " R"], probability_N: Float[np.ndarray, " N"]
) -> Float[np.ndarray, " N"]:
    """V of every node, carried up the tree: sum over forced tokens of pi_k S_k, plus the free rollouts through all others.

    Unbiased for any choice of forced tokens that looks at no outcome, and less noisy than the plain mean. NaN where no rollout
    arrived.
    """
    tree = flow.tree
    ended = np.bincount(flow.end_R, weights=reward_R, minlength=len(tree))
    with np.errstate(divide="ignore", invalid="ignore"):
        value = ended / flow.arrived_N
    value = np.where(flow.arrived_N > 0, value, 0.0)
    share = branch_shares(flow, probability_N)
    for at in reversed(_levels(tree)):
        np.add.at(value, tree.parent[at], share[at] * value[at])
    return np.where(flow.arrived_N > 0, value, np.nan)


@dataclass(frozen=True, eq=False)
class Design:
    """The design at the N nodes of the base tree: chance of being chosen, whether it was, and the rollouts that it wanted."""

    inclusion_N: Float[np.ndarray, " N"]
    chosen_N: Bool[np.ndarray, " N"]
    rollouts_N: Float[np.ndarray, " N"]


@dataclass(frozen=True, eq=False)
class Functionals:
    """M sums of the form sum_u visits_u sum_k a_k S_k over the N nodes of the base tree, known at K kept tokens (each once).

    `lift_MNK` is a_k / pi_k, 0 at padding; `lift2_MN` its mean square under pi over the whole vocabulary.
    """

    probs_NK: Float[np.ndarray, "N K"]
    lift_MNK: Float[np.ndarray, "M N K"]
    lift2_MN: Float[np.ndarray, "M N"]


@dataclass(frozen=True, eq=False)
class Totals:
    """Estimates of M sums, and their standard errors for the question itself: base rollouts, choice of nodes, Bernoulli noise."""

    sum_M: Float[np.ndarray, " M"]
    se_M: Float[np.ndarray, " M"]


def forced_share(functionals: Functionals, design: Design, passed_N: Float[np.ndarray, " N"]) -> Float[np.ndarray, "M N"]:
    """How much of a node's term rests on forced rollouts: inverse variance, as the coefficients and the design foretell it.

    Free: 1.5 sigma^2 E lift^2 / base rollouts (1.5 because the baseline is not the node's own value). Forced: sigma^2 (sum |a|)^2 / n, and
    over the chance of being chosen. No outcome enters, and nothing that lies below the node (`schedule.Reference`), so the mixture
    stays unbiased.
    """
    reach_MN = np.stack([np.abs(functionals.probs_NK * lift_NK).sum(-1) ** 2 for lift_NK in functionals.lift_MNK])
    free = _FREE_VARIANCE * functionals.lift2_MN / passed_N
    p = np.maximum(design.inclusion_N, 1e-12)
    forced = reach_MN * (1 / np.maximum(design.rollouts_N, 1.0) + _SPREAD * (1 - p)) / p
    share = np.divide(free, free + forced, out=np.zeros_like(free), where=free + forced > 0)
    return np.where(design.inclusion_N > 0, share, 0.0)


@dataclass(frozen=True, eq=False)
class _Mixture:
    """What both kinds of evidence are mixed from, at the B nodes of the base tree and their K kept tokens.

    `taken` base rollouts took each token, `passed` chose one here.
    """

    base_R: Bool[np.ndarray, " R"]
    value_N: Float[np.ndarray, " N"]
    baseline_R: Float[np.ndarray, " R"]
    there_BK: Bool[np.ndarray, "B K"]
    child_BK: Int[np.ndarray, "B K"]
    taken_BK: Float[np.ndarray, "B K"]
    forced_BK: Bool[np.ndarray, "B K"]
    passed_B: Float[np.ndarray, " B"]

    def coefficients(
        self, share_B: Float[np.ndarray, " B"], design: Design, probs_BK: Float[np.ndarray, "B K"]
    ) -> tuple[Float[np.ndarray, "B K"], Float[np.ndarray, "B K"]]:
        """Of one base rollout that took a token, beyond its lift; and of the value of a forced token, beyond its lift: (B, K) each."""
        visits_B = self.passed_B / self.base_R.sum()
        weight_B = visits_B * np.where(design.chosen_N, share_B / np.maximum(design.inclusion_N, 1e-12), 0.0)
        free_B = visits_B * (1 - share_B)
        rest_BK = (free_B[:, None] + weight_B[:, None] * ~self.forced_BK) / self.passed_B[:, None]
        return rest_BK * (self.taken_BK > 0), weight_B[:, None] * self.forced_BK * probs_BK


def _mixture(
    flow: Passage,
    reward_R: Float[np.ndarray, " R"],
    probability_N: Float[np.ndarray, " N"],
    place_BK: Int[np.ndarray, "B K"],
    node_B: Int[np.ndarray, " B"],
) -> _Mixture:
    tree, base = flow.tree, flow.forced_R < 0
    taken_N = tree.branch_sums(flow.free_RT & base[:, None], np.ones(len(base)))
    there = place_BK >= 0
    child = np.where(there, place_BK, 0)
    passed_B = np.bincount(tree.parent[1:], weights=taken_N[1:], minlength=len(tree))[node_B]
    value_N = np.where(flow.arrived_N > 0, stratified_values(flow, reward_R, probability_N), 0.0)
    return _Mixture(
        base,
        value_N,
        _baselines(reward_R, base),
        there,
        child,
        np.where(there, taken_N[child], 0.0),
        there & (flow.forced_N[child] > 0),
        passed_B,
    )


def estimate_totals(
    flow: Passage,
    reward_R: Float[np.ndarray, " R"],
    probability_N: Float[np.ndarray, " N"],
    place_BK: Int[np.ndarray, "B K"],
    node_B: Int[np.ndarray, " B"],
    functionals: Functionals,
    design: Design,
) -> Totals:
    """Estimate the M sums from all rollouts of a question.

    `node_B` are the base tree's nodes by their number in `flow.tree`, `place_BK` the child by each kept token there (-1 for none);
    B is the axis N of `functionals` and `design`. `probability_N` is pi of forced branches.
    """
    tree, mix = flow.tree, _mixture(flow, reward_R, probability_N, place_BK, node_B)
    base, value_N, passed_B, there, child = mix.base_R, mix.value_N, mix.passed_B, mix.there_BK, mix.child_BK
    share_MB = forced_share(functionals, design, passed_B)
    # Of the noise that rollouts through a node share, their spread over base rollouts shows this much: all if only one passed.
    seen_B = (base.sum() - passed_B) / (passed_B * max(base.sum() - 1, 1))

    each_NM, through_NM, held_NM, pull_NM = (np.zeros((len(tree), len(share_MB))) for _ in range(4))
    chosen_M = np.zeros(len(share_MB))
    for m, (share_B, lift_BK) in enumerate(zip(share_MB, functionals.lift_MNK, strict=True)):
        rest_BK, strata_BK = (part * lift_BK for part in mix.coefficients(share_B, design, functionals.probs_NK))
        each_NM[child[there], m] = rest_BK[there]
        through_NM[node_B, m] = strata_BK.sum(1) / passed_B
        held_NM[node_B, m] = (strata_BK * value_N[child]).sum(1) / passed_B
        pull_NM[child[there], m] = (rest_BK * mix.taken_BK + strata_BK * np.sqrt(1 - seen_B)[:, None])[there]
        chosen_M[m] = _choice_variance(value_N[child], flow.arrived_N[child], strata_BK, design, mix.forced_BK, seen_B)
    part_RM = _parts(flow, value_N, mix.baseline_R, each_NM, through_NM, held_NM)[base]
    noise_M = _noise(flow, reward_R, value_N, probability_N, pull_NM)
    spread_M = base.sum() * part_RM.var(axis=0, ddof=1) if base.sum() > 1 else np.full(len(chosen_M), np.nan)
    return Totals(part_RM.sum(0), np.sqrt(spread_M + noise_M + chosen_M))


def ideal_coefficients(
    flow: Passage,
    reward_R: Float[np.ndarray, " R"],
    probability_N: Float[np.ndarray, " N"],
    place_BK: Int[np.ndarray, "B K"],
    node_B: Int[np.ndarray, " B"],
    functionals: Functionals,
    design: Design,
) -> Float[np.ndarray, "B K"]:
    """c such that sum_u sum_k c_uk (e_k - pi_u) estimates sum_u visits_u g_u without bias: the ideal step, before it meets any direction.

    Arguments as of `estimate_totals`. The two kinds of evidence are mixed by the mean of what is best for each of the `functionals`.
    """
    mix = _mixture(flow, reward_R, probability_N, place_BK, node_B)
    share_B = forced_share(functionals, design, mix.passed_B).mean(0)
    rest_BK, strata_BK = mix.coefficients(share_B, design, functionals.probs_NK)
    value_BK = mix.value_N[mix.child_BK]
    compared_N = flow.tree.branch_sums(flow.free_RT & mix.base_R[:, None], mix.baseline_R)
    compared_BK = np.where(mix.there_BK, compared_N[mix.child_BK], 0.0)
    mean_B = np.bincount(flow.tree.parent[1:], weights=compared_N[1:], minlength=len(flow.tree))[node_B] / mix.passed_B
    return rest_BK * (mix.taken_BK * value_BK - compared_BK) + strata_BK * (value_BK - mean_B[:, None])


def _parts(
    flow: Passage, value_N: np.ndarray, baseline_R: np.ndarray, each_NM: np.ndarray, through_NM: np.ndarray, held_NM: np.ndarray
) -> np.ndarray:
    """Each base rollout's part of the sums (R, M): at every step the value it went to, centred, and its share of the strata it passed."""
    path, origin = np.maximum(flow.tree.path_RT, 0), np.maximum(flow.tree.origin_RT(), 0)
    part_RM = np.zeros((len(path), each_NM.shape[1]))
    for step in range(path.shape[1]):
        free = flow.free_RT[:, step] & (flow.forced_R < 0)
        to, at = path[free, step], origin[free, step]
        centred = each_NM[to] * (value_N[to] - baseline_R[free])[:, None]
        part_RM[free] += centred + held_NM[at] - through_NM[at] * baseline_R[free, None]
    return part_RM


def _baselines(reward_R: np.ndarray, base_R: np.ndarray) -> np.ndarray:
    """The mean reward of the other base rollouts, with half a rollout of reward a half."""
    total, count = reward_R[base_R].sum(), base_R.sum()
    return np.where(base_R, (total - reward_R + 0.5) / count, (total + 0.5) / (count + 1))


def _noise(
    flow: Passage, reward_R: np.ndarray, value_N: np.ndarray, probability_N: np.ndarray, pull_NM: np.ndarray
) -> np.ndarray:
    """Variance of the values of nodes about the truth, where several rollouts share them: rewards about the value of their branch.

    Coefficients of values run down the tree to the rewards they rest on, and beside them what those rewards are compared with. A
    branch tried once is given the variance of the question's own success.
    """
    tree = flow.tree
    share = branch_shares(flow, probability_N)
    about_NM = pull_NM * value_N[:, None]
    for at in _levels(tree):
        pull_NM[at] += share[at, None] * pull_NM[tree.parent[at]]
        stratum = (flow.forced_N[at] > 0)[:, None]
        passed_down = about_NM[at] + share[at, None] * about_NM[tree.parent[at]]
        about_NM[at] = np.where(stratum, pull_NM[at] * value_N[at, None], passed_down)
    arrived = flow.arrived_N[flow.end_R, None]
    deviation_RM = (pull_NM[flow.end_R] * reward_R[:, None] - about_NM[flow.end_R]) / arrived
    square_RM = deviation_RM**2
    rows = np.flatnonzero(flow.forced_R >= 0)
    if len(rows):
        branch = tree.path_RT[rows, flow.forced_R[rows]]
        n = flow.arrived_N[branch]
        around = reward_R[flow.forced_R < 0].mean()
        known = flow.end_R[rows] == branch  # the forced token itself ended it
        alone = (
            np.where(known, 0.0, max(around * (1 - around), _LEAST_VARIANCE))[:, None]
            * (pull_NM[flow.end_R] / arrived)[rows] ** 2
        )
        square_RM[rows] = np.where((n > 1)[:, None], square_RM[rows] * (n / np.maximum(n - 1, 1))[:, None], alone)
    return square_RM.sum(0)


def _choice_variance(
    value_BK: np.ndarray,
    arrived_BK: np.ndarray,
    strata_BK: np.ndarray,
    design: Design,
    forced_BK: np.ndarray,
    seen_B: np.ndarray,
) -> float:
    """Variance from which nodes were chosen (each by itself), less what noise adds to the squares and what the spread shows."""
    value_BK = np.where(forced_BK, value_BK, 0.0)
    around = (value_BK.sum(1) / np.maximum(forced_BK.sum(1), 1))[:, None]
    term_B = (strata_BK * (value_BK - around)).sum(1)
    noise_B = (strata_BK**2 * value_BK * (1 - value_BK) / np.maximum(arrived_BK - 1, 1.0)).sum(1)
    return float(((1 - seen_B) * (1 - design.inclusion_N) * np.maximum(term_B**2 - noise_B, 0.0)).sum())
