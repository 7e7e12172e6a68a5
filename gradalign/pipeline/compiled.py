"""`dense.look`, compiled for this machine's CPU where a process has so much to do that it pays.

The plain form is the definition, and tests hold the compiled one to it. Torch's compiler fuses the many walks over the vocabulary into a
few, at several seconds for each vocabulary and set of objectives. So it is asked once the plain form has cost about as much: whatever
else there is to do, no process takes longer than twice the shorter way. Where it cannot (no C++ compiler, a function of the user's own
that looks at numbers), the plain form goes on.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from gradalign.objectives import Objective
from gradalign.pipeline.dense import Look, look

log = logging.getLogger(__name__)
WORTH = 2e9  # numbers of arrays over the vocabulary that the plain form goes through first: 7 to 14 s, as long as it takes to compile
_Look = Callable[..., Look]
_forms: dict[tuple[Any, ...], "_Form"] = {}


def fastest_look(
    objectives: Sequence[Objective],
    student_NV: Float[Tensor, "N V"],
    teacher_NV: Float[Tensor, "N V"],
    best_N: Int[Tensor, " N"],
    *sampled_NV: Float[Tensor, "N V"],
) -> Look:
    """`look` in whichever form is faster from here on."""
    nodes, vocabulary = student_NV.shape
    if student_NV.is_cuda or nodes == 1:  # torch's compiler takes a single row for a shape of its own
        return look(objectives, student_NV, teacher_NV, best_N, *sampled_NV)
    key = (*(objective.name for objective in objectives), vocabulary, student_NV.dtype)
    return _forms.setdefault(key, _Form(objectives))(student_NV, teacher_NV, best_N, *sampled_NV)


class _Form:
    """The look for one set of objectives and one vocabulary: plain until it has gone through `WORTH` numbers."""

    def __init__(self, objectives: Sequence[Objective]):
        self._plain: _Look = partial(look, objectives)
        self._arrays, self._numbers = 2 + len(objectives), 0
        self._fast: _Look | None = None
        self._making = threading.Lock()

    def __call__(self, *arrays: Tensor) -> Look:
        self._numbers += self._arrays * arrays[0].numel()
        if self._numbers < WORTH:
            return self._plain(*arrays)
        try:
            with self._making:
                self._fast = self._fast or _compiled(self._plain, arrays)
            return self._fast(*arrays)
        except Exception as error:  # a compiler fails in many ways, and none is the run's
            log.info("the pass over the vocabulary is not compiled: %s", error)
            self._fast = self._plain
            return self._plain(*arrays)


def _compiled(plain: _Look, arrays: Sequence[Tensor]) -> _Look:
    """One graph for any number of nodes; its calls are recorded as they are made, whatever Python an objective is written in."""
    shape: list[pytree.TreeSpec] = []

    def leaves(*arrays: Tensor) -> list[Tensor | None]:
        found, spec = pytree.tree_flatten(plain(*arrays))
        shape[:] = [spec]
        return found

    fast = torch.compile(make_fx(leaves, tracing_mode="symbolic")(*arrays), fullgraph=True)

    def of(*arrays: Tensor) -> Look:
        for array in arrays:
            torch._dynamo.mark_dynamic(array, 0)
        return pytree.tree_unflatten(fast(*arrays), shape[0])

    return of
