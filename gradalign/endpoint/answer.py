"""What an endpoint says of one completion, read from its JSON. What it does not say is None."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

_AS_IDS = "token_id:"


@dataclass(frozen=True, eq=False)
class Answer:
    """One completion: the sampled ids and their log-probabilities in nats, the ids that the server read as the prompt and their number,
    and for each of the P places of the prompt the log-probabilities of tokens there by their ids (nothing at the first place)."""

    tokens: Int64[np.ndarray, " T"] | None
    logprobs: Float64[np.ndarray, " T"] | None
    prompt: tuple[int, ...] | None
    prompt_length: int | None
    told: list[dict[int, float]] | None


def read_answer(body: Any) -> Answer:
    """Read a completion; ValueError where it is none.

    Sampled ids stand in `token_ids` (asked for by `return_token_ids`) or in the log-probabilities as `token_id:123` (asked for by
    `return_tokens_as_token_ids`).
    """
    try:
        choice = body["choices"][0]
        logprobs = choice.get("logprobs") or {}
        values = logprobs.get("token_logprobs")
        told = choice.get("prompt_logprobs")
        prompt = choice.get("prompt_token_ids")
        return Answer(
            tokens=_tokens(choice.get("token_ids"), logprobs.get("tokens")),
            logprobs=None if not values or None in values else np.array(values, dtype=np.float64),
            prompt=None if prompt is None else tuple(prompt),
            prompt_length=(body.get("usage") or {}).get("prompt_tokens"),
            told=None if told is None else [_place(place) for place in told],
        )
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise ValueError("not a completion") from error


def _tokens(ids: list[int] | None, texts: list[str] | None) -> np.ndarray | None:
    if ids is not None:
        return np.array(ids, dtype=np.int64)
    if texts and all(text.startswith(_AS_IDS) for text in texts):
        return np.array([int(text.removeprefix(_AS_IDS)) for text in texts], dtype=np.int64)
    return None


def _place(told: dict[str, dict[str, float]] | None) -> dict[int, float]:
    return {int(token): entry["logprob"] for token, entry in (told or {}).items()}
