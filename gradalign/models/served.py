"""A served model as a teacher: the most likely tokens that its server tells at each place, and its own chat template.

Of its distribution at a node the top k tokens are known, and every token that a rollout took there; the others are told by no one.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from gradalign.endpoint.client import Endpoint, EndpointError
from gradalign.endpoint.fitness import Probe, connected
from gradalign.models.chat import ChatCodec, beyond, messages, template_settings
from gradalign.models.protocol import LoadedModel
from gradalign.models.weights import LoadOptions
from gradalign.types import GradalignError

_UNBOUNDED = 1 << 31
_PIECES = 64
_DATES = ("%d %b %Y", "%d %B %Y", "%B %d, %Y", "%Y-%m-%d")
_SENTENCE = "Is 12 + 30 = 42? Ja — naïve, 東京, 🙂.\n\tdef square(x): return x ** 2\n"


class ServedModel:
    """A LanguageModel whose `hidden_states` are what the server told, and whose `logprobs` are NaN where it told nothing.

    Asked for a prompt with its continuation, vLLM tells (`prompt_logprobs`) at each place the `top_k` most likely tokens and the actual
    one. A state (2 W,) holds W ids and then their log-probabilities in nats, NaN where there are fewer; W is top_k + 1, or more where
    continuations part, since each of their tokens is told. Ids past the vocabulary are padding, and taken out of the distribution.
    """

    def __init__(self, endpoint: Endpoint, vocabulary_size: int, top_k: int):
        self.endpoint = endpoint
        self.name = endpoint.name
        self.vocabulary_size = vocabulary_size
        self.top_k = min(top_k, vocabulary_size)  # vLLM dies of more than there are
        self.context_window = (endpoint.window or _UNBOUNDED) - 1  # the server has to sample one token after what it reads

    def hidden_states(self, prompt: Sequence[int], continuations: Sequence[np.ndarray]) -> list[Float[Tensor, "T H"]]:
        """What is told at the T places of each continuation: one request each, and what several tell of one place joined."""
        numbered = enumerate(continuations)
        told = dict(self.endpoint.over(numbered, lambda item: (item[0], self._told(prompt, item[1]))))
        return _joined(continuations, [told[i] for i in range(len(continuations))])

    def logprobs(self, hidden_NH: Float[Tensor, "N H"]) -> Float[Tensor, "N V"]:
        """Log-probabilities in nats of the told tokens, NaN for all others."""
        ids_NW, told_NW = hidden_NH.chunk(2, dim=1)
        known = ~told_NW.isnan()
        found_NV = torch.full((len(hidden_NH), self.vocabulary_size), torch.nan)
        found_NV[known.nonzero()[:, 0], ids_NW[known].long()] = told_NW[known].float()
        return found_NV

    def check(self, prompt: Sequence[int]) -> None:
        """Refuse a server that does not tell what is needed."""
        try:
            self.hidden_states(prompt[:-1], [np.array(prompt[-1:])])
        except EndpointError as error:
            if error.status == 400 and "logprobs" in error.words:
                raise GradalignError(
                    f"{self.name} tells fewer than {self.top_k:,} tokens at a place ({error.words}); start it with "
                    f"--max-logprobs {self.top_k}, or give a smaller --teacher-top-k"
                ) from error
            raise

    def _told(self, prompt: Sequence[int], continuation: np.ndarray) -> "_Told":
        ids = [*prompt, *continuation.tolist()]
        answer = self.endpoint.complete(ids, {"max_tokens": 1, "temperature": 0.0, "prompt_logprobs": self.top_k})
        if answer.told is None or len(answer.told) != len(ids):
            raise GradalignError(
                f"{self.name} tells no log-probabilities of a prompt (prompt_logprobs), so it cannot teach; serve the model with vLLM"
            )
        places = [self._real(place) for place in answer.told[len(prompt) :]]
        if any(token not in place for token, place in zip(continuation.tolist(), places, strict=True)):
            raise GradalignError(
                f"{self.name} does not tell the log-probability of a prompt's own tokens; serve the model with vLLM"
            )
        return _Told.of(places)

    def _real(self, place: dict[int, float]) -> dict[int, float]:
        """Without padding, whose probability goes to the tokens."""
        padding = sum(np.exp(value) for token, value in place.items() if token >= self.vocabulary_size)
        return {token: value - np.log1p(-padding) for token, value in place.items() if token < self.vocabulary_size}


@dataclass(frozen=True, eq=False)
class _Told:
    """Ids (-1 pads) and log-probabilities (NaN pads) of the tokens that are told at each place of a continuation."""

    ids_TW: Int64[np.ndarray, "T W"]
    logprobs_TW: Float64[np.ndarray, "T W"]

    @classmethod
    def of(cls, places: Sequence[Mapping[int, float]], width: int | None = None) -> "_Told":
        width = max(map(len, places)) if width is None else width
        found = cls(np.full((len(places), width), -1, dtype=np.int64), np.full((len(places), width), np.nan))
        for t, place in enumerate(places):
            found.ids_TW[t, : len(place)], found.logprobs_TW[t, : len(place)] = list(place), list(place.values())
        return found


def _joined(continuations: Sequence[np.ndarray], told: Sequence[_Told]) -> list[Float[Tensor, "T H"]]:
    """The states of each continuation; where several pass a place (the same tokens before it), the tokens of all of them are told there."""
    paths, taken = _taken(continuations, told)
    lacking = [
        [
            {token: value for token, value in taken[node].items() if token not in ids}
            for node, ids in zip(path, some.ids_TW, strict=True)
        ]
        for path, some in zip(paths, told, strict=True)
    ]
    width = max((len(place) for places in lacking for place in places), default=0)
    widest = max((some.ids_TW.shape[1] for some in told), default=0)
    states = []
    for some, places in zip(told, lacking, strict=True):
        more = _Told.of(places, width + widest - some.ids_TW.shape[1])
        states.append(np.concatenate([some.ids_TW, more.ids_TW, some.logprobs_TW, more.logprobs_TW], axis=1))
    return [torch.from_numpy(state) for state in states]


def _taken(continuations: Sequence[np.ndarray], told: Sequence[_Told]) -> tuple[list[list[int]], dict[int, dict[int, float]]]:
    """Each continuation as numbers of places, equal where all tokens before are, and what is told of the tokens taken at each place."""
    numbers: dict[tuple[int, int], int] = {}
    paths: list[list[int]] = []
    taken: dict[int, dict[int, float]] = defaultdict(dict)
    for continuation, some in zip(continuations, told, strict=True):
        place, path = 0, []
        own = some.logprobs_TW[some.ids_TW == continuation[:, None]]
        for token, value in zip(continuation.tolist(), own.tolist(), strict=True):
            taken[place].setdefault(token, value)
            path.append(place)
            place = numbers.setdefault((place, token), len(numbers) + 1)
        paths.append(path)
    return paths, taken


class ServedCodec:
    """Prompts in the server's own chat template, text by the student's tokenizer, which is the same."""

    def __init__(self, endpoint: Endpoint, student: ChatCodec):
        self.endpoint = endpoint
        self.student = student
        self.stop_ids = student.stop_ids

    def prompt(self, user: str, system: str | None = None) -> tuple[int, ...]:
        """Token ids of a chat up to where the assistant begins to speak; in the student's template where the server applies none."""
        return self._encoded(user, system) or self.student.prompt(user, system)

    def boundary(self, user: str, system: str | None = None) -> tuple[int, ...]:
        whole = self._encoded(user, system)
        if not whole:
            return self.student.boundary(user, system)
        return beyond(whole, self._encoded(user, system, opens=False) or ())

    def ids(self, text: str) -> tuple[int, ...]:
        return self.student.ids(text)

    def text(self, tokens: Sequence[int] | np.ndarray) -> str:
        return self.student.text(tokens)

    def shown(self, tokens: Sequence[int] | np.ndarray) -> str:
        return self.student.shown(tokens)

    def dated(self) -> bool:
        """Does the server's template say what day it is today? It cannot be told another day where it asks for it itself."""
        said = self.shown(self.prompt("?"))
        return any(datetime.now().strftime(form) in said for form in _DATES)

    def _encoded(self, user: str, system: str | None, opens: bool = True) -> tuple[int, ...] | None:
        return self.endpoint.tokenize(
            {
                "messages": messages(user, system),
                "add_generation_prompt": opens,
                "chat_template_kwargs": template_settings(self.student.thinking),
            }
        )


