"""Numbers of chunks of nodes, fetched from where they were made and joined while the next are made."""

from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor

Coming = Callable[[], list[dict[str, np.ndarray]]]
"""Numbers of one or several chunks of nodes, which may still be on their way from a GPU: called, it waits for them."""

_LARGE = ("direction_CONK", "lift_CONK")  # kept in single precision: they hold most of the memory
_NODE_AXIS = {
    "teacher_logprobs_CNK": 1, "direction_CONK": 2, "direction_norm2_CON": 2, "lift_CONK": 2, "lift2_CON": 2, "pull_CON": 2,
    "expected_norm2_CON": 2, "ratio2_CN": 1, "divergence_CND": 1, "tail_CN": 1,
}  # fmt: skip
_NOTHING = {"kept_NK": -1}  # where there is no child; 0 in all other arrays


class Joined:
    """Numbers of chunks in arrays for all nodes: kept apart, they would lie between the large arrays that come and go, and hold memory.

    Arrays over kept tokens are `children` + `ranked` wide. A chunk whose nodes have fewer children has no columns for more: there the
    token is -1, and what is told of it 0.
    """

    def __init__(self, nodes: int, children: int, ranked: int):
        self.nodes, self.children, self.ranked, self.done = nodes, children, ranked, 0
        self.arrays: dict[str, np.ndarray] = {}
        self.sums = {"step": np.zeros(()), "shift": np.zeros(())}  # over chunks: each is as long as the numbers of many nodes

    def add(self, chunks: Iterable[Coming]) -> None:
        """Put the numbers of chunk behind chunk, each when the next is on its way: a GPU has always something to do."""
        before: Coming = list
        for after in chunks:
            self._put(before)
            before = after
        self._put(before)

    def _put(self, coming: Coming) -> None:
        for chunk in coming():
            for name in self.sums:
                self.sums[name] = self.sums[name] + chunk.pop(name)
            children = chunk["kept_NK"].shape[1] - self.ranked
            there_NS = chunk["kept_NK"][:, :children] >= 0
            for name, part in chunk.items():
                axis, kept = _NODE_AXIS.get(name, 0), name.endswith("K")
                if name not in self.arrays:
                    after = (*part.shape[axis + 1 : -1], self.children + self.ranked) if kept else part.shape[axis + 1 :]
                    self.arrays[name] = np.zeros((*part.shape[:axis], self.nodes, *after), part.dtype)
                into = self.arrays[name][(slice(None),) * axis + (slice(self.done, self.done + len(there_NS)),)]
                if not kept:
                    into[...] = part
                    continue
                into[..., self.children :] = part[..., children:]
                into[..., :children] = np.where(there_NS, part[..., :children], _NOTHING.get(name, 0))
                if name in _NOTHING:
                    into[..., children : self.children] = _NOTHING[name]
            self.done += len(there_NS)


def fetched(values: dict[str, Tensor]) -> Coming:
    """Set out for here at once; who calls what is returned waits until they have come, and makes them longer."""
    coming = {name: value.to("cpu", non_blocking=True) for name, value in values.items()}
    queues = {value.device: torch.cuda.current_stream(value.device) for value in values.values() if value.is_cuda}
    events = [queue.record_event() for queue in queues.values()]

    def arrays() -> list[dict[str, np.ndarray]]:
        for event in events:
            event.synchronize()
        return [{name: as_array(value, np.float32 if name in _LARGE else np.float64) for name, value in coming.items()}]

    return arrays


def as_array(value: Tensor, dtype: type) -> np.ndarray:
    """As numpy has it, longer where it is not of integers."""
    array = value.cpu().numpy()
    return array if value.dtype == torch.int64 else array.astype(dtype, copy=False)
