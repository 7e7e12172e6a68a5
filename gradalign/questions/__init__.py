"""Question sets and graders. Knows no model: texts in, questions and rewards out."""

from gradalign.questions.columns import parse_columns
from gradalign.questions.grading import KINDS, grade, read_answer, regraded
from gradalign.questions.loading import load_questions
from gradalign.questions.sets import SETS
from gradalign.questions.stated import stated_answer

__all__ = ["KINDS", "SETS", "grade", "load_questions", "parse_columns", "read_answer", "regraded", "stated_answer"]
