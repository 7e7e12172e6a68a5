"""Teacher prompts of a question: the material it has, each teacher's message, and what had to be left out."""

from collections.abc import Mapping
from dataclasses import dataclass

from gradalign.contexts import Material, missing_material, needed_material, privileged_text, render_context, render_question
from gradalign.models import Codec
from gradalign.pipeline.cast import Cast
from gradalign.pipeline.openings import differ, opening
from gradalign.pipeline.rollouts import Pool
from gradalign.questions import read_answer, stated
from gradalign.types import Message, Question, Skip, TeacherSpec

_NO_ROOM = "question longer than the student's window"


@dataclass(frozen=True)
class TeacherPrompt:
    """What one teacher sees before the student's tokens, and the answers that stand in what the student does not see.

    `private` is the number of tokens of the text that only the teacher sees (None where a template is the whole message), `cut` how many
    the length budget took out of it.
    """

    teacher: TeacherSpec
    message: Message
    tokens: tuple[int, ...]
    answers: tuple[str, ...] = ()
    private: int | None = None
    cut: int = 0


def student_prompt(cast: Cast, question: Question, longest: int) -> tuple[int, ...] | Skip:
    """The student's prompt, or why there is none that leaves room for `longest` tokens."""
    model = cast.student.model
    tokens, window = model.codec.prompt(render_question(question)), model.language_model.context_window
    if len(tokens) + longest <= window:
        return tokens
    detail = f"{len(tokens)} tokens of prompt and {longest} of rollout in a window of {window}"
    return Skip(question.id, None, _NO_ROOM, detail)


def teacher_prompts(
    cast: Cast, question: Question, pools: Mapping[str | None, Pool], longest: int, limit: int | None = None
) -> tuple[list[TeacherPrompt], list[Skip]]:
    """Prompts of the teachers that this question can have; the others are skipped, with the reason.

    `longest` is the number of tokens of the longest rollout that has to fit behind the prompt, `limit` the longest that a piece of
    privileged material may be.
    """
    prompts, skips = [], []
    ours = opening(cast.student.model.codec, render_question(question))
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
        prompt = _prompt(teacher, question, material, model.codec, limit)
        window = model.language_model.context_window
        if len(prompt.tokens) + longest > window:
            detail = f"{len(prompt.tokens)} tokens of prompt and {longest} of rollout in a window of {window}"
            skips.append(Skip(question.id, teacher.name, "context longer than the model's window", detail))
        elif teacher.model is None and differ(ours, opening(model.codec, prompt.message.user, prompt.message.system)):
            skips.append(Skip(question.id, teacher.name, "the chat template opens the answer otherwise than for the student"))
        else:
            prompts.append(prompt)
    return prompts, skips


def _prompt(teacher: TeacherSpec, question: Question, material: Material, codec: Codec, limit: int | None) -> TeacherPrompt:
    needed, cut = needed_material(teacher.context), 0
    material = material.cleaned()
    if limit is not None:
        material, cut = material.shortened(needed, limit, codec.ids, codec.shown)
    message = render_context(teacher.context, question, material, teacher.place)
    private = privileged_text(teacher.context, question, material)
    length = None if private is None else len(codec.ids(private))
    tokens = codec.prompt(message.user, message.system)
    return TeacherPrompt(teacher, message, tokens, _stated(question, teacher, material), length, cut)


def _stated(question: Question, teacher: TeacherSpec, material: Material) -> tuple[str, ...]:
    """Answers, each once, that a grader reads in the material that the teacher's context shows."""
    shown = {name: getattr(material, name) for name in needed_material(teacher.context)}
    said = [text if name == "answer" else stated(question, text or "") for name, text in shown.items()]
    read = [None if text is None else read_answer(question, text) for text in said]
    return tuple(dict.fromkeys(answer for answer in read if answer is not None))


def _material(question: Question, pool: Pool | None) -> Material:
    sampled = {} if pool is None else {"correct": pool.first("right"), "wrong": pool.first("wrong"), "summary": pool.summary}
    return Material(**sampled, solution=question.solution, answer=question.answer)
