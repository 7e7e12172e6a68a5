"""Rank training configurations from the stored rows of a run: weights of questions and tokens are put on what was scored once."""

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
from gradalign.findings.ranking import (
    LEAST_FOR_TRANSFER,
    RANKABLE,
    Scored,
    assess,
    disagreements,
    outcome_notes,
    scored_rows,
    tabulate,
    weigh,
)
from gradalign.findings.standing import KEYS, Standing, standing_of
from gradalign.findings.steps import Steps, steps_of
from gradalign.store import Run
from gradalign.types import REWARDS, GradalignError

BREAK_DOWNS = ("difficulty", "window", "path")
_SURE = 1.96
_LINEAR_COLUMNS = ("length", "dot", "dot_se", "d_norm2", "advantage")


@dataclass(frozen=True, eq=False)
class ConfigurationRanking:
    """Configurations of a run as a frame, best first, and those that the run cannot tell of, each with its reason.

    Columns: configuration, teacher, objective, questions, tokens, oracle (knows what training would have to find); the scores as in a
    `Ranking`; `helped` and `harmed`, the shares of questions whose own <g, d> is above or below 0 by 1.96 standard errors (missing where
    the direction is itself estimated); `context_tokens`, mean length of the teacher's prompt, and `teacher_tokens`, tokens that the
    teacher reads for one rollout.
    """

    frame: pd.DataFrame
    by: str
    questions: int
    unscored: dict[str, str]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]


def rank_configurations(
    run: Run,
    configurations: Sequence[Configuration],
    by: str | None = None,
    support: str = "visited",
    draws: int = 2000,
    seed: int = 0,
) -> ConfigurationRanking:
    """Rank configurations on the questions that all their teachers share.

    Question weights have mean 1 over these questions and multiply what a question's step adds; pass rates are those of the base rollouts.
    Token weights take sums from the chosen nodes over their chance of being chosen; their transfer is known where the run was scored
    with them, and what has no value of the ordering score stands last. An oracle analysis is never the best. Two stages share the
    training equally: scores are the means of theirs, so those for a unit of step take each stage's own step for the unit.
    """
    if by is not None and by not in RANKABLE:
        raise GradalignError(f"cannot rank by {by!r}; choose from {', '.join(RANKABLE)}")
    ground = _ground(run, configurations, support)
    assessed, found = _assess(ground, _steps(run, ground), None, draws, seed)
    frame, by = tabulate(assessed, by, np.array([c.tokens.kind != "positive_alignment" for c in ground.usable]))
    frame = _described(frame, ground.usable, run, ground.base, found)
    warnings = disagreements(frame[~frame["oracle"].astype(bool)], lambda row: str(row["configuration"]))
    count = len(ground.base.questions)
    return ConfigurationRanking(frame, by, count, ground.unscored, tuple(outcome_notes(run)), tuple(warnings))


def break_down(
    run: Run, configurations: Sequence[Configuration], by: str, support: str = "visited", draws: int = 2000, seed: int = 0
) -> pd.DataFrame:
    """Scores of configurations by `difficulty` of the question, depth `window` of the node, or `path` (correct or incorrect).

    One row a group and configuration: by, group, configuration, questions, then each score with `_low` and `_high`. Question weights are
    those of the whole. Windows and paths share out a configuration's sums, estimated from the chosen nodes, so their drives add up
    to the whole drive; a node on both kinds of path counts on each by its share of rollouts. Transfer is known by difficulty only.
    """
    if by not in BREAK_DOWNS:
        raise GradalignError(f"cannot break down by {by!r}; choose from {', '.join(BREAK_DOWNS)}")
    ground = _ground(run, configurations, support)
    frames = []
    if by == "difficulty":
        named = run.frame("questions", ["question", "difficulty"]).set_index("question")["difficulty"].fillna("not stated")
        difficulty = named.loc[list(ground.base.questions)].to_numpy()
        for group in sorted(set(difficulty)):
            part = ground.part(np.flatnonzero(difficulty == group))
            assessed, _ = _assess(part, _steps(run, part), None, draws, seed)
            frames.append(_group_rows(by, group, assessed, part))
        return pd.concat(frames, ignore_index=True)
    for group, share in _shares(by, ground.rows).items():
        assessed, _ = _assess(ground, None, share, draws, seed)
        frames.append(_group_rows(by, group, assessed, ground))
    return pd.concat(frames, ignore_index=True)


def _shares(by: str, rows: pd.DataFrame) -> dict[str, Any]:
    """For each group of nodes, how much each row's node belongs to it."""
    if by == "path":
        return {"correct": 1 - rows["wrong"], "incorrect": rows["wrong"]}
    names = {
        window: "[0, 1)" if window == 0 else f"[{2 ** (window - 1)}, {2**window})" for window in sorted(set(rows["window"]))
    }
    return {name: (rows["window"] == window).astype(float) for window, name in names.items()}


