"""How each model's chat template opens the assistant's turn: the student's tokens go on there, so it has to be the same for all."""

from collections.abc import Mapping, Sequence

from gradalign.models import ChatCodec, Codec, LoadedModel
from gradalign.types import GradalignError, Place, TeacherSpec

_USER, _SYSTEM, _OTHER = "?", "Be brief.", "Be kind."
Opening = tuple[int, ...] | str | None


def opening_notices(
    student: LoadedModel, others: Mapping[str, LoadedModel], teachers: Sequence[TeacherSpec]
) -> tuple[str, ...]:
    """What has to be said of the templates of a run; a teacher whose template has no system role, but needs one, is refused."""
    models = {spec.model: student if spec.model is None else others[spec.model] for spec in teachers}
    for spec in teachers:
        if spec.place == "system" and not takes_system(models[spec.model].codec):
            raise GradalignError(
                f"teacher {spec.name!r}: the chat template of {models[spec.model].language_model.name!r} has no system role; write "
                f"{spec.name.replace(':system', ':before')}"
            )
    notices = _template_notices(student)
    for model in models.values():
        if model is not student:
            notices += _template_notices(model)
    for spec in teachers:
        if models[spec.model] is not student:
            notices += _unlike(student, models[spec.model], spec.place)
    return tuple(dict.fromkeys(notices))


def _unlike(student: LoadedModel, teacher: LoadedModel, place: Place) -> list[str]:
    """That a teacher's turn opens otherwise than the student's, if it does where the context's text stands in that place."""
    ours, theirs = opening(student.codec, _USER), opening(teacher.codec, _USER, _SYSTEM if place == "system" else None)
    if not differ(ours, theirs):
        return []
    opens = f"teacher {teacher.language_model.name} opens its answer with {_shown(teacher.codec, theirs)!r}"
    student_opens = f"student {student.language_model.name} with {_shown(student.codec, ours)!r}"
    return [f"{opens}, {student_opens}: it reads the student's tokens behind another opening"]


def opening(codec: Codec, user: str, system: str | None = None) -> Opening:
    """How the chat template opens the answer: its tokens; where it opens it whether it is asked to or not, the text behind the user's;
    None where that cannot be told, since the template changes the user's text."""
    tokens = codec.boundary(user, system)
    if tokens:
        return tokens
    _, found, behind = codec.shown(codec.prompt(user, system)).rpartition(user.strip())
    return behind if found else None


def differ(ours: Opening, theirs: Opening) -> bool:
    """Are two openings known to be different?"""
    return None not in (ours, theirs) and ours != theirs


def _shown(codec: Codec, opens: Opening) -> str:
    return opens if isinstance(opens, str) else codec.shown(opens or ())


def takes_system(codec: Codec) -> bool:
    """Does the chat template show a system message? Some raise, others drop it without a word."""
    try:
        return codec.prompt(_USER, _SYSTEM) != codec.prompt(_USER, _OTHER)
    except GradalignError:
        return False


def _template_notices(model: LoadedModel) -> list[str]:
    codec, name = model.codec, model.language_model.name
    notices = []
    if isinstance(codec, ChatCodec):
        if codec.dated():
            notices.append(f"{name}: its chat template says what day it is; it is told the same one whatever the day")
        if codec.thinking and not codec.switches():
            notices.append(f"{name}: its chat template has no switch for thinking, so --thinking on changes nothing in it")
        opening = codec.shown(codec.boundary(_USER))
        if not codec.thinking and opening.rfind("<think>") > opening.rfind("</think>"):
            notices.append(f"{name}: its chat template opens the reasoning itself, though thinking is off")
    elif getattr(codec, "dated", bool)():
        notices.append(
            f"{name}: the chat template on its server says what day it is, so prompts differ from day to day; give --chat-template FILE"
        )
    return notices
