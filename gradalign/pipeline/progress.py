"""How the pipeline tells what it is doing, to whoever listens. Knows no terminal."""

from typing import Protocol, runtime_checkable

from gradalign.findings import Standing


@runtime_checkable
class Progress(Protocol):
    """Told of the work ahead in units (a completion, or a forward pass as long as one) and of each unit done."""

    def begin(self, units: int, done: int) -> None: ...

    def stage(self, what: str) -> None: ...

    def advance(self, units: int) -> None: ...

    def standing(self, standing: Standing, spent: tuple[int, int]) -> None:
        """Told after each part where teachers and objectives stand, and of the rollouts and tokens sampled so far."""
        ...


class Silent:
    """Progress that nobody watches."""

    def begin(self, units: int, done: int) -> None: ...

    def stage(self, what: str) -> None: ...

    def advance(self, units: int) -> None: ...

    def standing(self, standing: Standing, spent: tuple[int, int]) -> None: ...
