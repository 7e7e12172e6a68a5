"""Does reweighting a teacher by reward improve on matching it, and for which beta? From the stored rows of a run."""

# pandas types its results too widely for these rules.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false, reportAssignmentType=false
# pyright: reportOperatorIssue=false

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from gradalign.findings.notes import CAVEAT
from gradalign.findings.rows import require_sampled
from gradalign.findings.standing import Standing, standing_of
from gradalign.findings.wording import score_formats, score_interval
from gradalign.inference import influence_interval
from gradalign.sheets import Head, Remark, Sheet, Shown, number, percent
from gradalign.store import Run
from gradalign.types import GradalignError

BETAS = tuple(float(beta) for beta in np.geomspace(0.01, 10, 13).round(4))
_PLAIN = "reverse_kl"
_ONE_KIND = "To compare, score contexts (--teacher ctx:…) and other models (--teacher model:…) in one run."
_UNMEASURED = "A dash: `gradalign score --teacher-rollouts` measures success, an objective pbsd:BETA the pairs' information."


@dataclass(frozen=True, eq=False)
class RewardReweighting(Shown):
    """For each teacher and beta: `gain` of matching pi*, proportional to tau exp(S / beta), and what it is above plain matching.

    Columns of `frame`: teacher, beta (inf is plain matching), gain, difference, each with `_low` and `_high`, and better (the interval of
    the difference is above 0) or worse. `summary` says it in words, one line a teacher.

    `teachers` has a row a teacher: kind (self: the student under a context; external: another model), kl (nats a rollout, of the student's
    rollouts under it), and where the run knows them the success of its own rollouts and of `pair_information` the largest over PBSD's
    betas that were scored. `versus` compares every self-teacher with every external one at each beta: difference of their gains (self less
    external) with its interval, `leads` names the kind whose lead is beyond it. `verdicts` say that in words.
    """

    frame: pd.DataFrame
    questions: int
    samples: int
    summary: dict[str, str]
    teachers: pd.DataFrame
    versus: pd.DataFrame
    verdicts: tuple[str, ...]

    def sheets(self) -> list[Sheet]:
        """Gain over beta for each teacher with a sentence for each, and what tells a self-teacher from an external one."""
        show = score_formats(self.frame, ("gain", "difference"))
        gain, above = show["gain"], show["difference"]
        rows, before = [], None
        for row in self.frame.to_dict("records"):
            plain = np.isinf(row["beta"])
            more = "" if plain else f"{above(row['difference'])} {score_interval(row, 'difference', above)}"
            name = row["teacher"] if row["teacher"] != before else ""
            rows.append((name, "plain" if plain else f"{row['beta']:g}", gain(row["gain"]), more))
            before = row["teacher"]
        heads = (Head("teacher", number=False), Head("beta"), Head("gain"), Head("above plain matching [95%]"))
        said = tuple(Remark(f"{teacher} {words}.") for teacher, words in self.summary.items())
        title = f"Matching a teacher reweighted by reward, over {self.questions} questions"
        return [Sheet(title, heads, tuple(rows), said), self._self_against_external()]

    def _self_against_external(self) -> Sheet:
        heads = (Head("teacher", number=False), Head("kind", number=False), Head("KL, nats a rollout"), Head("its own success"),
                 Head("pair information"))  # fmt: skip
        rows = [
            (
                row["teacher"],
                row["kind"],
                number(row["kl"], ".3g"),
                percent(row["success"]),
                number(row["pair_information"], ".2f"),
            )
            for row in self.teachers.to_dict("records")
        ]
        said = [Remark(f"{verdict}.") for verdict in self.verdicts] or [Remark(_ONE_KIND, "note")]
        said += [Remark(_UNMEASURED, "note")] if self.teachers["success"].isna().any() else []
        known = "one rollout" if self.samples == 1 else f"{self.samples} rollouts"
        said += [Remark(f"Success of a token is taken to be known from {known} (--samples). {CAVEAT}", "note")]
        return Sheet("The student itself under a context, or another model?", heads, tuple(rows), tuple(said))


