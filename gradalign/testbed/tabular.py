"""A tabular language model: a table of logits for every prefix, small enough that all sequences can be enumerated.

It keeps the protocols of `Engine` and `LanguageModel`, so that the whole pipeline runs on it, and gives success, values
and ideal directions by dynamic programming. Every sequence has `length` tokens and ends there; its reward is fixed.
"""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gradalign.engines.sampling import sampled_tokens
from gradalign.seeds import uniforms
from gradalign.types import Completion, CompletionRequest

Prefix = tuple[int, ...]


class TabularModel:
    """Logits (V,) for every prefix of up to `length - 1` tokens, and a reward in [0, 1] for every whole sequence.

    The prompt is one token and means nothing; `name`, `vocabulary_size` and `context_window` are those of the protocol. The hidden states
    are the logits themselves, under an output layer that is the identity, unless the model is made `with_head`.
    """

    kind = "tabular"

    def __init__(self, logits: dict[Prefix, np.ndarray], rewards: dict[Prefix, float], length: int, name: str = "tabular"):
        self.name = name
        self.length = length
        self.rewards = rewards
        self.prefixes = {prefix: row for row, prefix in enumerate(logits)}
        self.logits_NV = torch.tensor(np.stack(list(logits.values())), dtype=torch.float64)
        self.states_NH = self.logits_NV
        self.head_VH = torch.eye(self.logits_NV.shape[1], dtype=torch.float64)
        self.vocabulary_size = self.logits_NV.shape[1]
        self.context_window = length + 1

    @classmethod
    def random(cls, vocabulary: int, length: int, seed: int, sharpness: float = 1.0) -> "TabularModel":
        """Normal logits of standard deviation `sharpness`; a sequence succeeds by a biased coin of its own."""
        rng = np.random.default_rng(seed)
        logits = {
            prefix: sharpness * rng.standard_normal(vocabulary)
            for depth in range(length)
            for prefix in itertools.product(range(vocabulary), repeat=depth)
        }
        rewards = {sequence: float(rng.random() < 0.4) for sequence in itertools.product(range(vocabulary), repeat=length)}
        return cls(logits, rewards, length)

    @classmethod
    def with_head(
        cls, states: dict[Prefix, np.ndarray], head_VH: Float[np.ndarray, "V H"], rewards: dict[Prefix, float], length: int
    ) -> "TabularModel":
        """Hidden states (H,) for every prefix under an output layer that several models may share: logits are their products."""
        model = cls({prefix: head_VH @ state for prefix, state in states.items()}, rewards, length)
        model.states_NH = torch.tensor(np.stack(list(states.values())), dtype=torch.float64)
        model.head_VH = torch.tensor(head_VH, dtype=torch.float64)
        return model

    def tilted(self, amount: float, name: str) -> "TabularModel":
        """The teacher tau ∝ pi exp(amount · S): better than this model where `amount` is positive, worse where negative."""
        rows = {p: self.logits_NV[row].numpy() + amount * self.success(p) for p, row in self.prefixes.items()}
        return TabularModel(rows, self.rewards, self.length, name)

    def probabilities(self, prefix: Prefix) -> Float[np.ndarray, " V"]:
        """pi at the node."""
        return torch.softmax(self.logits_NV[self.prefixes[prefix]], -1).numpy()

    def success(self, prefix: Prefix) -> Float[np.ndarray, " V"]:
        """S_k at the node, exactly."""
        return np.array([self.value((*prefix, token)) for token in range(self.vocabulary_size)])

    def value(self, prefix: Prefix) -> float:
        """V at the node, exactly: the reward of a whole sequence, else sum_k pi_k S_k."""
        if len(prefix) == self.length:
            return self.rewards[prefix]
        return float(self.probabilities(prefix) @ self.success(prefix))

    def visitation(self, prefix: Prefix) -> float:
        """Probability that a rollout passes the node."""
        steps = [self.probabilities(prefix[:depth])[token] for depth, token in enumerate(prefix)]
        return float(np.prod(steps))

    def hidden_states(self, prompt: Sequence[int], continuations: Sequence[np.ndarray]) -> list[Float[Tensor, "T H"]]:
        """The hidden states at the prefixes of each continuation."""
        rows = [[self.prefixes[tuple(tokens[:depth].tolist())] for depth in range(len(tokens))] for tokens in continuations]
        return [self.states_NH[torch.tensor(row)] for row in rows]

    def logprobs(self, hidden_NH: Float[Tensor, "N H"]) -> Float[Tensor, "N V"]:
        return torch.log_softmax(hidden_NH @ self.head_VH.T, dim=-1)

    def rest(self) -> None:
        """It holds nothing but its tables."""

    def complete(self, requests: Sequence[CompletionRequest]) -> Iterator[Completion]:
        """Sample completions, one depth at a time for all requests together (the Engine's protocol)."""
        rows = [(i, j, r.prefix[1:], seed, r.max_tokens) for i, r in enumerate(requests) for j, seed in enumerate(r.seeds)]
        sequences = [list(prefix) for _, _, prefix, _, _ in rows]
        logprobs: list[list[float]] = [[] for _ in rows]
        for step in range(self.length):
            live = [n for n, row in enumerate(rows) if len(sequences[n]) < self.length and step < row[4]]
            if not live:
                break
            states = self.logprobs(self.states_NH[torch.tensor([self.prefixes[tuple(sequences[n])] for n in live])])
            seeds = np.array([rows[n][3] for n in live], dtype=np.uint64)
            tokens = sampled_tokens(states.exp(), torch.from_numpy(uniforms(seeds, np.full(len(live), step, dtype=np.uint64))))
            for n, token, state in zip(live, tokens.tolist(), states, strict=True):
                sequences[n].append(token)
                logprobs[n].append(float(state[token]))
        for n, (request, replicate, prefix, _, _) in enumerate(rows):
            yield Completion(request, replicate, np.array(sequences[n][len(prefix) :]), np.array(logprobs[n]), "length")


class TabularCodec:
    """Codec of a tabular model: the text of a sequence states whether it succeeds, for an exact grader to read."""

    stop_ids: frozenset[int] = frozenset()

    def __init__(self, model: TabularModel):
        self.model = model

    def prompt(self, user: str, system: str | None = None) -> tuple[int, ...]:
        return (0,)

    def boundary(self, user: str, system: str | None = None) -> tuple[int, ...]:
        return ()

    def ids(self, text: str) -> tuple[int, ...]:
        """One id a word: the model reads no texts."""
        return (0,) * len(text.split())

    def shown(self, tokens: Sequence[int] | np.ndarray) -> str:
        return " ".join(str(int(token)) for token in tokens)

    def text(self, tokens: Sequence[int] | np.ndarray) -> str:
        sequence = tuple(int(token) for token in tokens)
        reward = self.model.rewards.get(sequence)
        return " ".join(map(str, sequence)) if reward is None else f"Answer: {'yes' if reward else 'no'}"
