"""Batches that fit: when memory runs out, halve the batch, say so, and go on. And memory that is soon there: room for a tensor, and what
goes to a device without waiting for it.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from gradalign.types import GradalignError

log = logging.getLogger(__name__)
Result = TypeVar("Result")
Item = TypeVar("Item")


class Batches:
    """Work over `count` items in batches of `size`; the size shrinks for good when a batch does not fit into memory."""

    def __init__(self, size: int, what: str):
        self.size = max(1, size)
        self.what = what

    def over(
        self, count: int, work: Callable[[int, int], Result], weights: Sequence[int] = (), most: int = 0
    ) -> Iterator[Result]:
        """Yield `work(start, stop)` for consecutive batches, which weigh about as much, `most` and one item more if there are weights."""
        start, total, share = 0, np.cumsum(weights), _even_share(weights, most)
        while start < count:
            stop = min(count, start + self.size)
            if len(total):
                room = share + (total[start - 1] if start else 0)
                stop = min(stop, int(np.searchsorted(total, room, side="right")))
            try:
                result = work(start, stop)
            except (MemoryError, RuntimeError) as error:
                if not _out_of_memory(error):
                    raise
                self._halve(stop - start, error)
                continue
            start = stop
            yield result

    def streamed(
        self, items: Sequence[Item], work: Callable[[list[Item], int], Iterator[tuple[Item, Result]]]
    ) -> Iterator[Result]:
        """Yield the results of `work(items, size)`, which tells of each the item it is of.

        Where memory runs out, items that have no result yet begin again.
        """
        left = list(items)
        while left:
            done: set[int] = set()
            try:
                for item, result in work(left, self.size):
                    done.add(id(item))
                    yield result
                return
            except (MemoryError, RuntimeError) as error:
                if not _out_of_memory(error):
                    raise
                self._halve(min(self.size, len(left)), error)
            left = [item for item in left if id(item) not in done]

    def _halve(self, size: int, error: BaseException) -> None:
        if size == 1:
            raise GradalignError(
                f"out of memory in {self.what} even one at a time; use a smaller model or --dtype bfloat16"
            ) from error
        self.size = size // 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        log.warning("out of memory in %s; going on with batches of %d", self.what, self.size)


class Room:
    """Memory on the CPU that is taken once and lent to one after the other: to take so much anew takes as long as to fill it.

    No more than so many bytes are kept.
    """

    def __init__(self, most: int):
        self._free: list[Tensor] = []
        self._most = most

    @contextmanager
    def lent(self, numbers: int) -> Iterator[Tensor]:
        """Room for so many float32 numbers, which is nobody else's until the block ends."""
        room = self._free.pop() if self._free else torch.empty(0)
        if len(room) < numbers:
            room = vacant((numbers,), torch.float32, torch.device("cpu"))
        try:
            yield room[:numbers]
        finally:
            if room.nbytes + sum(kept.nbytes for kept in self._free) <= self._most:
                self._free.append(room)


def vacant(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor to be filled. On a CPU it is numpy's, which asks the system for large pages: thousands of small ones take longer to come
    than to fill.
    """
    if device.type != "cpu":
        return torch.empty(*shape, dtype=dtype, device=device)
    return torch.from_numpy(np.empty(shape, dtype=f"i{dtype.itemsize}")).view(dtype)


def sent(array: np.ndarray, device: torch.device) -> Tensor:
    """The array's numbers on a device. A GPU need not have done what it was given before: its queue never runs empty for that."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _even_share(weights: Sequence[int], most: int) -> int:
    """What a batch may weigh so that as few as there must be are filled evenly: never the last with little, which takes a GPU as long."""
    batches = -(-sum(weights) // max(1, most))
    return sum(weights) // max(1, batches) + max(weights, default=0)


def _out_of_memory(error: BaseException) -> bool:
    """CUDA raises its own class; the CPU allocator a RuntimeError that says so."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
