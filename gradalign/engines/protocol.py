"""What an engine promises. Anything that keeps it can sample for the pipeline."""

from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

from gradalign.types import Completion, CompletionRequest


@runtime_checkable
class Engine(Protocol):
    """Samples the student's completions of token-id prefixes.

    Equal seeds give equal tokens whatever the batching and the order, up to floating-point ties. Completions come in any
    order and carry the index of their request and of the seed in it. Another `kind` of engine gives other tokens for the same seeds.
    """

    kind: str

    def complete(self, requests: Sequence[CompletionRequest]) -> Iterator[Completion]: ...

    def rest(self) -> None:
        """Give back memory that forward passes may need; the next `complete` takes it again."""
        ...
