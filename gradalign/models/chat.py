"""A tokenizer with its chat template as a Codec, and the comparison of two tokenizers."""

from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

from gradalign.deadline import templates_end
from gradalign.types import GradalignError


class ChatCodec:
    """Codec over a transformers tokenizer. Thinking is switched off in templates that know `enable_thinking`."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, name: str, stop_ids: frozenset[int]):
        if not tokenizer.chat_template:
            raise GradalignError(
                f"model {name!r} has no chat template; use its instruction-tuned version, or pass --chat-template FILE"
            )
        self.tokenizer = tokenizer
        self.name = name
        self.stop_ids = stop_ids

    def prompt(self, message: str) -> tuple[int, ...]:
        chat = [{"role": "user", "content": message}]
        try:
            with templates_end():
                encoded = self.tokenizer.apply_chat_template(
                    chat, add_generation_prompt=True, tokenize=True, return_dict=True, enable_thinking=False
                )
        except Exception as error:  # a template can fail in any way
            raise GradalignError(f"the chat template of {self.name!r} failed: {error}; pass --chat-template FILE") from error
        tokens = tuple(encoded["input_ids"])  # pyright: ignore
        if not tokens:
            raise GradalignError(f"the chat template of {self.name!r} makes an empty prompt; pass --chat-template FILE")
        return tokens  # pyright: ignore[reportReturnType]

    def ids(self, text: str) -> tuple[int, ...]:
        """Token ids of a text as it stands, without special tokens added."""
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])  # pyright: ignore

    def text(self, tokens: Sequence[int] | np.ndarray) -> str:
        return str(self.tokenizer.decode([int(token) for token in tokens], skip_special_tokens=True))


def vocabulary_span(tokenizer: PreTrainedTokenizerBase) -> int:
    """One more than the largest token id: logits past it are padding."""
    return max(tokenizer.get_vocab().values()) + 1


def require_same_vocabulary(student: ChatCodec, teacher: ChatCodec) -> None:
    """Refuse a teacher whose tokenizer maps any token to another id than the student's does."""
    ours, theirs = student.tokenizer.get_vocab(), teacher.tokenizer.get_vocab()
    differing = sorted({*ours.items()} ^ {*theirs.items()}, key=lambda item: (item[1], item[0]))
    if differing:
        token, index = differing[0]
        tokens = {token for token, _ in differing}
        raise GradalignError(
            f"teacher {teacher.name!r} has another tokenizer than student {student.name!r}: {len(tokens):,} tokens differ, "
            f"first {token!r} (id {index}); choose a teacher of the student's family"
        )
