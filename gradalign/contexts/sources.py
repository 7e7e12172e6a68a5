"""Templates by name: those of this package, rendered here, and files of users, rendered apart. Knows nothing of questions."""

import hashlib
from collections.abc import Iterable, Mapping
from functools import cache, lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from gradalign.contexts import sandbox
from gradalign.contexts.apart import APART, TemplateFault
from gradalign.types import GradalignError, TeacherSpec

CONTEXTS = ("none", "correct_demo", "correct_wrong_demo", "wrong_demo", "summary", "reference", "answer")
_BUILT_IN = (*CONTEXTS, "summarise")


def template_text(name: str) -> str:
    """The text of a built-in template, or of the file of that name."""
    if name in _BUILT_IN:
        return _built_in(name)
    try:
        with Path(name).open(encoding="utf-8") as file:
            text = file.read(sandbox.LONGEST + 1)
    except (OSError, ValueError) as error:
        raise GradalignError(f"template {name} cannot be read ({error}); give a text file in UTF-8") from error
    if len(text) > sandbox.LONGEST:
        raise GradalignError(f"template {name} is longer than {sandbox.LONGEST:,} characters; give a shorter one")
    return text


def names_used(name: str) -> frozenset[str]:
    """Variables that a template uses."""
    try:
        return _names_used(template_text(name), name in _BUILT_IN)
    except (TemplateFault, TemplateError) as error:
        raise GradalignError(f"template {name!r} is not valid Jinja: {error}; mend the template") from error


def render(name: str, variables: Mapping[str, Any]) -> str:
    """The text that a template makes of variables."""
    text = template_text(name)
    try:
        return sandbox.render(text, variables) if name in _BUILT_IN else APART.ask(text, variables)
    except OverflowError as error:
        raise GradalignError(f"context {name!r}: {error}; leave out the question, or give --context-tokens") from error
    except TemplateFault as error:
        raise GradalignError(f"template {name!r} failed: {error}; mend the template") from error


def template_fingerprints(teachers: Iterable[TeacherSpec]) -> dict[str, str]:
    """A hash of the text of every template of the user's own, by path."""
    paths = sorted({teacher.context for teacher in teachers} - {*CONTEXTS})
    return {path: hashlib.blake2b(template_text(path).encode(), digest_size=16).hexdigest() for path in paths}


@lru_cache(maxsize=256)
def _names_used(text: str, trusted: bool) -> frozenset[str]:
    return frozenset(sandbox.names_used(text) if trusted else APART.ask(text, None))


@cache
def _built_in(name: str) -> str:
    return (resources.files("gradalign.contexts") / "templates" / f"{name}.j2").read_text(encoding="utf-8")
