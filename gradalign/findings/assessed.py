"""Scores with their intervals, resamples and comparison with the best, from sums over the nodes of each question."""

# pandas types its results too widely for these rules.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false, reportAssignmentType=false

from dataclasses import dataclass

import numpy as np
import pandas as pd

from gradalign.alignment import SCORES, ScoreSums, pooled_scores
from gradalign.findings.foretold import FORETOLD, Foretold, Horizon, first_step_shares
from gradalign.findings.standing import KEYS, LINEAR, Standing
from gradalign.inference import Resamples, compare_with_best, influence_interval, percentile_interval
from gradalign.transfer import Transfer
from gradalign.types import REWARDS, GradalignError

TRANSFER = ("transfer_drive", "transfer")
OF_OTHERS = (*FORETOLD, *TRANSFER)  # what a step does to questions that it is not made of
RANKABLE = (*OF_OTHERS, *SCORES)
_FEW = "fewer than four questions are shared; score more of them"
_NO_NODE = "no node is informative; score more questions or a larger --budget"
_MISSING = {
    "transfer": _FEW,
    "transfer_drive": _FEW,
    "first_step": "its first steps are not known; run `gradalign foretell` on it",
    "foretold": "it takes first steps (`gradalign foretell`), one of which helps, and rollouts of the teachers (--teacher-rollouts)",
}


@dataclass(frozen=True, eq=False)
class Scored:
    """Every score of every pair of teacher and objective: value, interval, and values on resamples of the questions (B, M).

    What is ranked has one stage or several, each an entry of `standing` and of `transfer`, by its places in `stages`; its scores are the
    means of theirs. `units` is the number of questions that each cosine rests on.
    """

    keys: tuple[tuple[str, str], ...]
    stages: tuple[tuple[int, ...], ...]
    standing: Standing
    score: dict[str, np.ndarray]
    low: dict[str, np.ndarray]
    high: dict[str, np.ndarray]
    draws: dict[str, np.ndarray]
    notes: list[str]
    transfer: Transfer | None
    sketch_error: np.ndarray
    units: dict[str, np.ndarray]
    told: Foretold | None

    def over_stages(self, values: np.ndarray) -> np.ndarray:
        """Means of what is given for every stage along the first axis."""
        return np.stack([values[list(at)].mean(0) for at in self.stages])

    def influence(self, by: str, other: int | None = None) -> np.ndarray | None:
        """Each question's influence on every score, less that of pair `other` if given: (M, Q); None where only resamples tell."""
        if by in LINEAR:
            influence = self.over_stages(self.standing.influence(by))
            return influence if other is None else influence - influence[other]
        if by == "first_step":
            slope = np.full((len(self.keys), len(self.standing.questions)), np.nan) if self.told is None else self.told.adam_MQ
            slope = slope if other is None else slope - slope[other]
            return slope - slope.mean(1, keepdims=True)
        if by not in TRANSFER:
            return None
        if self.transfer is None:
            return np.full((len(self.keys), len(self.standing.questions)), np.nan)
        mix = self.over_stages(np.eye(len(self.transfer.drive_M)))
        mix = mix if other is None else mix - mix[other]
        return self.transfer.drive_influence(mix) if by == "transfer_drive" else self.transfer.unit_influence(mix)


