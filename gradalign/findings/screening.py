"""Which context should the teacher see? What each does to the student's own answers, what a step toward it would do, and its price."""

# pandas types its results too widely for these rules.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false, reportAssignmentType=false
# pyright: reportReturnType=false, reportOptionalOperand=false, reportCallIssue=false

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.compute as pc

from gradalign.findings.accuracy import Accuracy, accuracy_of_teachers, share_with_interval
from gradalign.findings.assessed import OF_OTHERS
from gradalign.findings.notes import disagreements, outcome_notes
from gradalign.findings.ranking import Ranking, rank
from gradalign.findings.rows import natural
from gradalign.findings.tokens import pairs_of
from gradalign.findings.wording import SCORE_HEADS, remarks, score_cell, score_formats
from gradalign.inference import bootstrap_counts, percentile_interval
from gradalign.sheets import Head, Remark, Sheet, Shown, interval, number, percent
from gradalign.store import Run
from gradalign.types import REWARDS, GradalignError

ALONE = "the student alone"
_SCORES = (*OF_OTHERS, "drive", "gain", "mean_cosine", "pooled_cosine", "teacher_advantage")
_OF_RANKING = {"tied": False, "p_best": np.nan, "first_step_share": np.nan}
_ACCURACY = tuple(field.name for field in fields(Accuracy))
_FEW = 0.8  # share of questions below which a context is said to be had for few
_BANDS = (
    (0.0, 1 / 3, "hard: demonstrations right below 1/3"),
    (1 / 3, 2 / 3, "between"),
    (2 / 3, 1.01, "easy: right from 2/3 on"),
)


@dataclass(frozen=True, eq=False)
class ContextScreening(Shown):
    """Every teacher of a run as a context to train under, with one objective.

    `frame`, best first: teacher; `built`, the share of questions that it could be built for; `context_tokens`, mean length of its prompt;
    `accuracy` of rollouts sampled under it and `lift` over the student alone on the same questions, each with its interval; `stated`, the
    share of questions whose context states an answer, `follows` and `alone`, how often rollouts under it and the student's own give that
    answer, and `copied` with its interval: of the rollouts that would have said otherwise, the share that say it (an upper bound for
    copying, since a demonstration's steps lead there too); the scores of a `Ranking` with their intervals, best by `by` first. What was
    not sampled or cannot be told is missing. `by_difficulty` has accuracy by stated difficulty, else by how often separate demonstrations
    were right.
    """

    frame: pd.DataFrame
    by_difficulty: pd.DataFrame
    objective: str
    by: str
    questions: int
    recommendation: str
    reasons: tuple[str, ...]
    doubts: tuple[str, ...]
    warnings: tuple[str, ...]
    notes: tuple[str, ...]

    def sheets(self) -> list[Sheet]:
        """The table with the recommendation, and accuracy by difficulty."""
        frame = self.frame
        score = self.by
        others = [name for name in ("drive", "gain", "mean_cosine") if name != score]
        heads = (
            Head("teacher", number=False), Head("accuracy [95%]"), Head(f"{SCORE_HEADS[score]} [95%]", strong=True), Head("built"),
            Head("tokens"), Head("copied"), Head("points above alone", spare=True),
            *(Head(SCORE_HEADS[name], spare=True) for name in others),
        )  # fmt: skip
        show = score_formats(frame, (score, *others))
        rows = [
            (row["teacher"], _with_interval(row, "accuracy"), score_cell(row, score, show[score]),
             percent(row["built"]), number(row["context_tokens"], ",.0f"), percent(row["copied"]), _signed(row["lift"]),
             *(show[name](row[name]) for name in others))
            for row in frame.to_dict("records")
        ]  # fmt: skip
        said = [Remark(self.recommendation), *(Remark(f"Because {reason}.") for reason in self.reasons)]
        said += [Remark(f"But {doubt}.", "warning") for doubt in self.doubts]
        said += remarks(self.warnings, (*self.notes, _COPIED), self.by)
        title = f"Contexts to train under with {self.objective}, {self.questions} questions"
        found = [Sheet(title, heads, tuple(rows), tuple(said))]
        return found if self.by_difficulty.empty else [*found, self._difficulty_sheet()]

    def _difficulty_sheet(self) -> Sheet:
        groups = list(dict.fromkeys(self.by_difficulty["group"]))
        heads = (Head("teacher", number=False), *(Head(f"{group} [95%]") for group in groups))
        rows = []
        for teacher, mine in self.by_difficulty.groupby("teacher", sort=False):
            by_group = {row["group"]: row for row in mine.to_dict("records")}
            rows.append((teacher, *(_with_interval(by_group[g], "accuracy") if g in by_group else "-" for g in groups)))
        return Sheet("Accuracy of rollouts under each context, by difficulty", heads, tuple(rows))


_COPIED = "copied: of rollouts that would say otherwise, how many say the answer that the context states; its steps may lead there too"


