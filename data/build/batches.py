"""Turn training examples into padded tensors: tokens, and the few likely tokens at each place of an answer."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from examples import Example, stream_examples
from torch import Tensor
from transformers import PreTrainedTokenizerFast

MOST_LIKELY = 4
BATCHES_IN_POOL = 16


@dataclass(frozen=True)
class Batch:
    """`tokens` (B, T); of N answer tokens the flat `places` they are read at, `likely` and `shares` (N, 4)."""

    tokens: Tensor
    places: Tensor
    likely: Tensor
    shares: Tensor


@dataclass(frozen=True)
class _Row:
    tokens: list[int]
    start: int
    likely: list[list[int]]
    shares: list[list[float]]


def stream_batches(
    tokenizer: PreTrainedTokenizerFast, rates: dict[str, float], held_out: frozenset[str], seed: int, size: int
) -> Iterator[Batch]:
    """Endless batches of rows of like length."""
    rng = random.Random(seed)
    examples = stream_examples(rates, held_out, rng)
    while True:
        rows = _encode(tokenizer, list(islice(examples, size * BATCHES_IN_POOL)))
        rows.sort(key=lambda row: len(row.tokens))
        groups = [rows[index : index + size] for index in range(0, len(rows), size)]
        rng.shuffle(groups)
        yield from map(_collate, groups)


def _encode(tokenizer: PreTrainedTokenizerFast, examples: list[Example]) -> list[_Row]:
    prompts = [_prompt(tokenizer, example.message) for example in examples]
    prefixes = tokenizer(prompts, add_special_tokens=False)["input_ids"]
    ids = dict(zip(words := sorted(_words(examples)), _ids(tokenizer, words), strict=True))
    return [_row(prefix, example, ids) for prefix, example in zip(prefixes, examples, strict=True)]


def _prompt(tokenizer: PreTrainedTokenizerFast, message: str) -> str:
    chat = [{"role": "user", "content": message}]
    return str(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True))


def _row(prefix: list[int], example: Example, ids: dict[str, int]) -> _Row:
    answer = [ids[slot.word] for slot in example.slots]
    likely, shares = [], []
    for slot in example.slots:
        padding = MOST_LIKELY - len(slot.target)
        likely.append([ids[word] for word in slot.target] + [0] * padding)
        shares.append([*slot.target.values()] + [0.0] * padding)
    return _Row(prefix + answer[:-1], len(prefix) - 1, likely, shares)


def _collate(rows: list[_Row]) -> Batch:
    width = max(len(row.tokens) for row in rows)
    tokens = torch.zeros(len(rows), width, dtype=torch.long)
    places: list[int] = []
    for index, row in enumerate(rows):
        tokens[index, : len(row.tokens)] = torch.tensor(row.tokens)
        places += range(index * width + row.start, index * width + len(row.tokens))
    likely = torch.tensor([entry for row in rows for entry in row.likely])
    shares = torch.tensor([entry for row in rows for entry in row.shares])
    return Batch(tokens, torch.tensor(places), likely, shares)


def _words(examples: list[Example]) -> set[str]:
    return {word for example in examples for slot in example.slots for word in (slot.word, *slot.target)}


def _ids(tokenizer: PreTrainedTokenizerFast, words: list[str]) -> list[int]:
    encoded = tokenizer(words, add_special_tokens=False)["input_ids"]
    if any(len(ids) != 1 for ids in encoded):
        raise ValueError("every word of an answer must be one token; add it to vocabulary.py")
    return [ids[0] for ids in encoded]
