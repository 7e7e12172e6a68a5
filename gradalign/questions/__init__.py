"""Question sets and graders. Knows no model: texts in, questions and rewards out."""

from gradalign.questions.columns import KINDS, parse_columns
from gradalign.questions.grading import grade, read_answer, stated_answer
from gradalign.questions.loading import load_questions
from gradalign.questions.sets import SETS

__all__ = ["KINDS", "SETS", "grade", "load_questions", "parse_columns", "read_answer", "stated_answer"]
