"""A tokenizer with its chat template as a Codec, and the comparison of two tokenizers."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from gradalign.deadline import templates_end
from gradalign.types import GradalignError

DATE = datetime(2024, 7, 26)  # what Llama's own templates say where they are told no date
_OTHER_DATE = datetime(2001, 2, 3)
_RECENT = 1024  # chats whose tokens are kept: a question's prompts are asked for several times


class ChatCodec:
    """Codec over a transformers tokenizer.

    `thinking` goes to templates that know `enable_thinking` or `thinking`. Templates that say what day it is are told DATE, whatever the
    day, so that a run that goes on tomorrow has the prompts of today.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, name: str, stop_ids: frozenset[int], thinking: bool = False):
        if not tokenizer.chat_template:
            raise GradalignError(
                f"model {name!r} has no chat template; use its instruction-tuned version, or pass --chat-template FILE"
            )
        self.tokenizer = tokenizer
        self.name = name
        self.stop_ids = stop_ids
        self.thinking = thinking
        self._alone: dict[int, str] = {}  # texts of single tokens, which every rollout is cut into
        self._recent: dict[tuple[str, str | None, bool, datetime], tuple[int, ...]] = {}

    def prompt(self, user: str, system: str | None = None) -> tuple[int, ...]:
        tokens = self._encoded(user, system)
        if not tokens:
            raise GradalignError(f"the chat template of {self.name!r} makes an empty prompt; pass --chat-template FILE")
        return tokens

    def boundary(self, user: str, system: str | None = None) -> tuple[int, ...]:
        return beyond(self.prompt(user, system), self._encoded(user, system, opens=False))

    def ids(self, text: str) -> tuple[int, ...]:
        """Token ids of a text as it stands, without special tokens added."""
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])  # pyright: ignore

    def text(self, tokens: Sequence[int] | np.ndarray) -> str:
        if len(tokens) != 1:
            return self._decoded(tokens)
        token = int(tokens[0])
        if token not in self._alone:
            self._alone[token] = self._decoded(tokens)
        return self._alone[token]

    def shown(self, tokens: Sequence[int] | np.ndarray) -> str:
        return str(self.tokenizer.decode([int(token) for token in tokens], clean_up_tokenization_spaces=False))

    def dated(self) -> bool:
        """Does the template say what day it is?"""
        return self._encoded("?", None) != self._encoded("?", None, date=_OTHER_DATE)

    def switches(self) -> bool:
        """Does it make a difference to the template whether the model is to think?"""
        other = ChatCodec(self.tokenizer, self.name, self.stop_ids, not self.thinking)
        return self.prompt("?") != other.prompt("?")

    def _decoded(self, tokens: Sequence[int] | np.ndarray) -> str:
        return str(self.tokenizer.decode([int(token) for token in tokens], skip_special_tokens=True))

    def _encoded(self, user: str, system: str | None, opens: bool = True, date: datetime = DATE) -> tuple[int, ...]:
        """Token ids of the chat; with `opens` also those that open the assistant's turn."""
        chat = (user, system, opens, date)
        if chat not in self._recent:
            if len(self._recent) >= _RECENT:
                self._recent.clear()
            self._recent[chat] = self._templated(*chat)
        return self._recent[chat]

    def _templated(self, user: str, system: str | None, opens: bool, date: datetime) -> tuple[int, ...]:
        try:
            with templates_end():
                encoded = self.tokenizer.apply_chat_template(
                    messages(user, system),
                    add_generation_prompt=opens,
                    tokenize=True,
                    return_dict=True,
                    strftime_now=date.strftime,
                    **template_settings(self.thinking, date),
                )
        except Exception as error:  # a template can fail in any way
            raise GradalignError(f"the chat template of {self.name!r} failed: {error}; pass --chat-template FILE") from error
        return tuple(encoded["input_ids"])  # pyright: ignore


def messages(user: str, system: str | None) -> list[dict[str, str]]:
    """A chat as templates and servers take it."""
    return ([] if system is None else [{"role": "system", "content": system}]) + [{"role": "user", "content": user}]


def template_settings(thinking: bool, date: datetime = DATE) -> dict[str, Any]:
    """What chat templates are told beside the messages; those that know a name use it."""
    return {"enable_thinking": thinking, "thinking": thinking, "date_string": date.strftime("%d %b %Y")}


def beyond(prompt: Sequence[int], start: Sequence[int]) -> tuple[int, ...]:
    """What `prompt` has beyond its longest common beginning with `start`."""
    shared = next((i for i, (a, b) in enumerate(zip(prompt, start, strict=False)) if a != b), min(len(prompt), len(start)))
    return tuple(prompt[shared:])


def vocabulary_span(tokenizer: PreTrainedTokenizerBase) -> int:
    """One more than the largest token id: logits past it are padding."""
    return max(tokenizer.get_vocab().values()) + 1


def differing_tokens(student: ChatCodec, teacher: ChatCodec) -> list[tuple[str, int]]:
    """Tokens that two tokenizers map to different ids, each with its ids, by id; none where one only adds tokens at its end."""
    ours, theirs = student.tokenizer.get_vocab(), teacher.tokenizer.get_vocab()
    differing = sorted({*ours.items()} ^ {*theirs.items()}, key=lambda item: (item[1], item[0]))
    return differing if differing and differing[0][1] < _shared(student, teacher) else []


def require_same_vocabulary(student: ChatCodec, teacher: ChatCodec) -> int:
    """How many token ids mean the same to both: all, or those before the tokens that one of the two adds at its end; else refused."""
    differing = differing_tokens(student, teacher)
    if not differing:
        return _shared(student, teacher)
    token, index = differing[0]
    tokens = {token for token, _ in differing}
    raise GradalignError(
        f"teacher {teacher.name!r} has another tokenizer than student {student.name!r}: {len(tokens):,} tokens differ, first {token!r} "
        f"(id {index}); choose a teacher of the student's family, or give --cross-tokenizer"
    )


def _shared(student: ChatCodec, teacher: ChatCodec) -> int:
    return min(vocabulary_span(student.tokenizer), vocabulary_span(teacher.tokenizer))
