"""What has to be said with a table of scores: what was counted on the way, and where local scores and transfer disagree."""

# pandas types its results too widely for these rules.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false, reportAssignmentType=false

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from gradalign.findings.accuracy import Accuracy
from gradalign.findings.standing import KEYS
from gradalign.store import Run
from gradalign.types import REWARDS

CAVEAT = (
    "Scores are first-order: evidence about a training run, not a proof. transfer_drive and transfer ask what a step on some questions "
    "does to others, in the output layer; drive, gain, advantage and cosines are local to each node and cannot see guidance that does not "
    "transfer."
)
_HALF = 0.5  # of the best one's help for a step as long, below which what is taught is said to be particular to its questions
_HARDLY = 0.1  # share of the best teacher's help, for what a teacher does better, below which it is said to help hardly at all
_THIN = 0.1  # below this effective share of tokens, local scores of preference pairs are said to rest on few


def disagreements(frame: pd.DataFrame, accuracy: Mapping[str, Accuracy], name: Callable[[dict], str]) -> list[str]:
    """Where what a teacher does on the very questions it teaches and what a step does to others point apart, in plain words.

    A teacher does better there if it answers better than the student (`accuracy`, by teacher, where it was sampled), or by its advantage
    or drive. Where first steps are known they say what a step does to others, and one that does not help is told whatever its teacher does:
    its gain for a unit of step is below half of the best one's. Else others are not helped where `transfer_drive` is not above 0; they are
    hardly helped where it is below a tenth of the best teacher's (of the same objective), also for how far each is ahead of the student.
    `name` says what a row is called.
    """
    rows = [row for row in frame.to_dict("records") if row["teacher"] not in (REWARDS, "")]
    found = []
    for row in rows:
        own = accuracy.get(row["teacher"])
        answers = own is not None and own.lift_low > 0
        does_better = answers or row["teacher_advantage_low"] > 0 or row["drive_low"] > 0
        stepped = not np.isnan(row["first_step_share"])
        if not (does_better or stepped):
            continue
        effect = _first_step(row, rows, name) if stepped else _effect(row, rows, accuracy, name)
        if effect is None:
            continue
        if not does_better:
            found.append(f"{name(row)}: a step on it {effect}.")
            continue
        better = "this teacher does better than the student on the questions it teaches"
        if own is not None and answers:
            better = f"it raises the teacher to {100 * own.accuracy:.1f}%, {100 * own.lift:.0f} points above the student"
        found.append(
            f"{name(row)}: {better}, yet a step on it {effect}. It may know what the student cannot, such as a leaked answer."
        )
    return found


def _first_step(row: dict, rows: list[dict], name: Callable[[dict], str]) -> str | None:
    """What is wrong with the first step on others, in words; None if nothing is, or if there is no step."""
    share = row["first_step_share"]
    if row["first_step"] == 0 or share >= _HALF:
        return None
    if row["first_step_high"] < 0:
        return "would lower other questions"
    best = max(rows, key=lambda other: np.nan_to_num(other["first_step_share"]))
    return f"helps other questions by {max(share, 0):.0%} of what one as long on {name(best)} does"


def _effect(row: dict, rows: list[dict], accuracy: Mapping[str, Accuracy], name: Callable[[dict], str]) -> str | None:
    """What is wrong with a step on others, in words; None if nothing is."""
    if row["transfer_drive"] <= 0:
        return "would lower other questions" if row["transfer_drive_high"] < 0 else "shows no sign of helping other questions"
    rivals = [o for o in rows if o.get("objective") == row.get("objective") and o["transfer_drive_low"] > 0 and o is not row]
    best = max(rivals, key=lambda other: other["transfer_drive"], default=None)
    if best is None or not row["transfer_drive"] < _HARDLY * best["transfer_drive"]:
        return None
    mine, theirs = float(row["teacher_advantage"]), float(best["teacher_advantage_high"])
    if row["teacher"] in accuracy and best["teacher"] in accuracy:
        mine, theirs = accuracy[row["teacher"]].lift, accuracy[best["teacher"]].lift_high
    if not (mine > 0 and theirs > 0 and row["transfer_drive_high"] / mine < _HARDLY * best["transfer_drive"] / theirs):
        return None
    return (
        f"helps other questions hardly at all, {row['transfer_drive'] / best['transfer_drive']:.0%} of what {name(best)} does"
    )


def unforetold(frame: pd.DataFrame, name: Callable[[dict], str]) -> list[str]:
    """Whose first steps are not known where those of others are."""
    rows = [row for row in frame.to_dict("records") if row["teacher"] not in (REWARDS, "")]
    missing = [name(row) for row in rows if np.isnan(row["first_step"])]
    if not 0 < len(missing) < len(rows):
        return []
    named = f"{', '.join(missing[:3])}{f' and {len(missing) - 3} others' if len(missing) > 3 else ''}"
    return [
        f"first steps are not known of {named}: `gradalign foretell` (with --configs for configurations) finds those that single rollouts "
        "tell; --by first_step ranks the others"
    ]


def absent(teacher: str, run: Run) -> str:
    """That a teacher could be built for no question, and the commonest reason."""
    reasons = run.frame("skipped").query("teacher == @teacher")["reason"].value_counts()
    why = f": {reasons.index[0]} ({reasons.iloc[0]} questions)" if len(reasons) else ""
    return f"{teacher} could be built for no question{why}"


def _thin_pairs(run: Run) -> list[str]:
    """Where the student's rollouts say little of the prefixes that the teacher would lead to."""
    scores = run.frame("scores", [*KEYS, "effective_share"])
    share = scores.groupby(KEYS, sort=True)["effective_share"].mean()
    return [
        f"{objective} under {teacher}: its local scores rest on {value:.1%} of the tokens, since the teacher would lead elsewhere; "
        "transfer does not"
        for (teacher, objective), value in share.items()
        if value < _THIN
    ]


def outcome_notes(run: Run) -> Sequence[str]:
    """What was counted on the way: questions that say nothing, truncated and ungradable rollouts, what was skipped."""
    questions = run.frame("questions")
    sampled = questions[questions["rollouts"] > 0]
    missing = run.description["provenance"].get("questions", len(questions)) - len(questions)
    stopped = run.outcome.get("stopped")
    left = f"questions were not needed: {stopped}" if stopped else "questions are not scored yet: the run is unfinished"
    counted = {
        left: missing,
        "questions with every base rollout right (they say little)": int((sampled["pass_rate"] == 1).sum()),
        "questions with every base rollout wrong (they say little)": int((sampled["pass_rate"] == 0).sum()),
        "of the questions got no targeted rollout out of the budget": int(
            ((sampled["nodes"] > 0) & (sampled["targeted_rollouts"] == 0)).sum()
        ),
        "base rollouts in which no answer could be read": int(sampled["ungradable"].sum()),
        "base rollouts cut at the length limit": int(sampled["truncated"].sum()),
    }
    notes = [f"{count} {what}" for what, count in counted.items() if count] + _thin_pairs(run)
    skipped = run.frame("skipped").fillna({"teacher": "every teacher"}).groupby(["teacher", "reason"], sort=True).size()
    return [*notes, *(f"{teacher}: {count} questions skipped, {reason}" for (teacher, reason), count in skipped.items())]