def reward_reweighting(run: Run, samples: int = 1, betas: Sequence[float] = BETAS) -> RewardReweighting:
    """PBSD's question (arXiv 2605.05040) for every teacher: does the reward-reweighted target improve on plain matching, for which beta?

    By `gain`, which is per unit of step: per unit of learning rate a smaller beta always wins. d = d(reverse KL) + g / beta at every
    node, so sums follow from those of reverse KL and |g|^2 over the chosen nodes, corrected for noise. A training run knows
    success no better than from `samples` rollouts a token: that noise, over beta^2, lengthens its steps. With success known exactly a
    target reweighted by it could only be better. Intervals are over questions, paired with plain matching.

    The paper asks, too, when the student itself under a context is the better teacher than another model: one may know more, yet lie so far
    away that a step of given size gains less, and that pairs of its rollouts and the student's are told apart already. Both show here: in
    gain, whose denominator is the distance, and in `teachers`.
    """
    if samples < 1:
        raise GradalignError(f"samples is {samples}; it must be at least 1")
    require_sampled(run)
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
    frames, summary, standings = [], {}, {}
    for m, (teacher, _) in enumerate(base.keys):
        standings[teacher] = _over_beta(teacher, base, m, g_norm2_Q, noise_Q / samples, sorted(betas))
        frames.append(_against_plain(teacher, standings[teacher], sorted(betas)))
        summary[teacher] = _in_words(frames[-1])
    versus, verdicts = _self_against_external(standings, sorted(betas))
    described = _described(run, list(standings), base.questions)
    frame = pd.concat(frames, ignore_index=True)
    return RewardReweighting(frame, len(base.questions), samples, summary, described, versus, tuple(verdicts))


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
) -> Standing:
    """The target at each beta, plain matching first."""
    inverse = np.array([0.0, *(1 / beta for beta in betas)])[:, None]
    dot, norm2 = base.dot_MQ[m], base.d_norm2_MQ[m]
    shape = (len(inverse), len(dot))
    return Standing(
        tuple((teacher, f"{i}") for i in range(len(inverse))),
        base.questions,
        np.broadcast_to(base.length_MQ[m], shape),
        dot + inverse * g_norm2_Q,
        np.full(shape, np.nan),
        norm2 + 2 * inverse * dot + inverse**2 * (g_norm2_Q + noise_Q),
        np.full(shape, np.nan),
    )


def _against_plain(teacher: str, standing: Standing, betas: Sequence[float]) -> pd.DataFrame:
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


def _external(teacher: str) -> bool:
    """Is it another model? Else it is the student under a context."""
    return teacher.startswith("model:")


def _described(run: Run, teachers: Sequence[str], questions: Sequence[str]) -> pd.DataFrame:
    nodes = run.frame("nodes", ["question", "node", "visits"]).merge(
        run.frame("questions", ["question", "rollouts"]), on="question"
    )
    rows = run.frame("teachers", ["question", "node", "teacher", "reverse_kl"]).merge(nodes, on=["question", "node"])
    rows = rows[rows["question"].isin(questions)]
    kl = (rows["reverse_kl"] * rows["visits"] / rows["rollouts"]).groupby(rows["teacher"]).sum() / len(questions)
    sampled = run.frame("rollouts", ["question", "purpose", "source", "reward"]).query("purpose == 'teacher'")
    success = sampled[sampled["question"].isin(questions)].groupby("source")["reward"].mean()
    scores = run.frame("scores", ["question", "teacher", "objective", "pair_information"])
    information = scores.groupby(["teacher", "objective"])["pair_information"].mean().groupby("teacher").max()
    return pd.DataFrame({
        "teacher": teachers,
        "kind": ["external" if _external(teacher) else "self" for teacher in teachers],
        "kl": kl.reindex(teachers).to_numpy(),
        "success": success.reindex(teachers).to_numpy(),
        "pair_information": information.reindex(teachers).to_numpy(),
    })  # fmt: skip


def _self_against_external(standings: dict[str, Standing], betas: Sequence[float]) -> tuple[pd.DataFrame, list[str]]:
    found, verdicts = [], []
    for own in (teacher for teacher in standings if not _external(teacher)):
        for other in (teacher for teacher in standings if _external(teacher)):
            one, two = standings[own], standings[other]
            difference = one.score("gain") - two.score("gain")
            low, high = influence_interval(difference, one.influence("gain") - two.influence("gain"))
            leads = np.where(low > 0, "self", np.where(high < 0, "external", "neither"))
            found.append(pd.DataFrame({
                "self": own, "external": other, "beta": [np.inf, *betas], "difference": difference, "difference_low": low,
                "difference_high": high, "leads": leads,
            }))  # fmt: skip
            verdicts.append(f"{own} against {other}: {_leads_in_words(leads, betas)}")
    columns = ["self", "external", "beta", "difference", "difference_low", "difference_high", "leads"]
    return (pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=columns)), verdicts


def _leads_in_words(leads: np.ndarray, betas: Sequence[float]) -> str:
    names = {"self": "the student itself under the context leads", "external": "the other model leads"}
    parts = [f"matched plainly, {names.get(leads[0], 'neither leads beyond noise')}"]
    for kind, words in names.items():
        at = [beta for beta, lead in zip(betas, leads[1:], strict=True) if lead == kind]
        parts += [f"reweighted by reward, {words} for beta from {at[0]:g} to {at[-1]:g}"] if at else []
    return "; ".join(parts)
