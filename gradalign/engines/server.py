"""Sampling from a model that is served elsewhere, over HTTP. Knows token ids and seeds; nothing of text, questions or trees.

Every completion is a request of its own, with its own seed. Top-k, top-p and penalties are sent so that they leave the distribution whole,
since servers take defaults of their own from a model's files.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from gradalign.endpoint.client import Endpoint
from gradalign.endpoint.fitness import TELLING, WHOLE_DISTRIBUTION
from gradalign.engines.rows import Row, rows_of
from gradalign.models import CausalLanguageModel, LoadedModel
from gradalign.models.served import connect
from gradalign.seeds import seed_of
from gradalign.types import Completion, CompletionRequest, GradalignError

_SEEDS = (1 << 63) - 1  # servers take signed 64-bit integers
_NEVER = -100.0  # the lowest bias there is: e^-100 of the probability
_TOLERANCE = 0.1  # nats, mean over sampled tokens: bfloat16 is off by some hundredths
_VISIBLE = 1e-3
_QUESTION = "Tell me something about yourself."
_SAMPLED = (4, 32)


class ServerEngine:
    """The Engine over an endpoint, which samples ids below `span` until one of `stop_ids`.

    A model may have more logits than its tokenizer has tokens: up to `width`. They are forbidden by a bias, so that what is sampled is the
    distribution over tokens, as everywhere else. An id beyond `span` that comes all the same is refused: to leave the completion out, or to
    sample it again, would change the distribution.
    """

    kind = "server"

    def __init__(self, endpoint: Endpoint, stop_ids: frozenset[int], span: int, width: int, temperature: float = 1.0):
        self.endpoint = endpoint
        self.stop_ids = stop_ids
        self.span = span
        bias = {"logit_bias": {str(token): _NEVER for token in range(span, width)}} if width > span else {}
        stops = {"stop_token_ids": sorted(stop_ids), "ignore_eos": True}  # our stop tokens and no others
        self.settings: dict[str, Any] = {"temperature": temperature, **WHOLE_DISTRIBUTION, **TELLING, **stops, **bias}

    def complete(self, requests: Sequence[CompletionRequest]) -> Iterator[Completion]:
        """Sample every request's completions; they come as they end, longest prefixes sent first."""
        self._check_window(requests)
        yield from self.endpoint.over(rows_of(requests), self._sample)

    def rest(self) -> None:
        """Nothing is held here."""

    def _check_window(self, requests: Sequence[CompletionRequest]) -> None:
        longest = max((len(request.prefix) + request.max_tokens for request in requests), default=0)
        if self.endpoint.window is not None and longest > self.endpoint.window:
            raise GradalignError(
                f"{self.endpoint.name} has a window of {self.endpoint.window:,} tokens, and prompt and rollout take {longest:,}; "
                "start it with a larger --max-model-len, or lower --max-tokens"
            )

    def _sample(self, row: Row) -> Completion:
        settings = {**self.settings, "max_tokens": row.max_tokens, "seed": row.seed & _SEEDS}
        answer = self.endpoint.complete(row.prefix, settings)
        tokens, logprobs = answer.tokens, answer.logprobs
        if tokens is None or logprobs is None or not 0 < len(tokens) == len(logprobs) <= row.max_tokens:
            raise GradalignError(
                f"{self.endpoint.name} returned a completion without the ids and log-probabilities of its tokens"
            )
        if tokens.max() >= self.span:
            raise GradalignError(
                f"{self.endpoint.name} sampled id {tokens.max()}, which the tokenizer of {self.span:,} tokens does not have; "
                "serve the model with a server that heeds logit_bias"
            )
        stops = np.isin(tokens, list(self.stop_ids))
        if stops[:-1].any() or (not stops[-1] and len(tokens) < row.max_tokens):
            raise GradalignError(
                f"{self.endpoint.name} does not stop where it is asked to (stop_token_ids, ignore_eos); serve the model with vLLM"
            )
        return Completion(row.request, row.replicate, tokens, logprobs, "stop" if stops[-1] else "length")


def connect_student(name: str, loaded: LoadedModel, concurrency: int) -> ServerEngine:
    """The endpoint that `name` means as an engine for the loaded student, once it is known to serve the student's own weights."""
    model = loaded.language_model
    assert isinstance(model, CausalLanguageModel)
    endpoint = connect(name, loaded, concurrency)
    engine = ServerEngine(endpoint, loaded.codec.stop_ids, model.vocabulary_size, model.width, model.temperature)
    _require_same_model(engine, loaded, model)
    return engine


@torch.inference_mode()
def _require_same_model(engine: ServerEngine, loaded: LoadedModel, model: CausalLanguageModel) -> None:
    """Log-probabilities of what the server samples are those of the student, at the run's temperature."""
    count, length = _SAMPLED
    prompt = loaded.codec.prompt(_QUESTION)
    request = CompletionRequest(prompt, tuple(seed_of("the student itself", i) for i in range(count)), length)
    completions = list(engine.complete([request]))
    states = torch.cat(model.hidden_states(prompt, [completion.tokens for completion in completions]))
    tokens = torch.from_numpy(np.concatenate([completion.tokens for completion in completions])).to(states.device)
    served = np.concatenate([completion.logprobs for completion in completions])

    def distance(logprobs_NV: torch.Tensor) -> float:
        own = logprobs_NV.gather(1, tokens[:, None])[:, 0].double().cpu().numpy()
        return float(np.abs(served - own).mean())

    apart, apart_unscaled = distance(model.logprobs(states)), distance(torch.log_softmax(model.logits(states), -1))
    if model.temperature != 1 and apart > _VISIBLE and apart_unscaled < apart:
        raise GradalignError(
            f"{engine.endpoint.name} samples at temperature {model.temperature:g} but tells log-probabilities at temperature 1; "
            "start it with --logprobs-mode processed_logprobs"
        )
    if not apart <= _TOLERANCE:
        raise GradalignError(
            f"{engine.endpoint.name} does not serve student {model.name!r}: log-probabilities of sampled tokens are {apart:.2g} nats from "
            f"the student's own on average, and rounding explains {_TOLERANCE:g} at most; serve the very weights of --student"
        )
