"""Is the first-order claim right? Measured over foretold change of success, for steps so small that the second order hardly shows.

    python benchmarks/validate_ranking/first_order.py --setting arithmetic-small

The student takes one step along a configuration's gradient from half of the run's questions, of such a length that success on the other
half should change by so much, and one of that length back; all three answer these questions many times with the same seeds. Measured is
half the difference of the two steps, which the second order leaves alone. Foretold is <D / |D|, G> times the length, with G from fresh
rollouts of these questions, no fewer. Both have a standard error over the same questions, as has their difference. Kept in
benchmarks/results/validation/first_order.json. SMALL=1: few answers; keeps nothing.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from derivatives import base_rollouts, success_gradient, training_step
from rich.console import Console
from rich.progress import track
from rich.table import Table
from settings import PLACE, Setting, configurations
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from training import Exam, Lesson, Trainee, lessons_of, load

from gradalign.configurations import Configuration
from gradalign.models import LoadedModel
from gradalign.questions import grade
from gradalign.seeds import seed_of
from gradalign.store import Run, load_run

SMALL = os.environ.get("SMALL") == "1"
NAMES = ("correct",) if SMALL else ("correct", "correct forward", "half right", "larger", "leak", "mostly wrong forward")
CHANGES = (0.01,) if SMALL else (0.005, 0.01, 0.02)
ANSWERS = 64 if SMALL else 1024


def compared(run: Run, student: LoadedModel, how: Configuration, changes: Sequence[float]) -> list[dict[str, float | str]]:
    """A row for each change that is asked for."""
    rollouts = base_rollouts(run)
    lessons = {lesson.question.id: lesson for lesson in lessons_of(run, how, student)}
    halves = [[lessons[name] for name in list(rollouts)[half::2] if name in lessons] for half in range(2)]
    direction = training_step(student, how, halves[0], rollouts).mean
    direction = direction / direction.norm()
    slopes = slopes_of(student, halves[1], direction)
    exam = Exam([lesson.question for lesson in halves[1]], student, ANSWERS)
    rows: list[dict[str, float | str]] = []
    for change in track(changes, how.name):
        length = change / abs(slopes.mean())
        right = []
        for sign in (1, -1):
            moved = Trainee(student)
            _step(moved, sign * length * direction)
            right.append(exam.right(moved) / ANSWERS)
        measured, told = (right[0] - right[1]) / 2, length * slopes
        ratio = measured.mean() / told.mean()
        error = (measured - ratio * told).std(ddof=1) / np.sqrt(len(told)) / abs(told.mean())
        rows.append(
            {"configuration": how.name, "foretold": told.mean(), "measured": measured.mean(), "ratio": ratio, "ratio_se": error}
            | {"answers": ANSWERS * len(told)}
        )
    return rows


def slopes_of(student: LoadedModel, lessons: Sequence[Lesson], direction: torch.Tensor) -> np.ndarray:
    """<direction, gradient of success> of each question, from fresh rollouts: (Q,)."""
    seeds = [tuple(seed_of("slope", lesson.question.id, i) for i in range(ANSWERS)) for lesson in lessons]
    sampled = Trainee(student).sample([lesson.prompt for lesson in lessons], seeds)
    found = []
    for lesson, mine in zip(lessons, sampled, strict=True):
        graded = [(tokens, grade(lesson.question, student.codec.text(tokens)).reward) for tokens in mine]
        found.append(float(direction @ success_gradient(student, [lesson], {lesson.question.id: graded})))
    return np.array(found)


@torch.no_grad()
def _step(trainee: Trainee, by: torch.Tensor) -> None:
    parameters = list(trainee.language_model.model.parameters())
    vector_to_parameters(parameters_to_vector(parameters) + by.float(), parameters)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setting", default="arithmetic-small")
    parser.add_argument("--work", type=Path, default=Path("runs/validation"), help="where the scored runs are")
    options = parser.parse_args()
    setting = Setting(*options.setting.split("-"))
    run, student = load_run(options.work.resolve() / setting.folder), load(setting.student)
    os.chdir(PLACE)
    rows = [row for how in configurations() if how.name in NAMES for row in compared(run, student, how, CHANGES)]
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
