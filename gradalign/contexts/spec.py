"""Teachers as the user writes them: `ctx:NAME`, `model:NAME`, `model:NAME+ctx:NAME`, `ctx:NAME@model:NAME`."""

import difflib
from pathlib import Path

from gradalign.contexts.render import CONTEXTS, needed_material
from gradalign.types import GradalignError, TeacherSpec

_FORMS = "ctx:NAME, model:NAME, model:NAME+ctx:NAME or ctx:NAME@model:NAME"
_FROM_A_MODEL = {"correct", "wrong", "summary"}


def parse_teacher(spec: str) -> TeacherSpec:
    """The teacher that `spec` names; a context is one of the built-in ones or the path of a Jinja template."""
    if spec.startswith("model:"):
        model, separator, context = spec.removeprefix("model:").partition("+ctx:")
        if not model or (separator and not context):
            raise GradalignError(f"teacher {spec!r} names no {'context' if model else 'model'}; write {_FORMS}")
        return TeacherSpec(spec, _known(context or "none", spec), model)
    if spec.startswith("ctx:"):
        context, separator, source = spec.removeprefix("ctx:").partition("@model:")
        if separator and not source:
            raise GradalignError(f"teacher {spec!r} names no model after the @; write {_FORMS}")
        known = _known(context, spec)
        if source and not _FROM_A_MODEL & {*needed_material(known)}:
            raise GradalignError(f"teacher {spec!r}: context {context!r} takes nothing from a model; leave out @model:{source}")
        return TeacherSpec(spec, known, None, source or None)
    raise GradalignError(f"teacher {spec!r} is not of the form {_FORMS}")


def _is_file(path: str) -> bool:
    try:
        return Path(path).is_file()
    except OSError:
        return False


def _known(context: str, spec: str) -> str:
    if context in CONTEXTS:
        return context
    if _is_file(context):
        needed_material(context)
        return context
    close = difflib.get_close_matches(context, CONTEXTS, n=1)
    hint = f"did you mean {close[0]}?" if close else f"choose from {', '.join(CONTEXTS)}, or give the path of a Jinja template"
    raise GradalignError(f"teacher {spec!r}: no such context {context!r}; {hint}")
