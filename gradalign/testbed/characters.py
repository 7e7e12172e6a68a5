"""Texts of known probability, and what any tokenizer makes of them: for testing teachers that have another one than the student.

A chain over characters gives every text its probability. A tokenizer that takes the longest token that fits cuts each text in one way, so
the distribution of the next token after given ones is known exactly, under every vocabulary, for the very same texts.
"""

import itertools
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gradalign.models.spelling import Spelling

_END = "<end>"


class CharacterChain:
    """Texts over `alphabet`, each character, or the end, drawn by the one before it: in the last row of `probabilities` by none."""

    def __init__(self, alphabet: str, probabilities: Float[np.ndarray, "C1 C1"]):
        self.alphabet = alphabet
        self.probabilities = probabilities

    @classmethod
    def random(cls, alphabet: str, seed: int, sharpness: float = 1.0) -> "CharacterChain":
        """Normal logits; texts end with probability 0.1 at each place, but are never empty."""
        rng = np.random.default_rng(seed)
        size = len(alphabet)
        odds = np.exp(sharpness * rng.standard_normal((size + 1, size)))
        odds /= odds.sum(1, keepdims=True)
        end = np.where(np.arange(size + 1) < size, 0.1, 0.0)[:, None]
        return cls(alphabet, np.concatenate([odds * (1 - end), end], axis=1))

    def continuations(self, before: str, length: int) -> list[tuple[str, bool, float]]:
        """Every text of `length` characters, or shorter with its end, that may follow `before`, and its probability."""
        found = []
        for size in range(length + 1):
            for text in map("".join, itertools.product(self.alphabet, repeat=size)):
                places = [self.alphabet.index(char) for char in before[-1:] + text]
                path = places if before else [len(self.alphabet), *places]
                chance = float(np.prod([self.probabilities[a, b] for a, b in itertools.pairwise(path)]))
                if size == length:
                    found.append((text, False, chance))
                else:
                    found.append((text, True, chance * float(self.probabilities[path[-1], -1])))
        return found


class TokenView:
    """A LanguageModel: the chain's texts in tokens of a vocabulary that holds every character; the last token ends the text.

    After tokens that this tokenizer never writes, nothing is known: the row is NaN. The prompt means nothing, and the hidden states are the
    log-probabilities themselves.
    """

    def __init__(self, chain: CharacterChain, words: Sequence[str], name: str = "characters"):
        self.chain, self.words, self.name = chain, list(words), name
        self.vocabulary_size = len(words) + 1
        self.context_window = 1 << 20
        self._longest = max(map(len, words))
        self._row = lru_cache(maxsize=None)(self._next_probabilities)

    @property
    def spelling(self) -> Spelling:
        """What the tokens write."""
        end = len(self.words)
        words_V = [*(word.encode() for word in self.words), None]
        return Spelling(
            words_V, lambda texts: [self.cut(text) for text in texts], [*self.words, _END], {end: _END}, frozenset({end}), end
        )

    def cut(self, text: str) -> list[int]:
        """The text in tokens, the longest that fits first."""
        tokens = []
        while text:
            word = max((word for word in self.words if text.startswith(word)), key=len)
            tokens.append(self.words.index(word))
            text = text[len(word) :]
        return tokens

    def next_probabilities(self, tokens: Sequence[int]) -> Float[np.ndarray, " V"]:
        """Of the next token after these, by listing what may follow; tokens that begin farther back than the longest one do not matter."""
        return self._row(tuple(tokens[-self._longest :]))

    def _next_probabilities(self, tokens: tuple[int, ...]) -> Float[np.ndarray, " V"]:
        before = "".join(self.words[token] for token in tokens)
        found = np.zeros(self.vocabulary_size)
        for text, ended, chance in self.chain.continuations(before, self._longest):
            written = [*self.cut(before + text), *([len(self.words)] if ended else [])]
            if tuple(written[: len(tokens)]) == tokens:
                found[written[len(tokens)]] += chance
        return found / found.sum() if found.sum() else np.full_like(found, np.nan)

    def sample(self, rng: np.random.Generator, longest: int) -> np.ndarray:
        """Tokens of one text, up to so many."""
        tokens: list[int] = []
        while len(tokens) < longest and self.vocabulary_size - 1 not in tokens:
            tokens.append(int(rng.choice(self.vocabulary_size, p=self.next_probabilities(tokens))))
        return np.array(tokens)

    def hidden_states(self, prompt: Sequence[int], continuations: Sequence[np.ndarray]) -> list[Float[Tensor, "T H"]]:
        """Log-probabilities at the prefixes of each continuation."""
        rows = [[self.next_probabilities(tokens[:t].tolist()) for t in range(len(tokens))] for tokens in continuations]
        with np.errstate(divide="ignore"):
            return [torch.from_numpy(np.log(np.stack(row))) for row in rows]

    def logprobs(self, hidden_NH: Float[Tensor, "N H"]) -> Float[Tensor, "N V"]:
        return hidden_NH
