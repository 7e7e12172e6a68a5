"""What training configurations are scored from: sums of the run's pairs, rows of scored nodes, weights of questions and of tokens."""

# pandas types its results too widely for these rules.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false, reportAssignmentType=false
# pyright: reportReturnType=false, reportOptionalOperand=false

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from gradalign.alignment import ScoreSums
from gradalign.configurations import Configuration, TokenWeighting
from gradalign.findings.assessed import Scored, assess
from gradalign.findings.foretold import Foretold, Horizon, foretold_of
from gradalign.findings.rows import require_sampled, scored_rows, weigh
from gradalign.findings.standing import Standing, standing_of
from gradalign.findings.steps import Steps, steps_of
from gradalign.store import Run
from gradalign.transfer import LEAST
from gradalign.types import REWARDS, GradalignError

_LINEAR_COLUMNS = ("length", "dot", "dot_se", "d_norm2", "advantage")


@dataclass(frozen=True, eq=False)
class Ground:
    """What configurations are scored from: those the run can tell of, their pairs' sums, rows of scored nodes, weights of questions."""

    usable: Sequence[Configuration]
    unscored: dict[str, str]
    base: Standing
    rows: pd.DataFrame
    weights: dict[str, np.ndarray]

    def part(self, at: np.ndarray) -> "Ground":
        """The same on some of the questions, by their places."""
        base = self.base.on([self.base.questions[q] for q in at])
        rows = self.rows[self.rows["question"].isin(base.questions)]
        weights = {name: weight[at] for name, weight in self.weights.items()}
        return Ground(self.usable, self.unscored, base, rows, weights)


def ground_of(run: Run, configurations: Sequence[Configuration], support: str) -> Ground:
    """The ground of those configurations that the run can tell of, on the questions that all their teachers share."""
    require_sampled(run)
    scores = run.frame("scores")
    reasons = {c.name: _reason(c, run, scores) for c in configurations}
    usable = [c for c in configurations if reasons[c.name] is None]
    unscored = {name: reason for name, reason in reasons.items() if reason is not None}
    if not usable:
        raise GradalignError(
            f"the run can tell of none of these configurations: {'; '.join(unscored.values()) or 'none is given'}"
        )
    pairs = dict.fromkeys(pair for c in usable for pair in c.pairs)
    mine = scores[[pair in pairs for pair in zip(scores["teacher"], scores["objective"], strict=True)]]
    teachers, objectives = (list(dict.fromkeys(part)) for part in zip(*pairs, strict=True))
    base = standing_of(mine, [teacher for teacher in teachers if teacher != REWARDS], objectives)
    if not base.questions:
        raise GradalignError("the teachers of these configurations share no question; rank fewer of them together")
    questions = run.frame("questions").set_index("question")
    pass_rate = questions.loc[list(base.questions), "pass_rate"].to_numpy(dtype=np.float64)
    weights = {c.name: c.questions.weights(pass_rate) for c in usable}
    empty = [name for name, weight in weights.items() if np.isnan(weight).any()]
    if empty:
        raise GradalignError(f"configuration {empty[0]!r} gives every question weight 0: all pass rates are 0 or 1")
    rows = scored_rows(run, support)
    factors = node_factors(run, base.questions, [c.tokens for c in usable])
    rows = rows[rows["question"].isin(base.questions)].merge(factors, on=["question", "node"])
    advantage = run.frame("teachers", ["question", "node", "teacher", "advantage"])
    return Ground(usable, unscored, base, rows.merge(advantage, on=["question", "node", "teacher"], how="left"), weights)


def assess_ground(
    ground: Ground,
    steps: Steps | None,
    share: Any,
    draws: int,
    seed: int,
    told: Foretold | None = None,
    horizon: Horizon | None = None,
) -> tuple[Scored, list[dict[str, np.ndarray]]]:
    """Every score of every configuration, of a `share` of the nodes only, if given; and each one's sums, the means over its stages.

    `told` are the first steps of their stages, if they are known.
    """
    stages: dict[tuple[str, str], tuple[int, ...]] = {}
    parts: list[dict[str, np.ndarray]] = []
    for c in ground.usable:
        stages[c.name, ""] = tuple(range(len(parts), len(parts) + len(c.pairs)))
        for pair in c.pairs:
            found = _stage(c, pair, ground.base, ground.rows, share)
            parts.append({name: ground.weights[c.name] * values for name, values in found.items()})
    standing = Standing(
        tuple((c.name, pair[1]) for c in ground.usable for pair in c.pairs), ground.base.questions,
        *(np.stack([part[name] for part in parts]) for name in _LINEAR_COLUMNS),
    )  # fmt: skip
    names = [name for name in parts[0] if name not in _LINEAR_COLUMNS]
    sums = ScoreSums(
        weight=standing.length_MQ, dot=standing.dot_MQ, d_norm2=standing.d_norm2_MQ, advantage=standing.advantage_MQ,
        **{name: np.stack([part[name] for part in parts]) for name in names},
    )  # fmt: skip
    moved, error = None, np.full(len(parts), np.nan)
    if steps is not None:
        moved, error = steps.transfer(), steps.sketch_error()
    whole = [{name: np.mean([parts[m][name] for m in at], axis=0) for name in parts[0]} for at in stages.values()]
    return assess(standing, sums, moved, error, [], draws, seed, stages, told, horizon), whole