def assess(
    standing: Standing,
    sums: ScoreSums,
    moved: Transfer | None,
    sketch_error: np.ndarray,
    notes: list[str],
    draws: int,
    seed: int,
    stages: dict[tuple[str, str], tuple[int, ...]] | None = None,
    told: Foretold | None = None,
    horizon: Horizon | None = None,
) -> Scored:
    """Every score with its interval and resamples, from sums (M, Q) over the nodes of each question and transfer between them.

    What is ranked is each of the M, or what `stages` names, with the places of its stages among them.
    """
    stages = {key: (m,) for m, key in enumerate(standing.keys)} if stages is None else stages
    resamples = Resamples(len(standing.questions), draws, seed)
    score, drawn = pooled_scores(sums.map(lambda array: array.mean(-1))), pooled_scores(sums.map(resamples.means))
    if len(standing.questions) == 1:  # one question says nothing of how questions differ
        drawn = {name: np.full_like(values, np.nan) for name, values in drawn.items()}
    nothing = np.full(len(standing.keys), np.nan)
    score["transfer_drive"], score["transfer"] = (nothing, nothing) if moved is None else (moved.drive_M, moved.unit_M)
    under = {"pooled_cosine": sums.cos_d2, "weighted_cosine": sums.cos_lengths, "mean_cosine": sums.informative}
    told = None if told is None else told.over([*stages.values()])
    units = {name: np.array([(array > 0).sum(-1)[list(at)].min() for at in stages.values()]) for name, array in under.items()}
    found = Scored(tuple(stages), tuple(stages.values()), standing, {}, {}, {}, {}, notes, moved, sketch_error, units, told)
    found.score.update({name: found.over_stages(value) for name, value in score.items()})
    found.draws.update({name: found.over_stages(value.T).T for name, value in drawn.items()})
    _foretell(found, resamples, horizon or Horizon())
    score, drawn = found.score, found.draws
    for name in RANKABLE:
        influence = found.influence(name)
        if influence is None:
            found.low[name], found.high[name] = percentile_interval(drawn[name], found.units[name])
            continue
        found.low[name], found.high[name] = influence_interval(score[name], influence)
        if name in (*TRANSFER, "first_step"):  # resampled by its influences
            drawn[name] = score[name] + resamples.means(influence)
    return found


def _foretell(found: Scored, resamples: Resamples, horizon: Horizon) -> None:
    """What first steps say: the gain for one unit of learning rate, and the change of success after training."""
    nothing = np.full(len(found.keys), np.nan)
    found.units["foretold"] = np.full(len(found.keys), len(found.standing.questions))
    found.score["first_step"] = nothing if found.told is None else found.told.adam_MQ.mean(1)
    found.score["foretold"], found.draws["foretold"] = (
        (nothing, np.tile(nothing, (resamples.draws, 1))) if found.told is None else found.told.change(horizon, resamples.means)
    )


def tabulate(found: "Scored", by: str | None, eligible: np.ndarray | None = None) -> tuple[pd.DataFrame, str]:
    """The ranking as a frame, best first, and the score that orders it; only what is `eligible` (all unless given) can be the best."""
    by = by or _best_known(found)
    frame = pd.DataFrame(found.keys, columns=KEYS)
    for name in RANKABLE:
        frame[name], frame[f"{name}_low"], frame[f"{name}_high"] = found.score[name], found.low[name], found.high[name]
    for name in ("drive", "gain"):
        frame[f"{name}_noise"] = found.over_stages(found.standing.noise(name))
    frame["first_step_share"] = np.nan if found.told is None else first_step_shares(found.told)
    frame["transfer_drive_sketch"] = found.over_stages(found.sketch_error)
    if np.isnan(found.score[by]).all():
        raise GradalignError(f"no teacher has a {by} in this run: {_MISSING.get(by, _NO_NODE)}")
    rivals = np.ones(len(frame), dtype=bool) if eligible is None or np.isnan(found.score[by][eligible]).all() else eligible
    best = int(np.nanargmax(np.where(rivals, found.score[by], np.nan)))
    draws = np.where(rivals, found.draws[by], np.nan)
    compared = compare_with_best(found.score[by], best, found.influence(by, best), draws, found.units.get(by))
    frame["difference"], frame["difference_low"], frame["difference_high"] = (
        compared.difference_M,
        compared.low_M,
        compared.high_M,
    )
    frame["p_best"], frame["tied"] = compared.probability_M, compared.tied_M & rivals
    return frame.sort_values(by, ascending=False, kind="stable", ignore_index=True), by


def _best_known(found: Scored) -> str:
    """The score to rank by where nobody says: what foretells training best among what is known of every teacher."""
    taught = np.array([teacher != REWARDS for teacher, _ in found.standing.keys])
    taught = np.array([taught[list(at)].any() for at in found.stages])
    for name in FORETOLD:
        if taught.any() and not np.isnan(found.score[name][taught]).any():
            return name
    return "drive" if np.isnan(found.score["transfer_drive"]).all() else "transfer_drive"
