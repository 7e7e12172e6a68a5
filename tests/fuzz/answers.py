"""Targets over what a server answers: the list of models, tokenizations and completions."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from fuzz.making import changed, deep, mutated, written
from fuzz.target import Target
from gradalign.endpoint.client import Endpoint
from gradalign.endpoint.fitness import Probe, connected

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


class _Saying(Endpoint):
    """An endpoint whose server answers what a case says, to each path in turn."""

    answers: tuple[Any, ...] = ()

    def _send(self, path: str, body: Mapping[str, Any] | None) -> Any:
        cards, tokens, completion = self.answers
        return cards if path == "/models" else tokens if path.endswith("/tokenize") else completion


def _connected(case: bytes, folder: Path) -> None:
    try:
        answers = json.loads(case)
    except (ValueError, RecursionError):  # the client's own package says so of such an answer
        return
    if not isinstance(answers, list) or len(answers) != 3:
        answers = [_CARDS, _TOKENS, answers]
    _Saying.answers = tuple(answers)
    from gradalign.endpoint import fitness

    before, fitness.Endpoint = fitness.Endpoint, _Saying
    try:
        connected("server:http://127.0.0.1:1", Probe("student", "ab", (5, 6)), 1)
    finally:
        fitness.Endpoint = before


_SEEDS = [written(_WHOLE), *map(written, _WHOLE)]
TARGETS = [
    Target("server answer", st.one_of(changed([_WHOLE]), changed([_WHOLE]), mutated(_SEEDS), deep()), _connected, 7, _SEEDS)
]