def _reason(configuration: Configuration, run: Run, scores: pd.DataFrame) -> str | None:
    """Why the run cannot tell of a configuration, and the mend; None if it can."""
    name, identity = configuration.name, run.identity
    if configuration.teacher is not None and configuration.teacher not in identity["teachers"]:
        return f"{name}: the run has no teacher {configuration.teacher}; score with --teacher {configuration.teacher}"
    for objective in configuration.objectives:
        if objective not in identity["objectives"]:
            return f"{name}: the run has no objective {objective}; score with --objective '{objective}'"
    if configuration.temperature != identity["temperature"]:
        return f"{name}: the run has temperature {identity['temperature']:g}; score with --temperature {configuration.temperature:g}"
    for teacher, objective in configuration.pairs:
        if not ((scores["teacher"] == teacher) & (scores["objective"] == objective)).any():
            return f"{name}: {objective} under {teacher} was scored on no question"
    return None


def node_factors(run: Run, questions: Sequence[str], weightings: Sequence[TokenWeighting]) -> pd.DataFrame:
    """The visited nodes of these questions: question, node, window, the share of visits that went `wrong`, and a column for each of the
    weightings, by its name, that says how much the tokens at the node count. `positive_alignment` is known at scored nodes only, and has
    none."""
    nodes = run.frame("nodes", ["question", "node", "window", "visits", "visits_wrong", "student_entropy"])
    nodes = nodes[nodes["question"].isin(questions)].reset_index(drop=True)
    found = nodes[["question", "node", "window"]].assign(wrong=nodes["visits_wrong"] / nodes["visits"])
    entropy, visits, wrong = (
        column.to_numpy(dtype=np.float64) for column in (nodes["student_entropy"], nodes["visits"], found["wrong"])
    )
    for weighting in {str(w): w for w in weightings if w.kind != "positive_alignment"}.values():
        factor = np.ones(len(nodes))
        for at in nodes.groupby("question").indices.values():
            factor[at] = weighting.factors(entropy[at], visits[at], wrong[at])
        found[str(weighting)] = factor
    return found


def _factor(tokens: TokenWeighting, rows: pd.DataFrame) -> pd.Series:
    """How much each scored node counts."""
    return (rows["dot"] > 0).astype(float) if tokens.kind == "positive_alignment" else rows[str(tokens)]


def _stage(
    configuration: Configuration, pair: tuple[str, str], base: Standing, rows: pd.DataFrame, share: Any
) -> dict[str, np.ndarray]:
    m = base.keys.index(pair)
    mine = rows[(rows["teacher"] == pair[0]) & (rows["objective"] == pair[1])]
    factor = mine["weight"] * _factor(configuration.tokens, mine)
    if share is not None:
        factor = factor * share.loc[mine.index]

    def by_question(values: pd.Series) -> np.ndarray:
        return values.groupby(mine["question"]).sum().reindex(list(base.questions)).fillna(0.0).to_numpy(dtype=np.float64)

    cosines = {str(name): by_question(column) for name, column in weigh(mine, factor).items()}
    if configuration.tokens.kind == "all" and share is None:
        linear = {
            "dot": base.dot_MQ[m],
            "dot_se": base.noise_MQ[m],
            "d_norm2": base.d_norm2_MQ[m],
            "advantage": base.advantage_MQ[m],
        }
    else:
        linear = {
            "dot": by_question(factor * mine["dot"].fillna(0.0)),
            "dot_se": np.full(len(base.questions), np.nan),
            "d_norm2": by_question(factor * mine["d_norm2"]),
            "advantage": by_question(factor * mine["advantage"])
            if pair[0] != REWARDS
            else np.full(len(base.questions), np.nan),
        }
    linear["length"] = base.length_MQ[m]
    return linear | cosines


def steps_on(run: Run, ground: Ground) -> Steps | None:
    """What the stored steps of every stage of every configuration say, as it weighs questions and tokens; None where there are too few
    questions."""
    if len(ground.base.questions) < LEAST:
        return None
    stages = [(c, pair) for c in ground.usable for pair in c.pairs]
    keys, weights = [(*pair, str(c.tokens)) for c, pair in stages], np.stack([ground.weights[c.name] for c, _ in stages])
    return steps_of(run, keys, ground.base.questions, weights)


def foretold_on(run: Run, ground: Ground) -> Foretold | None:
    """First steps of every stage of every configuration, with its questions and tokens as it weighs them; None where none are known."""
    stages = [(pair, (str(c.questions), str(c.tokens))) for c in ground.usable for pair in c.pairs]
    return foretold_of(run, [pair for pair, _ in stages], ground.base.questions, [weighting for _, weighting in stages])
