"""What each token of a tokenizer writes, in bytes, and how the tokenizer cuts a text. Knows one tokenizer at a time, and no model."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from transformers import PreTrainedTokenizerBase

from gradalign.models.chat import ChatCodec
from gradalign.spans import Spellings
from gradalign.types import GradalignError

_SENTENCE = "Is 12 + 30 = 42? Ja — naïve, 東京, 🙂.\n\tdef Square(x):  return x ** 2\n"
_ANCHOR = "\n"
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_KEPT = [*range(33, 127), *range(161, 173), *range(174, 256)]  # bytes that byte-level tokenizers write as the character itself


@dataclass(frozen=True, eq=False)
class Spelling:
    """The bytes of each token, None where it writes none; special tokens by id; how texts are cut; which tokens end a turn.

    `surface_V` are the tokens as the vocabulary names them, which tells apart those that write the same.
    """

    words_V: Sequence[bytes | None]
    cut: Callable[[Sequence[str]], list[list[int]]]
    surface_V: Sequence[str]
    specials: Mapping[int, str] = field(default_factory=dict)
    stops: frozenset[int] = frozenset()
    end: int | None = None

    @cached_property
    def words(self) -> Spellings:
        """Tokens by what they write, those that stand for a byte after others that write the same."""
        last = {token for token, surface in enumerate(self.surface_V) if _BYTE.fullmatch(surface)}
        return Spellings(self.words_V, last)

    def token(self, word: bytes, surface: str) -> int | None:
        """The token that writes `word`: of several the one of that name, else the one that the tokenizer writes."""
        found = self.words.exactly(word)
        if len(found) < 2:
            return found[0] if found else None
        named = [token for token in found if self.surface_V[token] == surface]
        text = _text(word)
        written = self.cut([text])[0] if text is not None and not named else []
        own = written if len(written) == 1 and written[0] in found else []
        return [*named, *own, *found][0]

    def write(self, words: Sequence[bytes]) -> list[list[int] | None]:
        """Each word in tokens, as the tokenizer cuts it where it is text; None where it cannot be written."""
        texts = [_text(word) for word in words]
        cut = iter(self.cut([text for text in texts if text is not None]))
        found = [next(cut) if text is not None else None for text in texts]
        return [
            tokens if tokens is not None and self.written(tokens) == word else self.words.cut(word)
            for word, tokens in zip(words, found, strict=True)
        ]

    def held(self, size: int) -> "Spelling":
        """The same for a model with `size` logits: texts whose tokens it has not all are cut anew, the longest that fits first."""
        if size >= len(self.words_V):
            return self

        def cut(texts: Sequence[str]) -> list[list[int]]:
            found = zip(texts, self.cut(texts), strict=True)
            return [own if max(own, default=0) < size else kept.words.cut(text.encode()) or [] for text, own in found]

        specials = {token: name for token, name in self.specials.items() if token < size}
        stops = frozenset(token for token in self.stops if token < size)
        end = self.end if self.end in stops else min(stops, default=None)
        kept = Spelling(self.words_V[:size], cut, self.surface_V[:size], specials, stops, end)
        return kept

    def written(self, tokens: Sequence[int]) -> bytes:
        """What the tokens write together."""
        return b"".join(self.words_V[token] or b"" for token in tokens)


def spelling_of(codec: ChatCodec) -> Spelling:
    """The spelling of a transformers tokenizer, refused where its tokens do not add up to the text that they cut."""
    tokenizer = codec.tokenizer
    surface_V: list[str] = [""] * (max(tokenizer.get_vocab().values()) + 1)
    for token, index in tokenizer.get_vocab().items():
        surface_V[index] = token
    added = tokenizer.added_tokens_decoder
    specials = {index: token.content for index, token in added.items() if token.special}
    spelled = _speller(tokenizer, codec.name)
    words_V = [
        None
        if index in specials or index in codec.stop_ids
        else added[index].content.encode()
        if index in added and spelled is _byte_level  # other decoders treat added tokens as they do the rest
        else spelled(token)
        for index, token in enumerate(surface_V)
    ]
    end = tokenizer.eos_token_id if tokenizer.eos_token_id in codec.stop_ids else min(codec.stop_ids)
    for anchor in ("", _ANCHOR):  # some tokenizers put a space before what they cut, but not after a line's end
        spelling = Spelling(words_V, _cutter(tokenizer, anchor), surface_V, specials, codec.stop_ids, end)
        if spelling.written(spelling.cut([_SENTENCE])[0]) == _SENTENCE.encode():
            return spelling
    raise GradalignError(
        f"the tokenizer of {codec.name!r} changes the text that it cuts, so its tokens cannot be aligned with another's; choose a teacher "
        "of the student's family"
    )


def _cutter(tokenizer: PreTrainedTokenizerBase, anchor: str) -> Callable[[Sequence[str]], list[list[int]]]:
    """Cut texts as they stand, with no special token read in or added to them."""

    def ids(texts: list[str]) -> list[list[int]]:
        return tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"] if texts else []  # pyright: ignore

    skip = len(ids([anchor])[0]) if anchor else 0
    return lambda texts: [tokens[skip:] for tokens in ids([anchor + text for text in texts])]


def _speller(tokenizer: PreTrainedTokenizerBase, name: str) -> Callable[[str], bytes | None]:
    """What a token writes, by the kind of decoder that the tokenizer has."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise GradalignError(
            f"the tokenizer of {name!r} has no tokenizer.json, so its tokens cannot be spelled; convert it to a fast one"
        )
    steps = _steps(json.loads(backend.to_str()).get("decoder"))
    kinds = {step["type"] for step in steps}
    if "ByteLevel" in kinds:
        return _byte_level
    marks = {step["replacement"]: " " for step in steps if step["type"] == "Metaspace"}
    marks |= {
        step["pattern"]["String"]: step["content"]
        for step in steps
        if step["type"] == "Replace" and "String" in step["pattern"]
    }

    def spell(token: str) -> bytes | None:
        byte = _BYTE.fullmatch(token) if "ByteFallback" in kinds else None
        if byte:
            return bytes([int(byte[1], 16)])
        for mark, written in marks.items():
            token = token.replace(mark, written)
        return token.encode()

    return spell


def _steps(decoder: dict | None) -> list[dict]:
    if decoder is None:
        return []
    return decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]


def _alphabet() -> dict[str, int]:
    """The character that stands for each byte in byte-level tokenizers."""
    others = [byte for byte in range(256) if byte not in _KEPT]
    return {chr(byte): byte for byte in _KEPT} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTES = _alphabet()


def _byte_level(token: str) -> bytes | None:
    return bytes(_BYTES[char] for char in token) if all(char in _BYTES for char in token) else token.encode()


def _text(word: bytes) -> str | None:
    try:
        return word.decode()
    except UnicodeDecodeError:
        return None
