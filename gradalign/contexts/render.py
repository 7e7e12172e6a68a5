"""What models are asked: the question alone, or with the privileged text that only a teacher sees, and where that goes."""

from dataclasses import fields

from gradalign.contexts.material import Material, spoken
from gradalign.contexts.sources import names_used, render
from gradalign.types import GradalignError, Message, Place, Question

_EXACT = 'Reason step by step, then end with "Answer:" and the answer.'
INSTRUCTIONS = {
    "numeric": 'Reason step by step, then end with "Answer:" and the number.',
    "boolean": 'Reason step by step, then end with "Answer:" and yes or no.',
    "choice": 'Reason step by step, then end with "Answer:" and the letter.',
    "exact": _EXACT,
    "math": "Reason step by step, then put the final answer within \\boxed{}.",
    "regex": _EXACT,
    "function": _EXACT,
}
_AFTER = "Now solve it yourself."
_PROMPT = "prompt"


def render_question(question: Question) -> str:
    """The prompt the student sees: the question, its options, and how to end."""
    instruction = INSTRUCTIONS.get(question.kind, _EXACT) if question.instruction is None else question.instruction
    return render("none", {"question": question.text, "choices": question.choices, "instruction": instruction}).rstrip()


def render_context(context: str, question: Question, material: Material, place: Place = "after") -> Message:
    """What the teacher is asked: what the student is, with what `context` adds at `place`. Raises where material is missing.

    A template that uses `prompt` is the whole user message, and knows no place.
    """
    prompt = render_question(question)
    if context == "none":
        return Message(prompt)
    private = privileged_text(context, question, material)
    if private is None:
        return Message(_filled(context, question, material, prompt))
    if place == "system":
        return Message(prompt, private)
    if place == "before":
        return Message(f"{private}\n\n{prompt}")
    return Message(f"{prompt}\n\n{private}\n\n{_AFTER}")


def privileged_text(context: str, question: Question, material: Material) -> str | None:
    """What `context` adds to the student's prompt; None where its template is the whole message."""
    if context == "none":
        return ""
    return None if is_whole(context) else _filled(context, question, material)


def render_summary_request(question: Question, correct: str) -> str:
    """The prompt that asks a model to condense a correct solution, for `ctx:summary`."""
    return render("summarise", {_PROMPT: render_question(question), "correct": spoken(correct)})


def missing_material(context: str, material: Material) -> str | None:
    """Why `context` cannot be built from `material`, or None if it can."""
    return material.cleaned().lack(needed_material(context))


def needed_material(context: str) -> tuple[str, ...]:
    """Names of the material fields that a context's template uses."""
    if context == "none":
        return ()
    used = names_used(context)
    known = {field.name for field in fields(Material)}
    unknown = sorted(used - known - {_PROMPT})
    if unknown:
        raise GradalignError(f"template {context!r} uses {unknown[0]!r}, which is none of prompt, {', '.join(sorted(known))}")
    return tuple(sorted(used & known))


def is_whole(context: str) -> bool:
    """Is a context's template the whole user message, since it uses `prompt`?"""
    return context != "none" and _PROMPT in names_used(context)


def _filled(context: str, question: Question, material: Material, prompt: str | None = None) -> str:
    material = material.cleaned()
    lack = material.lack(needed_material(context))
    if lack:
        raise GradalignError(f"context {context!r} cannot be built for question {question.id!r}: {lack}")
    return render(context, vars(material) | ({} if prompt is None else {_PROMPT: prompt}))
