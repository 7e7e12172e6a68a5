"""What the pipeline asks of a model and of its tokenizer. Anything with these methods can be a student or a teacher."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int64
from torch import Tensor


@runtime_checkable
class LanguageModel(Protocol):
    """Next-token distributions in two steps, so that no (tokens of a rollout x vocabulary) array ever exists.

    Hidden states come once per prefix; log-probabilities are made from chunks of them, used, and dropped.
    """

    name: str
    vocabulary_size: int
    context_window: int

    def hidden_states(self, prompt: Sequence[int], continuations: Sequence[np.ndarray]) -> list[Float[Tensor, "T H"]]:
        """For each continuation of T tokens, the last hidden states at the T positions that predict its tokens."""
        ...

    def logprobs(self, hidden_NH: Float[Tensor, "N H"]) -> Float[Tensor, "N V"]:
        """Log-probabilities in nats, float32 or wider, of the next token after each of N prefixes."""
        ...


@runtime_checkable
class SharingModel(LanguageModel, Protocol):
    """A model that does not tell some tokens apart: what it tells of `home_V[k]` is for token k too, where it tells nothing of k.

    Where it tells nothing of `home_V[k]` either, what it tells of the home of that.
    """

    @property
    def home_V(self) -> Int64[Tensor, " V"]:
        """For each token the one whose probability it has a part in; itself where it has its own."""
        ...


@runtime_checkable
class Codec(Protocol):
    """Text to token ids and back, with the chat template and the stop tokens of one model."""

    stop_ids: frozenset[int]

    def prompt(self, user: str, system: str | None = None) -> tuple[int, ...]:
        """Token ids of a chat of one user message, after a system message where there is one, up to where the assistant begins to speak."""
        ...

    def boundary(self, user: str, system: str | None = None) -> tuple[int, ...]:
        """The last tokens of that prompt, which open the assistant's turn."""
        ...

    def ids(self, text: str) -> tuple[int, ...]:
        """Token ids of a text as it stands, without special tokens added."""
        ...

    def shown(self, tokens: Sequence[int] | np.ndarray) -> str:
        """Text of tokens as they stand, special ones too."""
        ...

    def text(self, tokens: Sequence[int] | np.ndarray) -> str:
        """Text of generated tokens, without special tokens."""
        ...


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model ready for use: its language model, its codec, and what identifies it in `run.json`."""

    language_model: LanguageModel
    codec: Codec
    fingerprint: str
    parameters: int = 0
    notices: tuple[str, ...] = ()
