"""Is an endpoint fit to sample for a run, or to teach in it? Each way in which it may not be has its own line."""

from dataclasses import dataclass
from typing import Any

from gradalign.endpoint.answer import Answer
from gradalign.endpoint.client import Endpoint, EndpointError
from gradalign.types import GradalignError

# as sampled, every token: whatever the server's own defaults are
WHOLE_DISTRIBUTION: dict[str, Any] = {
    "top_p": 1.0,
    "top_k": -1,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}
# tokens as ids, two ways, and the log-probability of each
TELLING: dict[str, Any] = {
    "logprobs": 1,
    "return_token_ids": True,
    "return_tokens_as_token_ids": True,
    "skip_special_tokens": False,
}
_VLLM = "serve the model with vLLM 0.10.2 or newer"


@dataclass(frozen=True)
class Probe:
    """A text, its ids by the student's tokenizer without special tokens added, and the student's name."""

    student: str
    text: str
    ids: tuple[int, ...]


def connected(name: str, probe: Probe, concurrency: int, named: bool = True) -> Endpoint:
    """The endpoint that `name` means, once it is known to take and give token ids and log-probabilities of the student's tokenizer.

    `named` says whether the user named it, or only a file does (`Endpoint`).
    """
    endpoint = Endpoint(name, concurrency, named=named)
    ids = endpoint.tokenize({"prompt": probe.text, "add_special_tokens": False})
    if ids is not None:
        _require_same(endpoint, probe, ids)
    _require_ids(endpoint, probe)
    if ids is None:
        _require_same_text(endpoint, probe)
    return endpoint


def _require_ids(endpoint: Endpoint, probe: Probe) -> None:
    """The endpoint completes token ids, and tells ids and log-probabilities of what it samples."""
    prompt = probe.ids[:8]
    try:
        answer = _short(endpoint, prompt)
    except EndpointError as error:
        if error.status in (400, 422):
            raise GradalignError(f"{endpoint.name} does not complete token ids as asked ({error.words}); {_VLLM}") from error
        raise
    if (answer.prompt is not None and answer.prompt != prompt) or answer.prompt_length not in (None, len(prompt)):
        raise GradalignError(f"{endpoint.name} reads a prompt of token ids as something else; {_VLLM}")
    if answer.tokens is None:
        raise GradalignError(f"{endpoint.name} returns no token ids (return_token_ids); {_VLLM}")
    if answer.logprobs is None or len(answer.logprobs) != len(answer.tokens):
        raise GradalignError(
            f"{endpoint.name} returns no log-probabilities of what it samples; start it with --max-logprobs of at least 1"
        )


def _require_same(endpoint: Endpoint, probe: Probe, ids: tuple[int, ...]) -> None:
    """The server's tokenizer makes the same ids of the probe."""
    if ids == probe.ids:
        return
    place = next((i for i, (a, b) in enumerate(zip(ids, probe.ids, strict=False)) if a != b), min(len(ids), len(probe.ids)))
    there, here = (f"id {some[place]}" if place < len(some) else "nothing" for some in (ids, probe.ids))
    raise GradalignError(
        f"{endpoint.name} has another tokenizer than student {probe.student!r}: in a text for comparison token {place} is {there} there, "
        f"{here} here; serve a model of the student's family"
    )


def _require_same_text(endpoint: Endpoint, probe: Probe) -> None:
    """The same where the server has no /tokenize: by the ids that it read in a text, or at least by how many they were."""
    answer = _short(endpoint, probe.text)
    if answer.prompt is not None:
        _require_same(endpoint, probe, answer.prompt)
    elif answer.prompt_length != len(probe.ids):
        raise GradalignError(
            f"{endpoint.name} has another tokenizer than student {probe.student!r}: a text for comparison is "
            f"{answer.prompt_length or 'an unknown number of'} tokens there, {len(probe.ids)} here; serve a model of the student's family"
        )


def _short(endpoint: Endpoint, prompt: tuple[int, ...] | str) -> Answer:
    settings = {"max_tokens": 2, "temperature": 1.0, "seed": 0, "add_special_tokens": False, **WHOLE_DISTRIBUTION, **TELLING}
    return endpoint.complete(prompt, settings)
