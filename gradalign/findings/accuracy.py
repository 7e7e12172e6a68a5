"""How often each teacher is right when it answers itself, and the student alone on the same questions."""

# pandas types its results too widely for these rules.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow.compute as pc

from gradalign.inference import influence_interval
from gradalign.store import Run
from gradalign.success import jeffreys_interval


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
    above = own - pass_rate.loc[success.index].to_numpy(dtype=np.float64)
    lift = above.mean()
    low, high = influence_interval(np.array([lift]), (above - lift)[None])
    return Accuracy(*share_with_interval(own), float(lift), float(max(low[0], -1.0)), float(min(high[0], 1.0)))


def share_with_interval(values: np.ndarray) -> tuple[float, float, float]:
    """A mean of shares over questions with its 95% interval inside [0, 1]; where all are 0 or all 1 that of as many single trials."""
    mean = float(values.mean())
    if len({*values.tolist()}) == 1 and mean in (0.0, 1.0):
        low, high = jeffreys_interval(np.array(len(values)), np.array(mean * len(values)))
        return mean, float(low), float(high)
    low, high = influence_interval(np.array([mean]), (values - mean)[None])
    return mean, float(max(low[0], 0.0)), float(min(high[0], 1.0))
