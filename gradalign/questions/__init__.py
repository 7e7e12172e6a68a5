"""Question sets and graders. Knows no model: texts in, questions and rewards out."""

from gradalign.questions.grading import KINDS, grade, read_answer, regraded
from gradalign.questions.loading import load_questions
from gradalign.questions.stated import stated_answer

__all__ = ["KINDS", "grade", "load_questions", "read_answer", "regraded", "stated_answer"]
