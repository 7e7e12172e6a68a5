"""The text that each token adds: joined it is the rollout's, also where characters span tokens or decoding strips blanks."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from gradalign.builtin import builtin_path
from gradalign.models import ChatCodec, token_pieces

TOKENIZER = AutoTokenizer.from_pretrained(builtin_path("students") / "small")
CODEC = ChatCodec(TOKENIZER, "small", frozenset())


class Stripping:
    """As SentencePiece's decoders do: words begin with a blank, and the first blank of what is decoded goes."""

    stop_ids: frozenset[int] = frozenset()
    words = (" so", " the", "m", " ", " answer", "")

    def prompt(self, user: str, system: str | None = None) -> tuple[int, ...]:
        return (0,)

    def boundary(self, user: str, system: str | None = None) -> tuple[int, ...]:
        return ()

    def ids(self, text: str) -> tuple[int, ...]:
        return ()

    def shown(self, tokens) -> str:
        return self.text(tokens)

    def text(self, tokens) -> str:
        return "".join(self.words[int(token)] for token in tokens).removeprefix(" ")


@settings(deadline=None, max_examples=150)
@given(st.text(max_size=40))
def test_pieces_of_bytes_join_to_the_text(text):
    """The built-in vocabulary has a token for each byte that no word covers."""
    tokens = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    pieces = token_pieces(CODEC, tokens)
    assert len(pieces) == len(tokens)
    assert "".join(pieces) == CODEC.text(tokens)


@settings(deadline=None, max_examples=150)
@given(st.lists(st.integers(0, 5), max_size=12))
def test_pieces_join_where_decoding_strips_a_blank(tokens):
    pieces = token_pieces(Stripping(), np.array(tokens, dtype=np.int64))
    assert len(pieces) == len(tokens)
    assert "".join(pieces) == Stripping().text(tokens)


def test_a_character_belongs_to_its_last_token():
    tokens = TOKENIZER("é🙂", add_special_tokens=False)["input_ids"]
    pieces = token_pieces(CODEC, tokens)
    assert [piece for piece in pieces if piece] == ["é", "🙂"]
    assert len(pieces) > 2


def test_special_tokens_have_no_text():
    tokens = [*TOKENIZER("so", add_special_tokens=False)["input_ids"], TOKENIZER.eos_token_id]
    assert token_pieces(CODEC, tokens)[-1] == ""
