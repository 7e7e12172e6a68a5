"""How far the vocabularies of a student and its teachers go together, and models held to it. Knows token ids and logits, no forward passes.

Logits are padded to different widths over the same tokenizer, and later members of a family add tokens at the end (Qwen3's `<think>` after
Qwen2.5's). All members of a run sample from and are compared on the tokens that all of them have.
"""

from collections import Counter
from collections.abc import Sequence

from gradalign.deadline import templates_end
from gradalign.models.chat import ChatCodec, require_same_vocabulary
from gradalign.models.protocol import LoadedModel
from gradalign.types import GradalignError

_OPEN, _CLOSE = "<think>", "</think>"


def shared_span(student: LoadedModel, teacher: LoadedModel) -> int:
    """How many token ids a student and a teacher share; refused where a turn could not be ended within them."""
    ours, theirs = student.language_model, teacher.language_model
    span = min(ours.vocabulary_size, theirs.vocabulary_size)
    if not (isinstance(student.codec, ChatCodec) and isinstance(teacher.codec, ChatCodec)):
        return span
    span = min(span, require_same_vocabulary(student.codec, teacher.codec))
    for codec in (student.codec, teacher.codec):
        lost = sorted(token for token in codec.stop_ids | turn_tokens(codec) if token >= span)
        if lost:
            raise GradalignError(
                f"teacher {theirs.name!r} and student {ours.name!r} share the first {span:,} tokens alone, and {codec.name!r} cannot end "
                f"a turn without {codec.tokenizer.convert_ids_to_tokens(lost[0])!r} (id {lost[0]}); choose a teacher that has it"
            )
    return span


def settle_span(members: Sequence[LoadedModel], span: int) -> list[str]:
    """Hold every member to the first `span` tokens; what that leaves out of their own is said."""
    left = [
        f"{len(more):,} of {member.language_model.name} (first {more[0][1]!r}, id {more[0][0]})"
        for member in members
        if (more := _beyond(member, span))
    ]
    for member in members:
        member.language_model.vocabulary_size = min(span, member.language_model.vocabulary_size)
    said = f"student and teachers have {span:,} tokens in common; neither sampled nor scored are {' and '.join(left)}"
    return [said] if left else []


def _beyond(member: LoadedModel, span: int) -> list[tuple[int, str]]:
    """Tokens of a member past the span that it has logits for, by id."""
    if not isinstance(member.codec, ChatCodec) or member.language_model.vocabulary_size <= span:
        return []
    vocabulary = member.codec.tokenizer.get_vocab()
    return sorted(
        (index, token) for token, index in vocabulary.items() if span <= index < member.language_model.vocabulary_size
    )


def turn_tokens(codec: ChatCodec) -> set[int]:
    """Tokens that a model has to write itself around an answer: in the template of a finished turn, and not yet in the prompt."""
    prompt = codec.prompt("?")
    chat = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]
    try:
        with templates_end():
            whole = codec.tokenizer.apply_chat_template(chat, tokenize=True, return_dict=True)["input_ids"]  # pyright: ignore
    except Exception:  # a template may refuse a finished turn, or never end with one, and still make prompts
        whole = []
    vocabulary = codec.tokenizer.get_vocab()
    thinking = vocabulary.get(_OPEN) in prompt and vocabulary.get(_CLOSE) not in prompt
    return {*(Counter(whole) - Counter(prompt))} | ({vocabulary[_CLOSE]} if thinking and _CLOSE in vocabulary else set())  # pyright: ignore
