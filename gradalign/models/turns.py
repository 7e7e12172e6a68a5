"""Models that take turns in memory: at most one of those that share a `Turn` has its layers on the device.

Their output layers stay, since the log-probabilities of all teachers at a node are needed together. Knows nothing of runs.
"""

import gc
from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from gradalign.models.causal import CausalLanguageModel, Origin, output_layer
from gradalign.models.room import free_bytes, held_bytes
from gradalign.models.weights import quantization_method


class Turn:
    """Whose turn it is, and how often layers were brought in."""

    def __init__(self) -> None:
        self.holder: InTurn | None = None
        self.loads = 0

    def take(self, model: "InTurn") -> None:
        """Send the layers of another model away, and bring in those of this one."""
        if self.holder is not model:
            self.clear()
            model.enter()
            self.given(model)

    def given(self, model: "InTurn") -> None:
        """Note that the layers of this model are there."""
        self.holder = model
        self.loads += 1

    def clear(self) -> None:
        """Send away whatever layers are there."""
        if self.holder is not None:
            self.holder.leave()
            self.holder = None


class InTurn(CausalLanguageModel):
    """A CausalLanguageModel whose layers come when they are asked for.

    While another has its turn they wait in main memory, where they were on a GPU and there is room for them; else they are dropped, and
    `read` from their files again.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        name: str,
        vocabulary_size: int,
        temperature: float,
        batch_size: int,
        origin: Origin,
        turn: Turn,
        read: Callable[[], PreTrainedModel],
    ):
        super().__init__(model, name, vocabulary_size, temperature, batch_size, origin)
        self.turn, self._read = turn, read
        self._movable = self.device.type == "cuda" and not origin.sharded and quantization_method(model.config) is None
        turn.given(self)

    @property
    def model(self) -> PreTrainedModel:
        """The whole model, brought in if another has its turn."""
        self.turn.take(self)
        assert self._body is not None
        return self._body

    @property
    def present(self) -> bool:
        """Has it its turn?"""
        return self.turn.holder is self

    def enter(self) -> None:
        """Bring the layers to the device."""
        if self._body is None:
            self._body = self._read()
            self.head = output_layer(self._body)
        else:
            _move_layers(self._body, self.head, self.device)

    def leave(self) -> None:
        """Take the layers from the device."""
        assert self._body is not None
        room = free_bytes(torch.device("cpu")) if self._movable else None
        if room is not None and room > 2 * held_bytes(self._body):
            _move_layers(self._body, self.head, torch.device("cpu"))
        else:
            self._body = None
            gc.collect()  # hooks and adapters refer to each other in circles
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def _move_layers(model: PreTrainedModel, head: torch.nn.Module, device: torch.device) -> None:
    """Move every parameter but those of the output layer, which embeddings may share."""
    for parameter in _layers(model, head):
        parameter.data = parameter.data.to(device)


def _layers(model: PreTrainedModel, head: torch.nn.Module) -> list[torch.nn.Parameter]:
    staying = {id(parameter) for parameter in head.parameters()}
    return [parameter for parameter in model.parameters() if id(parameter) not in staying]
