"""Is the first-order claim right? Measured over foretold change of success, for steps so small that the second order hardly shows.

    python benchmarks/validate_ranking/first_order.py --setting arithmetic-small

The student takes one step along a configuration's gradient from half of the run's questions, of such a length that success on the other
half should change by so much, and one of that length back; both students answer these questions many times with the same seeds. Measured
is half the difference, which the second order leaves alone. Foretold is the slope that `gradalign foretell` finds along that step, from
fresh rollouts of these questions, no fewer. Both have a standard error over the same questions, as has their difference. Kept in
benchmarks/results/validation/first_order.json. SMALL=1: few answers; keeps nothing.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from settings import PLACE, Setting, configurations
from training import Exam, Trainee, load

from gradalign.configurations import Configuration
from gradalign.first_step import OPTIMISER_BATCH, Foretelling, Taught, Unit
from gradalign.first_step.directions import Rollouts, advantages
from gradalign.first_step.moments import Parameters
from gradalign.first_step.student import Trainee as Moved
from gradalign.models import CausalLanguageModel, LoadedModel
from gradalign.pipeline import Execution, RunConfig, load_cast
from gradalign.questions import grade, load_questions
from gradalign.seeds import seed_of
from gradalign.store import load_run
from gradalign.types import Question

SMALL = os.environ.get("SMALL") == "1"
NAMES = ("correct",) if SMALL else ("correct", "correct forward", "half right", "larger", "leak", "mostly wrong forward")
CHANGES = (0.01,) if SMALL else (0.005, 0.01, 0.02)
ANSWERS = 64 if SMALL else 1024
ROLLOUTS = 16  # of each question, for the gradient


def compared(
    work: Foretelling, student: LoadedModel, questions: Sequence[Question], how: Configuration, changes: Sequence[float]
) -> list[dict[str, Any]]:
    """A row for each change that is asked for."""
    assert how.teacher is not None
    step = work.step(Unit(how.teacher, how.objective, how.questions, how.tokens), work.taught[0::2])
    assert step is not None
    length = sum(float(each.double().square().sum()) for each in step.mean) ** 0.5
    direction = [each / length for each in step.mean]
    asked = {question.id: question for question in questions}
    others = [(asked[taught.question], taught) for taught in work.taught[1::2]]
    slopes = work.slopes(direction, [_afresh(question, taught, student) for question, taught in others])
    exam = Exam([question for question, _ in others], student, ANSWERS)
    rows = []
    for change in track(changes, how.name):
        size = change / abs(slopes.mean())
        ahead, back = (exam.right(_moved(student, direction, sign * size)) / ANSWERS for sign in (1, -1))
        measured, told = (ahead - back) / 2, size * slopes
        ratio = measured.mean() / told.mean()
        error = (measured - ratio * told).std(ddof=1) / np.sqrt(len(told)) / abs(told.mean())
        rows.append(
            {"configuration": how.name, "foretold": told.mean(), "measured": measured.mean(), "ratio": ratio, "ratio_se": error}
            | {"answers": ANSWERS * len(told)}
        )
    return rows


def _afresh(question: Question, taught: Taught, student: LoadedModel) -> Taught:
    """The question with new rollouts, and many."""
    seeds = tuple(seed_of("slope", question.id, i) for i in range(ANSWERS))
    tokens = Trainee(student).sample([taught.prompt], [seeds])[0]
    reward = np.array([grade(question, student.codec.text(each)).reward for each in tokens])
    return replace(taught, rollouts=Rollouts(tokens, reward, advantages(reward)))


@torch.no_grad()
def _moved(student: LoadedModel, direction: Parameters, by: float) -> Trainee:
    moved = Trainee(student)
    for parameter, along in zip(moved.language_model.model.parameters(), direction, strict=True):
        parameter.add_(along, alpha=by)
    return moved


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setting", default="arithmetic-small")
    parser.add_argument("--work", type=Path, default=Path("runs/validation"), help="where the scored runs are")
    options = parser.parse_args()
    setting = Setting(*options.setting.split("-"))
    run, student = load_run(options.work.resolve() / setting.folder), load(setting.student)
    os.chdir(PLACE)
    teachers = ("ctx:none", "model:builtin:large")
    config = RunConfig(student=f"builtin:{setting.student}", questions=run.identity["questions"], teachers=teachers)
    cast = load_cast(config, Execution(engine="hf"))
    model = cast.student.model.language_model
    assert isinstance(model, CausalLanguageModel)
    work = Foretelling(run, cast, Moved(model), ROLLOUTS, OPTIMISER_BATCH)
    questions, wanted = load_questions(config.questions), [how for how in configurations() if how.name in NAMES]
    rows = [row for how in wanted for row in compared(work, student, questions, how, CHANGES)]
    table = Table(title=f"Change of success after one small step, {setting}: measured over foretold")
    for head in ("configuration", "foretold", "measured", "ratio"):
        table.add_column(head, justify="left" if head == "configuration" else "right")
    for row in rows:
        told, found = (f"{100 * float(row[name]):+.3f}" for name in ("foretold", "measured"))
        table.add_row(str(row["configuration"]), told, found, f"{row['ratio']:.3f} ± {1.96 * float(row['ratio_se']):.3f}")
    Console(width=120).print(table)
    if not SMALL:
        place = PLACE.parent / "results" / "validation" / "first_order.json"
        place.write_text(json.dumps({"setting": setting.folder, "rows": rows}, indent=1, default=float) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
