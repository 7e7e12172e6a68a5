"""Teacher prompts: Jinja templates and what fills them. Knows no model and no tokenizer; `models` turns messages into ids."""

from gradalign.contexts.material import Material, spoken
from gradalign.contexts.render import (
    missing_material,
    needed_material,
    privileged_text,
    render_context,
    render_question,
    render_summary_request,
)
from gradalign.contexts.sources import CONTEXTS, template_fingerprints, template_text
from gradalign.contexts.spec import PLACES, parse_teacher

__all__ = [
    "CONTEXTS",
    "PLACES",
    "Material",
    "missing_material",
    "needed_material",
    "parse_teacher",
    "privileged_text",
    "render_context",
    "render_question",
    "render_summary_request",
    "spoken",
    "template_fingerprints",
    "template_text",
]
