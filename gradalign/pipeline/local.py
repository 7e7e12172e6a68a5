"""The executor of this process: one part after the other."""

from collections.abc import Iterator, Sequence

from gradalign.pipeline.cast import Cast
from gradalign.pipeline.config import RunConfig
from gradalign.pipeline.faults import QuestionFault, described
from gradalign.pipeline.progress import Progress
from gradalign.pipeline.work import Done, Facts, Failed, Meter, Task, carry_out
from gradalign.store import RunFolder
from gradalign.types import GradalignError


class LocalExecutor:
    """Scores parts with the models that it is given."""

    def __init__(self, cast: Cast):
        self.cast = cast
        self.facts = Facts.of(cast)

    def run(self, folder: RunFolder, config: RunConfig, tasks: Sequence[Task], progress: Progress) -> Iterator[Done | Failed]:
        """Score tasks in order; what the user can mend ends it, anything else is told as a failure."""
        for task in tasks:
            meter = Meter(progress, task.units)
            yield attempted(task, folder, config, self.cast, meter)
            meter.complete()

    def close(self) -> None:
        """There are no workers."""


def attempted(
    task: Task, folder: RunFolder, config: RunConfig, cast: Cast, progress: Progress, worker: str = ""
) -> Done | Failed:
    """What came of a task; raises what the user can mend."""
    try:
        return carry_out(task, folder, config, cast, progress, worker)
    except GradalignError:
        raise
    except QuestionFault as fault:
        return Failed(task, fault.reason, fault.question, fault.__cause__)
    except Exception as error:
        return Failed(task, described(error), error=error)
