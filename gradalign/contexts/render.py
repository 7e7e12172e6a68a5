"""Render the text of a user message: the question alone, or with the privileged context that only the teacher sees."""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import cache, lru_cache
from importlib import resources
from pathlib import Path

from jinja2 import StrictUndefined, Template, TemplateError, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from gradalign.deadline import templates_end
from gradalign.types import GradalignError, Question, TeacherSpec

CONTEXTS = ("none", "correct_demo", "correct_wrong_demo", "wrong_demo", "summary", "reference", "answer")

INSTRUCTIONS = {
    "numeric": 'Reason step by step, then end with "Answer:" and the number.',
    "boolean": 'Reason step by step, then end with "Answer:" and yes or no.',
    "choice": 'Reason step by step, then end with "Answer:" and the letter.',
    "math": "Reason step by step, then end with the answer in \\boxed{}.",
    "exact": 'Reason step by step, then end with "Answer:" and the answer.',
}

_THINKING = re.compile(r"^\s*<think>.*?</think>\s*", re.DOTALL)


@dataclass(frozen=True)
class Material:
    """What a context may draw on for one question; None is what the question lacks."""

    correct: str | None = None
    wrong: str | None = None
    summary: str | None = None
    solution: str | None = None
    answer: str | None = None


_LACKS = {
    "correct": "no correct rollout",
    "wrong": "no wrong rollout",
    "summary": "no summary of a correct rollout",
    "solution": "no reference solution",
    "answer": "no answer",
}
_ENVIRONMENT = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=False, autoescape=False)


def render_question(question: Question) -> str:
    """The prompt the student sees: the question, its options, and how to end."""
    source = _template("none")
    return _render(
        source,
        "none",
        question=question.text,
        choices=question.choices,
        instruction=INSTRUCTIONS.get(question.kind, INSTRUCTIONS["exact"]),
    )


def render_context(context: str, question: Question, material: Material) -> str:
    """The prompt the teacher sees: the student's, with what `context` adds. Raises where material is missing."""
    if context == "none":
        return render_question(question)
    lack = missing_material(context, material)
    if lack:
        raise GradalignError(f"context {context!r} cannot be built for question {question.id!r}: {lack}")
    return _render(_template(context), context, prompt=render_question(question), **_cleaned(material))


def render_summary_request(question: Question, correct: str) -> str:
    """The prompt that asks a model to condense a correct solution, for `ctx:summary`."""
    return _render(_template("summarise"), "summarise", prompt=render_question(question), correct=_clean(correct))


def missing_material(context: str, material: Material) -> str | None:
    """Why `context` cannot be built from `material`, or None if it can."""
    for name in needed_material(context):
        if getattr(material, name) is None:
            return _LACKS[name]
    return None


def needed_material(context: str) -> tuple[str, ...]:
    """Names of the material fields that a context's template uses."""
    if context == "none":
        return ()
    try:
        used = meta.find_undeclared_variables(_ENVIRONMENT.parse(_template(context)))
    except (TemplateError, RecursionError) as error:
        raise GradalignError(f"template {context!r} is not valid Jinja: {error}; mend the template") from error
    known = {field.name for field in fields(Material)}
    unknown = sorted(used - known - {"prompt"})
    if unknown:
        raise GradalignError(f"template {context!r} uses {unknown[0]!r}, which is none of prompt, {', '.join(sorted(known))}")
    return tuple(sorted(used & known))


def template_fingerprints(teachers: Iterable[TeacherSpec]) -> dict[str, str]:
    """A hash of the text of every template of the user's own, by path."""
    paths = sorted({teacher.context for teacher in teachers} - {*CONTEXTS})
    return {path: hashlib.blake2b(_template(path).encode(), digest_size=16).hexdigest() for path in paths}


def _template(context: str) -> str:
    if context in CONTEXTS or context == "summarise":
        return _built_in(context)
    try:
        return Path(context).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise GradalignError(f"template {context} cannot be read ({error}); give a text file in UTF-8") from error


@cache
def _built_in(context: str) -> str:
    return (resources.files("gradalign.contexts") / "templates" / f"{context}.j2").read_text(encoding="utf-8")


def _render(source: str, name: str, **variables: object) -> str:
    try:
        with templates_end():
            return _compiled(source).render(**variables)
    except Exception as error:  # a template of the user's own can fail in any way
        raise GradalignError(f"template {name!r} failed: {error}; mend the template") from error


@lru_cache(maxsize=64)
def _compiled(source: str) -> Template:
    return _ENVIRONMENT.from_string(source)


def _cleaned(material: Material) -> dict[str, str | None]:
    values = {field.name: getattr(material, field.name) for field in fields(Material)}
    return {name: None if text is None else _clean(text) for name, text in values.items()}


def _clean(text: str) -> str:
    """A demonstration without the hidden reasoning of a thinking model and without surrounding blanks."""
    return _THINKING.sub("", text).strip()
