"""Targets over what a server answers: the list of models, tokenizations and completions."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from unittest.mock import patch

import httpx2  # what the client itself sends with
import openai
from hypothesis import strategies as st

from fuzz.making import changed, deep, mutated, written
from fuzz.target import Target
from fuzz.texts import small_codec
from gradalign.endpoint.fitness import Probe, connected
from gradalign.models.served import ServedCodec

_CARDS = {"data": [{"id": "m", "root": "/models/m", "max_model_len": 512}]}
_TOKENS = {"count": 2, "tokens": [5, 6], "max_model_len": 512}
_COMPLETION = {
    "choices": [
        {
            "text": "ab",
            "token_ids": [5, 6],
            "prompt_token_ids": [5, 6],
            "prompt_logprobs": [None, {"6": {"logprob": -0.5, "rank": 1}}],
            "logprobs": {"token_logprobs": [-0.1, -0.2], "tokens": ["token_id:5", "token_id:6"]},
            "finish_reason": "length",
        }
    ],
    "usage": {"prompt_tokens": 2},
}
_WHOLE = [_CARDS, _TOKENS, _COMPLETION]


class _Saying(httpx2.BaseTransport):
    """A server that answers every request, by its path, with what the case says."""

    def __init__(self, case: bytes):
        self.cards, self.tokens, self.completion = _answers(case)

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        path = request.url.path
        content = self.cards if path.endswith("/models") else self.tokens if path.endswith("/tokenize") else self.completion
        return httpx2.Response(200, content=content, headers={"Content-Type": "application/json"})


def _answers(case: bytes) -> Sequence[bytes]:
    """The three answers that a case holds; what is no list of three is one completion, whatever it is."""
    try:
        found = json.loads(case)
    except (ValueError, RecursionError):
        found = None
    if isinstance(found, list) and len(found) == 3:
        return [written(answer) for answer in found]
    return [written(_CARDS), written(_TOKENS), case]


def _connected(case: bytes, folder: Path) -> None:
    """A server is asked by the real client whether it is fit, and what it reads of a chat is shown."""
    codec = small_codec()
    asking = partial(openai.OpenAI, http_client=httpx2.Client(transport=_Saying(case)))
    with patch.object(openai, "OpenAI", asking):
        endpoint = connected("server:http://127.0.0.1:1", Probe("student", "ab", (5, 6)), 1)
    codec.shown(ServedCodec(endpoint, codec).prompt("?"))


_SEEDS = [written(_WHOLE), *map(written, _WHOLE)]
TARGETS = [
    Target("server answer", st.one_of(changed([_WHOLE]), changed([_WHOLE]), mutated(_SEEDS), deep()), _connected, 7, _SEEDS)
]
