"""How often each teacher is right when it answers itself, and the student alone on the same questions."""

# pandas types its results too widely for these rules.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow.compute as pc

from gradalign.inference import influence_interval
from gradalign.store import Run


@dataclass(frozen=True)
class Accuracy:
    """Accuracy under a teacher's prompt, and its `lift` over the student alone, each with its 95% interval over questions."""

    accuracy: float
    accuracy_low: float
    accuracy_high: float
    lift: float
    lift_low: float
    lift_high: float


def accuracy_of_teachers(run: Run) -> dict[str, Accuracy]:
    """By teacher, from the rollouts that teachers sampled themselves; empty where the run has none."""
    sampled = run.frame("rollouts", ["question", "source", "reward"], pc.field("purpose") == "teacher")
    rate = run.frame("questions", ["question", "pass_rate"]).set_index("question")["pass_rate"]
    by_question = sampled.groupby(["source", "question"])["reward"].mean()
    return {
        str(teacher): accuracy_over(rewards.droplevel(0), rate) for teacher, rewards in by_question.groupby(level=0, sort=False)
    }


def accuracy_over(success: pd.Series, pass_rate: pd.Series) -> Accuracy:
    """From success under the teacher's prompt and the student's pass rate, both by question."""
    own = success.to_numpy(dtype=np.float64)
    values = np.stack([own, own - pass_rate.loc[success.index].to_numpy(dtype=np.float64)])
    mean = values.mean(1)
    low, high = influence_interval(mean, values - mean[:, None])
    low, high = np.maximum(low, [0.0, -1.0]), np.minimum(high, 1.0)
    return Accuracy(*(float(part[i]) for i in range(2) for part in (mean, low, high)))