def screen_contexts(run: Run, objective: str | None = None, draws: int = 2000, seed: int = 0) -> ContextScreening:
    """Compare the teachers of a run as contexts to train under, and recommend one, with reasons and doubts.

    Accuracy and copying are known where the run was scored with `teacher_rollouts`. Scores are those of the `objective`, the run's first
    unless given.
    """
    pairs = pairs_of(run)
    known = list(dict.fromkeys(o for t, o in pairs if t != REWARDS))
    objective = objective or next(iter(known), None)
    if objective is None or objective not in known:
        raise GradalignError(
            f"no teacher was scored with objective {objective!r}; choose from {', '.join(known) or 'none in this run'}"
        )
    teachers = run.identity["teachers"]
    questions = (
        run.frame("questions", ["question", "pass_rate", "difficulty", "rollouts"]).query("rollouts > 0").set_index("question")
    )
    if questions.empty:
        raise GradalignError("no question of this run has a rollout; the run's `skipped` table says why")
    ranking, notes = _ranked(run, objective, draws, seed)
    ranked = {} if ranking is None else {row["teacher"]: row for row in ranking.frame.to_dict("records")}
    answers, accurate = _answers(run, questions), accuracy_of_teachers(run)
    counts = bootstrap_counts(len(questions), draws, seed).astype(np.float64)
    rows = []
    for teacher in teachers:
        mine = answers.get(teacher)
        row: dict[str, Any] = {"teacher": teacher, "built": 0.0 if mine is None else len(mine) / len(questions)}
        row["context_tokens"] = np.nan if mine is None else float(mine["length"].mean())
        row |= vars(accurate[teacher]) if teacher in accurate else dict.fromkeys(_ACCURACY, np.nan)
        row |= _copying(mine, questions, counts)
        scored = ranked.get(teacher, {})
        row |= {f"{name}{end}": scored.get(f"{name}{end}", np.nan) for name in _SCORES for end in ("", "_low", "_high")}
        row |= {name: scored.get(name, default) for name, default in _OF_RANKING.items()}
        rows.append(row)
    by = "drive" if ranking is None else ranking.by
    frame = pd.DataFrame(rows).sort_values(by, ascending=False, kind="stable", ignore_index=True)
    warned = disagreements(frame, accurate, lambda row: row["teacher"])
    suspects = {teacher for teacher in teachers if any(warning.startswith(f"{teacher}: ") for warning in warned)}
    alone = questions["pass_rate"].to_numpy(dtype=np.float64)
    recommendation, reasons, doubts = _recommend(frame, by, suspects)
    return ContextScreening(
        _with_alone(frame, alone), _by_difficulty(run, answers, questions), objective, by, len(questions), recommendation, tuple(reasons),
        tuple(doubts), tuple(warned), (*notes, *outcome_notes(run)),
    )  # fmt: skip


def _ranked(run: Run, objective: str, draws: int, seed: int) -> tuple[Ranking | None, list[str]]:
    """The ranking of one objective's teachers, and what has to be said of the questions that it is over."""
    try:
        ranking = rank(run, draws=draws, seed=seed, objectives=[objective])
    except GradalignError as fault:
        return None, [f"not ranked: {fault}"]
    left = f"scores are over {ranking.questions} questions that all teachers share; {ranking.left_out} are left out"
    return ranking, [left] if ranking.left_out else []