def connect(name: str, student: LoadedModel, concurrency: int, named: bool = True) -> Endpoint:
    """The endpoint that `name` means, once it is known to read and write in the student's tokens."""
    codec = _chat(student)
    every = max(1, student.language_model.vocabulary_size // _PIECES)
    text = _SENTENCE + codec.text(range(0, student.language_model.vocabulary_size, every))
    return connected(name, Probe(codec.name, text, codec.ids(text)), concurrency, named)


def load_served(
    name: str, student: LoadedModel, options: LoadOptions, top_k: int, teaches: bool, named: bool = True
) -> LoadedModel:
    """The served model that `name` means; only one that teaches has to tell log-probabilities of prompts, `top_k` of them at a place.

    `named` says whether the user named it, or only a file does (`Endpoint`).
    """
    if options.temperature != 1:
        raise GradalignError(
            f"{name} tells log-probabilities at temperature 1, not {options.temperature:g}; leave out --temperature, or give this model "
            "as model:FOLDER"
        )
    codec = _chat(student)
    endpoint = connect(name, student, options.batch_size, named)
    model = ServedModel(endpoint, student.language_model.vocabulary_size, top_k)
    own = codec if options.chat_template else ServedCodec(endpoint, codec)
    if teaches:
        model.check(own.prompt(_SENTENCE))
    return LoadedModel(model, own, f"server: {endpoint.model}, root {endpoint.root}, window {endpoint.window}")


def _chat(student: LoadedModel) -> ChatCodec:
    assert isinstance(student.codec, ChatCodec)
    return student.codec
