"""Does reweighting a teacher by reward improve on matching it, and for which beta? From the stored rows of a run."""

# pandas types its results too widely for these rules.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false, reportAssignmentType=false

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from gradalign.findings.standing import Standing, standing_of
from gradalign.inference import influence_interval
from gradalign.store import Run
from gradalign.types import GradalignError

BETAS = tuple(float(beta) for beta in np.geomspace(0.01, 10, 13).round(4))
_PLAIN = "reverse_kl"


@dataclass(frozen=True, eq=False)
class RewardReweighting:
    """For each teacher and beta: `gain` of matching pi*, proportional to tau exp(S / beta), and what it is above plain matching.

    Columns of `frame`: teacher, beta (inf is plain matching), gain, difference, each with `_low` and `_high`, and better (the interval of
    the difference is above 0) or worse. `summary` says it in words, one line a teacher.
    """

    frame: pd.DataFrame
    questions: int
    samples: int
    summary: dict[str, str]


def reward_reweighting(run: Run, samples: int = 1, betas: Sequence[float] = BETAS) -> RewardReweighting:
    """PBSD's question (arXiv 2605.05040) for every teacher: does the reward-reweighted target improve on plain matching, for which beta?

    By `gain`, which is per unit of step: per unit of learning rate a smaller beta always wins. d = d(reverse KL) + g / beta at every
    node, so sums follow from those of reverse KL and |g|^2 over the chosen nodes, corrected for noise. A training run knows
    success no better than from `samples` rollouts a token: that noise, over beta^2, lengthens its steps. With success known exactly a
    target reweighted by it could only be better. Intervals are over questions, paired with plain matching.
    """
    if samples < 1:
        raise GradalignError(f"samples is {samples}; it must be at least 1")
    if run.identity.get("node_selection") == "top":
        raise GradalignError("this run took the top nodes, for looking; score again with --node-selection pps")
    if _PLAIN not in run.identity["objectives"]:
        raise GradalignError(
            f"the run has no objective {_PLAIN}, which a reweighted target is compared with; score with --objective {_PLAIN}"
        )
    if not betas or not all(0 < beta < np.inf for beta in betas):
        raise GradalignError("every beta must be above 0 and finite")
    scores = run.frame("scores")
    base = standing_of(scores[scores["objective"] == _PLAIN], run.identity["teachers"], [_PLAIN])
    if not base.questions:
        raise GradalignError("the teachers share no question; the run's `skipped` table says why")
    g_norm2_Q, noise_Q = _ideal_norm2(run, base.questions)
    frames, summary = [], {}
    for m, (teacher, _) in enumerate(base.keys):
        frames.append(_over_beta(teacher, base, m, g_norm2_Q, noise_Q / samples, sorted(betas)))
        summary[teacher] = _in_words(frames[-1])
    return RewardReweighting(pd.concat(frames, ignore_index=True), len(base.questions), samples, summary)


def _ideal_norm2(run: Run, questions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """By question, summed over on-policy nodes (chosen ones over their chance of being chosen): |g|^2, and what noise adds to it if every
    tried token's success is known from one rollout."""
    keys = ["question", "node"]
    nodes = run.frame("nodes", [*keys, "scored", "weight", "g_norm2"])
    nodes = nodes[nodes["scored"]].set_index(keys)
    tried = run.frame("branches", [*keys, "student_prob", "shrunken", "in_support", "exact"]).query("in_support")
    place = [tried[key] for key in keys]
    pi, s = tried["student_prob"], tried["shrunken"]
    share = pi / pi.groupby(place).transform("sum")
    others = (pi**2).groupby(place).transform("sum") - pi**2
    trace = pi**2 * (1 - share) ** 2 + share**2 * others  # of A^T A, g = A S
    noise = (trace * s * (1 - s)).where(~tried["exact"], 0.0).groupby(place).sum().reindex(nodes.index).fillna(0.0)

    def by_question(values: pd.Series) -> np.ndarray:
        sums = (nodes["weight"] * values).groupby(level="question").sum()
        return sums.reindex(list(questions)).fillna(0.0).to_numpy(dtype=np.float64)

    return by_question(nodes["g_norm2"].fillna(0.0)), by_question(noise)


def _over_beta(
    teacher: str, base: Standing, m: int, g_norm2_Q: np.ndarray, noise_Q: np.ndarray, betas: Sequence[float]
) -> pd.DataFrame:
    inverse = np.array([0.0, *(1 / beta for beta in betas)])[:, None]
    dot, norm2 = base.dot_MQ[m], base.d_norm2_MQ[m]
    shape = (len(inverse), len(dot))
    standing = Standing(
        tuple((teacher, f"{i}") for i in range(len(inverse))),
        base.questions,
        np.broadcast_to(base.length_MQ[m], shape),
        dot + inverse * g_norm2_Q,
        np.full(shape, np.nan),
        norm2 + 2 * inverse * dot + inverse**2 * (g_norm2_Q + noise_Q),
        np.full(shape, np.nan),
    )
    gain, influence = standing.score("gain"), standing.influence("gain")
    low, high = standing.interval("gain")
    below, above = influence_interval(gain - gain[0], influence - influence[0])
    return pd.DataFrame({
        "teacher": teacher, "beta": [np.inf, *betas], "gain": gain, "gain_low": low, "gain_high": high,
        "difference": gain - gain[0], "difference_low": below, "difference_high": above, "better": below > 0,
        "worse": above < 0,
    })  # fmt: skip


def _in_words(frame: pd.DataFrame) -> str:
    rows = frame[np.isfinite(frame["beta"])]
    better, worse = rows.loc[rows["better"], "beta"], rows.loc[rows["worse"], "beta"]
    best = rows.loc[rows["gain"].idxmax()]
    parts = ["improves on plain matching for no beta that was tried"]
    if len(better):
        parts = [f"improves on plain matching for beta from {better.min():g} to {better.max():g}"]
        parts.append(f"most at {best['beta']:g} ({best['difference']:+.3g} of gain)")
    if len(worse):
        parts.append(f"is worse from {worse.min():g} to {worse.max():g}")
    return ", ".join(parts)
