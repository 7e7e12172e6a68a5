"""Teacher prompts: Jinja templates and what fills them. Knows no model and no tokenizer; `models` turns messages into ids."""

from gradalign.contexts.render import (
    CONTEXTS,
    Material,
    missing_material,
    needed_material,
    render_context,
    render_question,
    render_summary_request,
    template_fingerprints,
)
from gradalign.contexts.spec import parse_teacher

__all__ = [
    "CONTEXTS",
    "Material",
    "missing_material",
    "needed_material",
    "parse_teacher",
    "render_context",
    "render_question",
    "render_summary_request",
    "template_fingerprints",
]