def _answers(run: Run, questions: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """By teacher, a row for each question it was built for: length, success of rollouts under it, and how often an answer that stands in
    the context is given by these and by the student's own (missing where nothing was sampled, or none stands there)."""
    contexts = run.frame("contexts", ["question", "teacher", "length", "answers"])
    sampled = run.frame(
        "rollouts", ["question", "purpose", "source", "reward", "read_answer"], pc.field("purpose").isin(["base", "teacher"])
    )
    base = {q: rows["read_answer"].tolist() for q, rows in sampled[sampled["purpose"] == "base"].groupby("question")}
    taught = sampled[sampled["purpose"] == "teacher"]
    groups = dict(iter(taught.groupby(["source", "question"])))
    found: dict[str, list[dict]] = {}
    for row in contexts.to_dict("records"):
        if row["question"] not in questions.index:
            continue
        own, stated = groups.get((row["teacher"], row["question"])), {*row["answers"]}
        said = None if own is None or not stated else float(own["read_answer"].isin(stated).mean())
        alone = float(np.mean([answer in stated for answer in base[row["question"]]])) if stated else None
        found.setdefault(row["teacher"], []).append({
            "question": row["question"], "length": row["length"], "success": np.nan if own is None else own["reward"].mean(),
            "stated": bool(stated), "follows": said, "alone": alone,
        })  # fmt: skip
    return {teacher: pd.DataFrame(rows).set_index("question") for teacher, rows in found.items()}


def _copying(mine: pd.DataFrame | None, questions: pd.DataFrame, counts: np.ndarray) -> dict[str, float]:
    found: dict[str, float] = dict.fromkeys(("stated", "follows", "alone", "copied", "copied_low", "copied_high"), np.nan)
    if mine is None:
        return found
    found["stated"] = float(mine["stated"].mean())
    known = mine.dropna(subset=["follows"])
    if known.empty:
        return found
    follows, alone = (known[name].to_numpy(dtype=np.float64) for name in ("follows", "alone"))
    place = questions.index.get_indexer(known.index)
    drawn = counts[:, place]
    with np.errstate(invalid="ignore", divide="ignore"):
        copied = (follows - alone).sum() / (1 - alone).sum() if (alone < 1).any() else np.nan
        low, high = percentile_interval((drawn @ (follows - alone)) / (drawn @ (1 - alone)), len(known))
    return found | {
        "follows": float(follows.mean()), "alone": float(alone.mean()), "copied": float(copied), "copied_low": float(low),
        "copied_high": float(high),
    }  # fmt: skip


def _with_alone(frame: pd.DataFrame, pass_rate: np.ndarray) -> pd.DataFrame:
    """The frame with a row of the student's own accuracy at the end."""
    mean, low, high = share_with_interval(pass_rate)
    alone = {"teacher": ALONE, "accuracy": mean, "accuracy_low": low, "accuracy_high": high, "tied": False}
    return pd.concat([frame, pd.DataFrame([alone]).reindex(columns=frame.columns)], ignore_index=True)


def _by_difficulty(run: Run, answers: dict[str, pd.DataFrame], questions: pd.DataFrame) -> pd.DataFrame:
    group = questions["difficulty"].fillna("not stated")
    if questions["difficulty"].isna().all():
        shown = run.frame("rollouts", ["question", "purpose", "reward"], pc.field("purpose") == "demonstration")
        rate = shown.groupby("question")["reward"].mean().reindex(questions.index)
        group = pd.Series(None, index=questions.index, dtype=object)
        for low, high, name in _BANDS:
            group[(rate >= low) & (rate < high)] = name
    columns = [(teacher, mine["success"]) for teacher, mine in answers.items()] + [(ALONE, questions["pass_rate"])]
    rows = []
    for name in sorted(group.dropna().unique(), key=natural):
        for teacher, success in columns:
            values = success[success.index.isin(group.index[group == name])].dropna().to_numpy(dtype=np.float64)
            if not len(values):
                continue
            mean, low, high = share_with_interval(values)
            rows.append({
                "teacher": teacher, "group": name, "questions": len(values), "accuracy": mean, "accuracy_low": low, "accuracy_high": high,
            })  # fmt: skip
    return pd.DataFrame(rows)


def _recommend(frame: pd.DataFrame, by: str, suspects: set[str]) -> tuple[str, list[str], list[str]]:
    """The context to train under, in words: what speaks for it and what against. Of those that cannot be told from the best, one against
    which nothing else speaks goes before."""
    scored = [row for row in frame.to_dict("records") if not np.isnan(row[by])]
    if not scored:
        return "Recommended: none can be; what a step toward these contexts would do is not known from this run.", [], []
    sound = [row for row in scored if row["teacher"] not in suspects]
    if not sound or sound[0][by] <= 0:
        return "Recommended: none of these contexts; a step toward any of them shows no sign of helping.", [], []
    rivals = [row for row in sound if row is sound[0] or (row["tied"] and row[by] > 0)]
    best = min(rivals, key=lambda row: len(_objections(row)))
    show = score_formats(frame, (by,))[by]
    what = "others" if by in OF_OTHERS else "the same questions"
    most = "most" if best is sound[0] else f"no less than toward {sound[0]['teacher']}, as far as can be told"
    reasons = [
        f"a step toward it on some questions raises success on {what} {most} ({SCORE_HEADS[by]} {score_cell(best, by, show)})"
    ]
    if best["lift_low"] > 0:
        alone = percent(best["accuracy"] - best["lift"])
        reasons.append(
            f"with it the student is right {percent(best['accuracy'])} of the time, alone {alone} on the same questions"
        )
    doubts = [] if best[f"{by}_low"] > 0 else [f"the interval of its {by} holds 0: more questions would tell"]
    others = [row["teacher"] for row in sound if row is not best and (row["tied"] or row is sound[0])]
    doubts += [f"{', '.join(others)} cannot be told from it"] if others else []
    return f"Recommended: {best['teacher']}.", reasons, doubts + _objections(best)


def _objections(row: dict[str, Any]) -> list[str]:
    """What speaks against a context beside its score."""
    few = f"it could be built for only {percent(row['built'])} of the questions"
    return [few] * (row["built"] < _FEW) + ["with it the student answers worse than alone"] * (row["lift_high"] < 0)


def _with_interval(row: dict, name: str) -> str:
    if np.isnan(row[name]):
        return "-"
    return f"{percent(row[name])} {interval(row[f'{name}_low'], row[f'{name}_high'], percent)}"


def _signed(share: float) -> str:
    return number(100 * share, "+.0f")
