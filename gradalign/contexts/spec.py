"""Teachers as the user writes them: `ctx:NAME`, `model:NAME`, `model:NAME+ctx:NAME`, `ctx:NAME@model:NAME`, `server:URL#MODEL` in the place
of `model:NAME`, and `:system`, `:before` or `:after` behind the name of a context."""

import difflib
from pathlib import Path
from typing import get_args

from gradalign.contexts.render import is_whole, needed_material
from gradalign.contexts.sources import CONTEXTS
from gradalign.endpoint import PREFIX, parse_address, require_no_secret
from gradalign.types import GradalignError, Place, TeacherSpec

PLACES: tuple[Place, ...] = get_args(Place)
_FORMS = (
    "ctx:NAME, model:NAME, model:NAME+ctx:NAME or ctx:NAME@model:NAME, with server:URL#MODEL for model:NAME where it is served"
)
_FROM_A_MODEL = {"correct", "wrong", "summary"}


def parse_teacher(spec: str) -> TeacherSpec:
    """The teacher that `spec` names; a context is one of the built-in ones or the path of a Jinja template."""
    require_no_secret(spec, *(("a served model", "GRADALIGN_API_KEY") if PREFIX in spec else ("a model", "HF_TOKEN")))
    if spec.startswith(("model:", PREFIX)):
        named, separator, context = spec.partition("+ctx:")
        model = _model(named)
        if not model or (separator and not context):
            raise GradalignError(f"teacher {spec!r} names no {'context' if model else 'model'}; write {_FORMS}")
        known, place = _placed(context or "none", spec)
        return TeacherSpec(spec, known, model, place=place)
    if spec.startswith("ctx:"):
        context, separator, named = _sourced(spec.removeprefix("ctx:"))
        source = _model(named)
        if separator and not source:
            raise GradalignError(f"teacher {spec!r} names no model after the @; write {_FORMS}")
        known, place = _placed(context, spec)
        if source and not _FROM_A_MODEL & {*needed_material(known)}:
            raise GradalignError(f"teacher {spec!r}: context {context!r} takes nothing from a model; leave out @{named}")
        return TeacherSpec(spec, known, None, source or None, place)
    raise GradalignError(f"teacher {spec!r} is not of the form {_FORMS}")


def _sourced(text: str) -> tuple[str, str, str]:
    """A context, an @ if there is one before a model, and that model."""
    found = ((*text.partition(f"@{kind}"), kind) for kind in ("model:", PREFIX))
    context, separator, name, kind = next((parts for parts in found if parts[1]), (text, "", "", ""))
    return context, separator, kind + name


def _model(named: str) -> str:
    """The name of a model: without `model:`, but with `server:`."""
    name = named.removeprefix("model:")
    if name.startswith(PREFIX):
        parse_address(name)
    return name


def _placed(text: str, spec: str) -> tuple[str, Place]:
    """A context that there is, and where its text goes."""
    context, separator, word = text.rpartition(":")
    place: Place | None = next((known for known in PLACES if separator and word == known), None)
    if place is None:
        if separator and (context in CONTEXTS or _is_file(context)):
            raise GradalignError(f"teacher {spec!r}: no such place {word!r}; choose from {', '.join(PLACES)}")
        return _known(text, spec), "after"
    _known(context, spec)
    if context == "none":
        raise GradalignError(f"teacher {spec!r}: context 'none' adds nothing that could be placed; leave out :{word}")
    if is_whole(context):
        raise GradalignError(
            f"teacher {spec!r}: template {context} uses prompt, so it is the whole message; leave out :{word}, or take prompt out of it"
        )
    return context, place


def _is_file(path: str) -> bool:
    try:
        return Path(path).is_file()
    except (OSError, ValueError):
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
