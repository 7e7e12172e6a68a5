"""Questions read back from a run's rows, so that a larger budget adds to what was sampled and throws nothing away."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from gradalign.pipeline.cast import Cast
from gradalign.pipeline.prompts import TeacherPrompt
from gradalign.pipeline.rollouts import Pool
from gradalign.pipeline.targeted import Forced
from gradalign.store import TABLES, RunFolder
from gradalign.types import Completion, Grade, Message, Rollout, Skip


@dataclass(frozen=True, eq=False)
class Stored:
    """What a run holds of one question."""

    rollouts: list[Rollout]
    pools: dict[str | None, Pool]
    prompts: list[TeacherPrompt]
    taught: dict[str, list[Rollout]]
    skips: list[Skip]
    targeted: list[Forced]
    other_tokens: int


def stored_questions(folder: RunFolder, part: int, cast: Cast, student: str) -> dict[str, Stored]:
    """Every question of a finished part, by id."""
    rows = {table: folder.rows(part, table) for table in ("questions", "contexts", "skipped")}
    rows["rollouts"] = folder.rows(part, "rollouts", [column.name for column in TABLES["rollouts"] if column.name != "pieces"])
    teachers = {teacher.name: teacher for teacher in cast.teachers}
    found: dict[str, Stored] = {}
    for question in rows["questions"]:
        mine = {table: [row for row in rows[table] if row["question"] == question["question"]] for table in rows}
        base = [_rollout(row) for row in mine["rollouts"] if row["purpose"] == "base"]
        shown = [row for row in mine["rollouts"] if row["purpose"] == "demonstration"]
        sources = sorted({row["source"] for row in shown})
        pools = {
            None if source == student else source: Pool([_rollout(row) for row in shown if row["source"] == source])
            for source in sources
        }
        own = [row for row in mine["rollouts"] if row["purpose"] == "teacher"]
        taught = {
            row["teacher"]: [_rollout(sampled) for sampled in own if sampled["source"] == row["teacher"]]
            for row in mine["contexts"]
            if own
        }
        targeted = [_forced(row) for row in mine["rollouts"] if row["purpose"] == "targeted"]
        forced_tokens = sum(len(forced.completion.tokens) for forced in targeted)
        prompts = [
            TeacherPrompt(
                teachers[row["teacher"]],
                Message(row["message"], row["system"]),
                tuple(row["prompt_tokens"]),
                tuple(row["answers"]),
                row["private"],
                row["cut"],
            )
            for row in mine["contexts"]
        ]
        skips = [Skip(row["question"], row["teacher"], row["reason"], row["detail"]) for row in mine["skipped"]]
        found[question["question"]] = Stored(
            base, pools, prompts, taught, skips, targeted, question["sampled_tokens"] - forced_tokens
        )
    return found


def _completion(row: dict[str, Any]) -> Completion:
    tokens = np.array(row["tokens"], dtype=np.int64)
    return Completion(0, row["rollout"], tokens, np.array(row["logprobs"], dtype=np.float64), row["stop"])


def _grade(row: dict[str, Any]) -> Grade:
    return Grade(row["reward"], row["outcome"], row["read_answer"], row["ungradable_reason"])


def _rollout(row: dict[str, Any]) -> Rollout:
    return Rollout(row["rollout"], _completion(row), row["text"], _grade(row))


def _forced(row: dict[str, Any]) -> Forced:
    return Forced(row["node"], row["token"], _completion(row), _grade(row))
