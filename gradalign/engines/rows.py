"""Requests taken apart into single completions."""

from collections.abc import Sequence
from dataclasses import dataclass

from gradalign.types import CompletionRequest


@dataclass(frozen=True)
class Row:
    """One completion to sample: where it came from, its seed and its length limit."""

    request: int
    replicate: int
    prefix: tuple[int, ...]
    seed: int
    max_tokens: int


def rows_of(requests: Sequence[CompletionRequest]) -> list[Row]:
    """Every completion of the requests, longest prefixes first, those of one request together."""
    rows = [
        Row(index, replicate, request.prefix, seed, request.max_tokens)
        for index, request in enumerate(requests)
        for replicate, seed in enumerate(request.seeds)
    ]
    return sorted(rows, key=lambda row: (-len(row.prefix), row.request, row.replicate))
