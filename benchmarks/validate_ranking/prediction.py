"""What is known of each configuration before training: the scores of a run, and the cheap numbers a user would otherwise take."""

import zlib
from pathlib import Path

import pandas as pd
from grace import grace
from settings import HORIZONS, LEAKS, MAX_TOKENS, RATES, TRAINED_ON, Setting, configurations

import gradalign
from gradalign.configurations import Configuration, step_weightings
from gradalign.findings import Horizon, rank_configurations
from gradalign.findings.accuracy import accuracy_of_teachers
from gradalign.findings.assessed import RANKABLE
from gradalign.store import Run

TEACHER_ROLLOUTS = 16
CHEAP = ("teacher_accuracy", "reverse_kl", "forward_kl", "top_overlap", "grace", "random")


def score(setting: Setting, work: Path, limit: int = TRAINED_ON) -> Run:
    """The run of a setting, with every teacher and objective of the configurations; one that is there already is read."""
    wanted = configurations()
    return gradalign.score(
        f"builtin:{setting.questions}:train",
        student=f"builtin:{setting.student}",
        teachers=tuple(dict.fromkeys(c.teacher for c in wanted if c.teacher)),
        objectives=tuple(dict.fromkeys(c.objective for c in wanted)),
        tokens=step_weightings(wanted),
        limit=limit,
        max_tokens=MAX_TOKENS,
        teacher_rollouts=TEACHER_ROLLOUTS,
        out=str(work / setting.folder),
    )


def predictions(setting: Setting, run: Run) -> pd.DataFrame:
    """A row a configuration: every predictor, whether the tool warns of it, and whether its context leaks.

    `foretold` is told for every rate and horizon, in columns of their own (`foretold_at`), and for none in particular.
    """
    wanted = configurations()
    gradalign.foretell(run, wanted)
    ranking = rank_configurations(run, wanted)
    scores = ranking.frame.set_index("configuration")
    at = {
        foretold_at(rate, steps): rank_configurations(
            run, wanted, "foretold", draws=100, horizon=Horizon(steps, rate)
        ).frame.set_index("configuration")["foretold"]
        for rate in RATES
        for steps in HORIZONS
    }
    accuracy, distance, steady = accuracy_of_teachers(run), _distances(run), grace(run, setting.student)
    rows = []
    for configuration in wanted:
        score, teacher = scores.loc[configuration.name], configuration.teacher
        rows.append(
            {"questions": setting.questions, "student": setting.student, "configuration": configuration.name}
            | {name: float(score[name]) for name in (*RANKABLE, "first_step_share")}
            | {name: float(values[configuration.name]) for name, values in at.items()}
            | {"teacher_accuracy": accuracy[teacher].accuracy, "teacher_lift": accuracy[teacher].lift}
            | {name: float(distance.loc[teacher, name]) for name in ("reverse_kl", "forward_kl", "top_overlap")}
            | {"grace": -steady[teacher], "random": _random(setting, configuration)}
            | {
                "warned": any(warning.startswith(f"{configuration.name}: ") for warning in ranking.warnings),
                "leaks": teacher in LEAKS,
            }
        )
    return pd.DataFrame(rows)


def foretold_at(rate: float, steps: int) -> str:
    """The column of what is foretold for so many steps of Adam at that rate."""
    return f"foretold {rate:g} {steps}"


def _distances(run: Run) -> pd.DataFrame:
    """Divergences and overlap of teachers and student at the prefixes of base rollouts, by teacher; every token counts alike."""
    teachers = run.frame("teachers", ["question", "node", "teacher", "reverse_kl", "forward_kl", "top_overlap"])
    visits = run.frame("nodes", ["question", "node", "visits"])
    both = teachers.merge(visits, on=["question", "node"])
    values = both[["reverse_kl", "forward_kl", "top_overlap"]].mul(both["visits"], axis=0)
    sums = values.assign(teacher=both["teacher"]).groupby("teacher").sum()
    return sums.div(both.groupby("teacher")["visits"].sum(), axis=0)


def _random(setting: Setting, configuration: Configuration) -> float:
    """A number that knows nothing, the same on every run."""
    return zlib.crc32(f"{setting} {configuration.name}".encode()) / 2**32
