"""The executor that a run is carried out by, for as long as it is needed."""

from collections.abc import Iterator
from contextlib import contextmanager

from gradalign.pipeline.cast import Cast, load_cast
from gradalign.pipeline.config import Execution, RunConfig
from gradalign.pipeline.local import LocalExecutor
from gradalign.pipeline.on_processes import ProcessExecutor, processes
from gradalign.pipeline.work import Executor
from gradalign.store import Place


@contextmanager
def engaged(config: RunConfig, execution: Execution, place: Place, cast: Cast | None = None) -> Iterator[Executor]:
    """This process, forks of it, or the workers of a cluster, with the models loaded, for a run at `place`.

    `cast` brings models of one's own.
    """
    executor = _executor(config, execution, place, cast)
    try:
        yield executor
    finally:
        executor.close()


def _executor(config: RunConfig, execution: Execution, place: Place, cast: Cast | None) -> Executor:
    if execution.executor == "ray":
        from gradalign.pipeline.on_ray import RayExecutor

        return RayExecutor(config, execution, cast)
    cast = cast or load_cast(config, execution)
    count = processes(cast, execution.workers, place)
    return ProcessExecutor(cast, count) if count > 1 else LocalExecutor(cast)
