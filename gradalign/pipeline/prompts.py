"""Teacher prompts of a question: the material it has, each teacher's message, and what had to be left out."""

from collections.abc import Mapping
from dataclasses import dataclass

from gradalign.contexts import Material, missing_material, needed_material, render_context
from gradalign.pipeline.cast import Cast
from gradalign.pipeline.rollouts import Pool
from gradalign.questions import read_answer, stated_answer
from gradalign.types import Question, Skip, TeacherSpec


@dataclass(frozen=True)
class TeacherPrompt:
    """What one teacher sees before the student's tokens, and the answers that stand in what the student does not see."""

    teacher: TeacherSpec
    message: str
    tokens: tuple[int, ...]
    answers: tuple[str, ...] = ()


def teacher_prompts(
    cast: Cast, question: Question, pools: Mapping[str | None, Pool], longest: int
) -> tuple[list[TeacherPrompt], list[Skip]]:
    """Prompts of the teachers that this question can have; the others are skipped, with the reason.

    `longest` is the number of tokens of the longest rollout that has to fit behind the prompt.
    """
    prompts, skips = [], []
    for teacher in cast.teachers:
        pool = pools.get(teacher.source)
        if pool is not None and not pool.rollouts:
            skips.append(Skip(question.id, teacher.name, "question longer than the demonstrating model's window"))
            continue
        material = _material(question, pool)
        lack = missing_material(teacher.context, material)
        if lack:
            skips.append(Skip(question.id, teacher.name, lack))
            continue
        model = cast.member(teacher.model).model
        message = render_context(teacher.context, question, material)
        tokens = model.codec.prompt(message)
        window = model.language_model.context_window
        if len(tokens) + longest > window:
            detail = f"{len(tokens)} tokens of prompt and {longest} of rollout in a window of {window}"
            skips.append(Skip(question.id, teacher.name, "context longer than the model's window", detail))
            continue
        prompts.append(TeacherPrompt(teacher, message, tokens, _stated(question, teacher, material)))
    return prompts, skips


def _stated(question: Question, teacher: TeacherSpec, material: Material) -> tuple[str, ...]:
    """Answers, each once, that a grader reads in the material that the teacher's context shows."""
    shown = {name: getattr(material, name) for name in needed_material(teacher.context)}
    said = [text if name == "answer" else stated_answer(text or "") for name, text in shown.items()]
    read = [None if text is None else read_answer(question, text) for text in said]
    return tuple(dict.fromkeys(answer for answer in read if answer is not None))


def _material(question: Question, pool: Pool | None) -> Material:
    sampled = {} if pool is None else {"correct": pool.first("right"), "wrong": pool.first("wrong"), "summary": pool.summary}
    return Material(**sampled, solution=question.solution, answer=question.answer)
