"""The user's own grader: a function that the run's settings name, `--grader MODULE:FUNCTION`. A question file cannot name one."""

from functools import lru_cache
from numbers import Real
from typing import Any

import numpy as np

from gradalign.plugins import imported
from gradalign.questions.stated import Ungradable
from gradalign.types import GradalignError, Grade, Question


def graded_by_function(question: Question, text: str, answer: str | None) -> Grade:
    """What the function says of the whole text. `answer` is what the text states, for where answers are compared.

    A number or truth value is a reward in [0, 1], right where it is 1; None is ungradable; a `Grade` is kept as it is.
    """
    if question.grader is None:
        raise GradalignError(
            f"question {question.id!r} is graded by a function, and none is named; give --grader MODULE:FUNCTION"
        )
    function = _function(question.grader)
    try:
        said = function(question, text)
    except Exception as error:  # the user's code can fail in any way
        what = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise GradalignError(
            f"grader {question.grader} failed at question {question.id!r} ({what}); mend the function"
        ) from error
    if said is None:
        raise Ungradable("the function gave no reward")
    if isinstance(said, Grade):
        return _kept(question, said)
    if not _is_reward(said):
        _refuse(question, said)
    reward = float(said)
    return Grade(reward, "right" if reward == 1 else "wrong", answer)


@lru_cache(maxsize=8)
def _function(spec: str) -> Any:
    function = imported(spec)
    if function is None:
        raise GradalignError(f"{spec!r} names no function; give --grader MODULE:FUNCTION")
    return function


def _kept(question: Question, grade: Grade) -> Grade:
    texts = all(value is None or isinstance(value, str) for value in (grade.answer, grade.reason))
    outcome = grade.outcome in ("right", "wrong", "ungradable")
    if not (texts and outcome and _is_reward(grade.reward)) or (grade.outcome == "ungradable" and grade.reward):
        _refuse(question, grade)
    return Grade(float(grade.reward), grade.outcome, grade.answer, grade.reason)


def _is_reward(value: Any) -> bool:
    return isinstance(value, Real | np.bool_) and 0 <= float(value) <= 1


def _refuse(question: Question, said: object) -> None:
    shown = " ".join(repr(said).split())[:80]
    raise GradalignError(
        f"grader {question.grader} gave {shown} at question {question.id!r}; a grader gives a reward from 0 to 1, a truth value, "
        "None for ungradable, or a gradalign.types.Grade"
    )
