"""Graders: from the text of a rollout to a reward. The text is untrusted: it is only ever compared, never run.

A kind of answer has a reader: from what a text states as its answer (`stated`) to the form in which answers are compared; what counts as
the question's answer reads the same as it. A text that states nothing, or nothing that can be read, is ungradable: its own outcome, with
a reason and reward 0.
"""

from collections.abc import Callable
from dataclasses import replace

from gradalign.questions.functions import graded_by_function
from gradalign.questions.numbers import Quantity, equal_quantities, quantity
from gradalign.questions.stated import Ungradable, stated_answer
from gradalign.questions.words import read_boolean, read_choice, read_exact
from gradalign.types import AnswerKind, GradalignError, Grade, Question

KINDS = ("numeric", "boolean", "choice", "exact", "math", "regex")  # not function: a question file must not name code to run


def grade(question: Question, text: str) -> Grade:
    """Reward 1 if the answer read from `text` equals the question's, else 0; of a user's function, what it says."""
    said = stated_answer(text)
    try:
        if question.kind == "function":
            return graded_by_function(question, text, None if said is None else read_answer(question, said))
        if said is None:
            raise Ungradable("no answer is stated")
        read = _READERS[question.kind](said, question)
    except Ungradable as why:
        return Grade(0.0, "ungradable", said, str(why))
    right = read == _form(question) if question.kind != "regex" else _matched(said, question)
    return Grade(1.0 if right else 0.0, "right" if right else "wrong", read)


def read_answer(question: Question, said: str) -> str | None:
    """The answer that `said` states, in the form in which answers of the question's kind are compared; None if there is none."""
    try:
        return _READERS[question.kind](said, question)
    except Ungradable:
        return None


def answer_fault(question: Question) -> str | None:
    """Why nothing can be graded against the question's own answer; None if it can."""
    if question.kind == "regex":
        from gradalign.questions.patterns import pattern_fault

        return pattern_fault(question.answer)
    if read_answer(question, question.answer) is None:
        return f"the answer {question.answer!r} is not one that a {question.kind} grader can read"
    return None


def regraded(question: Question, grader: str) -> Question:
    """The question under another grader: a kind, or the user's function as `MODULE:FUNCTION`."""
    own = grader not in KINDS
    changed = replace(question, kind="function" if own else grader, grader=grader if own else None)
    fault = answer_fault(changed)
    if fault:
        raise GradalignError(f"question {question.id!r}: {fault}; choose another --grader")
    return changed


def _form(question: Question) -> str:
    """The question's own answer in the form that is compared."""
    return _READERS[question.kind](question.answer, question)


def _read_number(said: str, question: Question) -> str:
    found = quantity(said)
    answer = found if said == question.answer else _answer_quantity(question.answer)
    return str(answer if answer is not None and equal_quantities(answer, found) else found)


def _answer_quantity(answer: str) -> Quantity | None:
    try:
        return quantity(answer)
    except Ungradable:
        return None


def _read_math(said: str, question: Question) -> str:
    from gradalign.questions.mathematics import canonical_answer, read_math

    return canonical_answer(question.answer) if said == question.answer else read_math(said, question.answer)


def _read_pattern(said: str, question: Question) -> str:
    """Whatever matches reads as the pattern, so that all texts that count as the answer are alike."""
    return question.answer if said == question.answer or _matched(said, question) else read_exact(said)


def _matched(said: str, question: Question) -> bool:
    from gradalign.questions.patterns import matches

    return matches(question.answer, said)


_READERS: dict[AnswerKind, Callable[[str, Question], str]] = {
    "numeric": _read_number,
    "boolean": lambda said, question: read_boolean(said),
    "choice": lambda said, question: read_choice(said, question.choices),
    "exact": lambda said, question: read_exact(said),
    "math": _read_math,
    "regex": _read_pattern,
    "function": lambda said, question: read_exact(said),
}
