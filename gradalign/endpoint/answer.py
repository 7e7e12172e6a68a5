"""What an endpoint says of one completion, read from its JSON. What it does not say is None."""

from collections.abc import Iterable
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
            logprobs=None if not values or None in values else np.array([_logprob(value) for value in values]),
            prompt=None if prompt is None else _ids(prompt),
            prompt_length=_count((body.get("usage") or {}).get("prompt_tokens")),
            told=None if told is None else [_place(place) for place in told],
        )
    except (LookupError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise ValueError("not a completion") from error


def read_tokens(body: Any) -> tuple[int, ...]:
    """Read what /tokenize answers; ValueError where it holds no token ids."""
    try:
        return _ids(body["tokens"])
    except (LookupError, TypeError) as error:
        raise ValueError("no token ids") from error


def _tokens(ids: list[int] | None, texts: list[str] | None) -> np.ndarray | None:
    if ids is not None:
        return np.array(_ids(ids), dtype=np.int64)
    if texts and all(text.startswith(_AS_IDS) for text in texts):
        return np.array(_ids([int(text.removeprefix(_AS_IDS)) for text in texts]), dtype=np.int64)
    return None


def _place(told: dict[str, dict[str, float]] | None) -> dict[int, float]:
    return {_ids([int(token)])[0]: _logprob(entry["logprob"]) for token, entry in (told or {}).items()}


def _ids(values: Iterable[Any]) -> tuple[int, ...]:
    """Token ids; ValueError where one is no number that a vocabulary could have."""
    ids = tuple(values)
    if not all(_count(value) is not None for value in ids):
        raise ValueError("no token ids")
    return ids


def _count(value: Any) -> int | None:
    """A whole number of at most 31 bits, None for anything else."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31 else None


def _logprob(value: Any) -> float:
    found = float(value)
    if np.isnan(found) or found > 1:  # rounding may leave a little above 0
        raise ValueError("no log-probability")
    return found
