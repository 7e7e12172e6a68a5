"""How the pipeline tells what it is doing, to whoever listens. Knows no terminal."""

from typing import Protocol, runtime_checkable


@runtime_checkable
class Progress(Protocol):
    """Told of the work ahead in units (a completion, or a forward pass as long as one) and of each unit done."""

    def begin(self, units: int, done: int) -> None: ...

    def stage(self, what: str) -> None: ...

    def advance(self, units: int) -> None: ...


class Silent:
    """Progress that nobody watches."""

    def begin(self, units: int, done: int) -> None: ...

    def stage(self, what: str) -> None: ...

    def advance(self, units: int) -> None: ...