def _group_rows(by: str, group: str, assessed: Scored, ground: "_Ground") -> pd.DataFrame:
    frame = pd.DataFrame({"by": by, "group": group, "configuration": [c.name for c in ground.usable]})
    frame["questions"] = len(ground.base.questions)
    for name in RANKABLE:
        frame[name], frame[f"{name}_low"], frame[f"{name}_high"] = assessed.score[name], assessed.low[name], assessed.high[name]
    return frame


@dataclass(frozen=True, eq=False)
class _Ground:
    """What configurations are scored from: those the run can tell of, their pairs' sums, rows of scored nodes, weights of questions."""

    usable: Sequence[Configuration]
    unscored: dict[str, str]
    base: Standing
    rows: pd.DataFrame
    weights: dict[str, np.ndarray]

    def part(self, at: np.ndarray) -> "_Ground":
        """The same on some of the questions, by their places."""
        b = self.base
        questions = tuple(b.questions[q] for q in at)
        arrays = (each[:, at] for each in (b.length_MQ, b.dot_MQ, b.noise_MQ, b.d_norm2_MQ, b.advantage_MQ))
        rows = self.rows[self.rows["question"].isin(questions)]
        weights = {name: weight[at] for name, weight in self.weights.items()}
        return _Ground(self.usable, self.unscored, Standing(b.keys, questions, *arrays), rows, weights)


def _ground(run: Run, configurations: Sequence[Configuration], support: str) -> _Ground:
    if run.identity.get("node_selection") == "top":
        raise GradalignError("this run took the top nodes, for looking; score again with --node-selection pps to rank")
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
    return _Ground(usable, unscored, base, rows.merge(advantage, on=["question", "node", "teacher"], how="left"), weights)


def _assess(
    ground: _Ground, steps: Steps | None, share: Any, draws: int, seed: int
) -> tuple[Scored, list[dict[str, np.ndarray]]]:
    """Every score of every configuration, of a `share` of the nodes only, if given; and each one's sums, the means over its stages."""
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
        moved = steps.transfer(np.stack([ground.weights[c.name] for c in ground.usable for _ in c.pairs]))
        error = steps.sketch_error()
    whole = [{name: np.mean([parts[m][name] for m in at], axis=0) for name in parts[0]} for at in stages.values()]
    return assess(standing, sums, moved, error, [], draws, seed, stages), whole


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
            "advantage": by_question(factor * mine["advantage"]),
        }
    linear["length"] = base.length_MQ[m]
    return linear | cosines


def _steps(run: Run, ground: _Ground) -> Steps | None:
    """Stored steps of every stage of every configuration, as its tokens are weighted; None where there are too few questions."""
    if len(ground.base.questions) < LEAST_FOR_TRANSFER:
        return None
    asked = [(*pair, str(c.tokens)) for c in ground.usable for pair in c.pairs]
    wanted = list(dict.fromkeys(asked))
    steps = steps_of(run, [key[:2] for key in wanted], ground.base.questions, tokens=[key[2] for key in wanted])
    return None if steps is None else steps.part([wanted.index(key) for key in asked])


def _described(
    frame: pd.DataFrame, usable: Sequence[Configuration], run: Run, base: Standing, found: Sequence[dict[str, np.ndarray]]
) -> pd.DataFrame:
    """The frame with what each configuration is, whom it helps and what its teacher reads."""
    contexts = run.frame("contexts", ["question", "teacher", "length"])
    length = contexts[contexts["question"].isin(base.questions)].groupby("teacher")["length"].mean()
    described = []
    for c, part in zip(usable, found, strict=True):
        known = ~np.isnan(part["dot_se"]).any()
        read = length.get(c.teacher, np.nan) if c.teacher is not None else 0.0
        rollout = base.length_MQ[0].mean() if c.teacher is not None else 0.0
        described.append({
            KEYS[0]: c.name,
            "of": c.teacher or "",
            "by": " then ".join(c.objectives),
            "questions": str(c.questions),
            "tokens": str(c.tokens),
            "oracle": c.tokens.kind == "positive_alignment",
            "helped": float((part["dot"] > _SURE * part["dot_se"]).mean()) if known else np.nan,
            "harmed": float((part["dot"] < -_SURE * part["dot_se"]).mean()) if known else np.nan,
            "context_tokens": read,
            "teacher_tokens": read + rollout,
        })  # fmt: skip
    whole = frame.drop(columns=KEYS[1]).merge(pd.DataFrame(described), on=KEYS[0], how="left", sort=False)
    whole = whole.rename(columns={KEYS[0]: "configuration", "of": "teacher", "by": "objective"})
    first = ["configuration", "teacher", "objective", "questions", "tokens", "oracle"]
    return whole[[*first, *(column for column in whole.columns if column not in first)]]
