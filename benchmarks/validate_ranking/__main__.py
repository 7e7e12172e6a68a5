"""Does the ranking predict training? Scores of configurations before training against what training by them does to held-out questions.

    python benchmarks/validate_ranking                       # everything; goes on where it was stopped
    python benchmarks/validate_ranking --only arithmetic-small
    SMALL=1 python benchmarks/validate_ranking               # the size that CI runs: few configurations and steps; keeps nothing

Every setting (a question set and a student) is scored once, on training questions; then the student is trained on the same questions by
each configuration, with several seeds and two rates of Adam, and examined after 1, 5, 20 and 100 steps on held-out questions. Kept under
benchmarks/results/validation: `predictions.parquet`, a row a setting and configuration, and `training.parquet`, a row an examination.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from judging import intervals, reliability, table
from picture import draw
from prediction import CHEAP, predictions, score
from rich.console import Console
from rich.progress import track
from rich.table import Table
from settings import HELD_OUT, HORIZONS, PLACE, RATES, SEEDS, Setting, all_settings, configurations
from training import Exam, Trainee, external, lessons_of, load, train

from gradalign.configurations import Configuration
from gradalign.findings.assessed import RANKABLE
from gradalign.models import CausalLanguageModel
from gradalign.questions import load_questions
from gradalign.store import load_run

SMALL = os.environ.get("SMALL") == "1"
KEPT = PLACE.parent / "results" / "validation"
PICTURE = PLACE.parents[1] / "docs" / "validation.svg"
STATED = PLACE.parents[1] / "gradalign" / "findings" / "validated.json"
ANSWERS = 32  # to each held-out question
PREDICTORS = (*RANKABLE, "foretold, no horizon", *CHEAP)
KEYS = ["questions", "student", "configuration", "seed", "rate"]


@dataclass(frozen=True)
class Job:
    """One training run."""

    setting: Setting
    configuration: str
    seed: int
    rate: float
    folder: str
    horizons: tuple[int, ...] = HORIZONS
    answers: int = ANSWERS

    @property
    def key(self) -> tuple[Any, ...]:
        return self.setting.questions, self.setting.student, self.configuration, self.seed, self.rate


def carry_out(job: Job) -> list[dict[str, Any]]:
    """Train, and examine at each horizon: a row each, with the change of success and its standard error over questions.

    Every seed of training has an exam of its own, so that what the exam adds to the error is averaged over seeds as well.
    """
    torch.set_num_threads(1)
    student, run, how = load(job.setting.student), load_run(job.folder), _configuration(job.configuration)
    name = external(how)
    teacher = student if name is None else load(name)
    assert isinstance(teacher.language_model, CausalLanguageModel)
    exam, before, rows = *_exam(job.setting, job.answers, job.seed), []
    trainee = Trainee(student)
    lessons = lessons_of(run, how, student)
    for done in train(trainee, teacher.language_model.model, lessons, how, job.rate, job.horizons[-1], job.seed):
        if done in job.horizons:
            right = exam.right(trainee)
            change = (right - before) / job.answers
            rows.append(
                dict(zip(KEYS, job.key, strict=True))
                | {"steps": done, "before": before.mean() / job.answers, "after": right.mean() / job.answers}
                | {"change": change.mean(), "change_se": change.std(ddof=1) / np.sqrt(len(change))}
                | {"answers": job.answers, "right_before": before.astype(np.int16), "right": right.astype(np.int16)}
            )
    return rows


def _configuration(name: str) -> Configuration:
    return next(configuration for configuration in configurations() if configuration.name == name)


@lru_cache
def _exam(setting: Setting, answers: int, number: int) -> tuple[Exam, np.ndarray]:
    """An exam, and how the student does in it before it is trained."""
    student = load(setting.student)
    exam = Exam(load_questions(f"builtin:{setting.questions}:heldout", HELD_OUT), student, answers, number)
    return exam, exam.right(Trainee(student))


def trained(jobs: list[Job], workers: int) -> Iterator[list[dict[str, Any]]]:
    """Rows of training runs as they end."""
    with ProcessPoolExecutor(workers) as pool:
        pending = [pool.submit(carry_out, job) for job in jobs]
        for done in track(as_completed(pending), "training", total=len(jobs)):
            yield done.result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="one setting, as arithmetic-small")
    parser.add_argument("--work", type=Path, default=Path("runs/validation"), help="where the scored runs go")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--judge", action="store_true", help="train nothing; judge what is kept")
    options = parser.parse_args()
    torch.set_num_threads(1)
    work, kept = options.work.resolve(), KEPT
    if SMALL:
        work = kept = Path(tempfile.mkdtemp())
    os.chdir(PLACE)  # templates are named from here
    kept.mkdir(parents=True, exist_ok=True)
    settings = [setting for setting in all_settings() if options.only in (None, setting.folder)]
    for setting in settings[: 1 if SMALL else None] if not options.judge else []:
        run = score(setting, work, *([16] if SMALL else []))
        if (setting.questions, setting.student) not in _held(kept / "predictions.parquet", KEYS[:2]):
            _add(kept / "predictions.parquet", predictions(setting, run).to_dict("records"), KEYS[:3])
        held = _held(kept / "training.parquet", KEYS)
        jobs = [job for job in jobs_of(setting, str(run.path)) if job.key not in held]
        for rows in trained(jobs, options.workers):
            _add(kept / "training.parquet", rows, [*KEYS, "steps"])
    judge(kept)


def jobs_of(setting: Setting, folder: str) -> list[Job]:
    """Every training run of a setting, those of one seed and rate together."""
    if SMALL:
        names = ("correct", "half right", "wrong", "leak forward")
        return [Job(setting, name, 0, RATES[-1], folder, HORIZONS[:2], 4) for name in names]
    return [Job(setting, how.name, seed, rate, folder) for seed in SEEDS for rate in RATES for how in configurations()]


def judge(kept: Path) -> None:
    """Put side by side what was foretold and what happened, and keep the tables."""
    told, training = (pd.read_parquet(kept / f"{name}.parquet") for name in ("predictions", "training"))
    judged, found = table(told, training, PREDICTORS), intervals(told, training, PREDICTORS)
    judged.to_parquet(kept / "judged.parquet")
    found.to_parquet(kept / "intervals.parquet")
    if not SMALL:
        draw(told, training, RATES[0], PICTURE)
        STATED.write_text(json.dumps(stated(training, judged), indent=1) + "\n")
    for key, rows in found.groupby(["student", "rate", "steps"]):
        mine = judged.query("student == @key[0] and rate == @key[1] and steps == @key[2]")
        title = f"Spearman of foretold and measured change, {key[0]} student: Adam at {key[1]:g}, {key[2]} steps"
        shown = Table(title=f"{title}, {mine['questions'].nunique()} question sets")
        for head in ("predictor", "Spearman", "95% interval", "regret, points"):
            shown.add_column(head, justify="left" if head == "predictor" else "right")
        for row in rows.sort_values("spearman", ascending=False).to_dict("records"):
            regret = mine[mine["predictor"] == row["predictor"]]["regret"].mean()
            interval = f"[{row['low']:.3f}, {row['high']:.3f}]"
            shown.add_row(row["predictor"], f"{row['spearman']:.3f}", interval, f"{regret:.2f}")
        if not SMALL:
            sure = reliability(training.query("student == @key[0] and rate == @key[1] and steps == @key[2]"))
            shown.add_section()
            shown.add_row("(one seed of training, of the others)", f"{sure['one_seed_against_others'].mean():.3f}", "", "")
        Console(width=120).print(shown)


def stated(training: pd.DataFrame, judged: pd.DataFrame) -> dict[str, Any]:
    """What the tool says of how well it foretells, over all rates and horizons: of the students that were held back, if any is trained."""
    held_back = {setting.student for setting in all_settings() if setting.held_back} & set(training["student"])
    students = held_back or set(training["student"])
    mine = judged[(judged["predictor"] == "foretold") & judged["student"].isin(students)]
    trained = training[training["student"].isin(students)]
    return {
        "runs": len(trained[KEYS].drop_duplicates()),
        "student": " and ".join(sorted(students)),
        "held_back": bool(held_back),
        "sets": int(trained["questions"].nunique()),
        "steps": int(trained["steps"].max()),
        "spearman": {"least": round(float(mine["spearman"].min()), 4), "most": round(float(mine["spearman"].max()), 4)},
        "regret": round(float(mine["regret"].max()), 4),
    }


def _held(path: Path, keys: list[str]) -> set[tuple[Any, ...]]:
    """Keys of what was done before."""
    return set(pd.read_parquet(path, columns=keys).itertuples(index=False, name=None)) if path.exists() else set()


def _add(path: Path, rows: list[dict[str, Any]], keys: list[str]) -> None:
    """Put rows into a file, in place of those of the same keys; the file is whole at any time."""
    frame = pd.DataFrame(rows)
    if path.exists():
        frame = pd.concat([pd.read_parquet(path), frame])
    frame = frame.drop_duplicates(keys, keep="last").sort_values(keys, ignore_index=True)
    frame.to_parquet(path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


if __name__ == "__main__":
    main()
