"""Question sets and graders. Knows no model: texts in, questions and rewards out."""

from gradalign.questions.grading import grade, read_answer, stated_answer
from gradalign.questions.loading import KINDS, load_questions

__all__ = ["KINDS", "grade", "load_questions", "read_answer", "stated_answer"]
