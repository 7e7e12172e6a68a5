"""What broke while a question was scored, told so that the run can go on without it."""

from collections.abc import Iterator
from contextlib import contextmanager

from gradalign.types import GradalignError, Question


class QuestionFault(Exception):
    """Something broke while one question was scored: its id, and what was said."""

    def __init__(self, question: str, reason: str):
        super().__init__(question, reason)
        self.question, self.reason = question, reason


@contextmanager
def blaming(question: Question) -> Iterator[None]:
    """Name the question where something breaks that the user cannot mend."""
    try:
        yield
    except GradalignError:
        raise
    except Exception as error:
        raise QuestionFault(question.id, described(error)) from error


def described(error: BaseException) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
