"""One question from rollouts to rows, and the executor over questions. Ties the pure rooms to models, engines and the store."""

from gradalign.pipeline.budget import Budget, Effort, parse_budget
from gradalign.pipeline.cast import Cast, Member, load_cast
from gradalign.pipeline.config import Execution, RunConfig, needs_teacher_rollouts
from gradalign.pipeline.engage import engaged
from gradalign.pipeline.execute import data_fingerprint, execute
from gradalign.pipeline.forecast import Forecast, forecast
from gradalign.pipeline.local import LocalExecutor
from gradalign.pipeline.on_processes import processes
from gradalign.pipeline.preview import Preview, Sight, preview
from gradalign.pipeline.progress import Progress, Silent
from gradalign.pipeline.work import Done, Executor, Facts, Failed, Task

__all__ = [
    "Budget",
    "Cast",
    "Done",
    "Effort",
    "Execution",
    "Executor",
    "Facts",
    "Failed",
    "Forecast",
    "LocalExecutor",
    "Member",
    "Preview",
    "Progress",
    "RunConfig",
    "Sight",
    "Silent",
    "Task",
    "data_fingerprint",
    "engaged",
    "execute",
    "forecast",
    "load_cast",
    "needs_teacher_rollouts",
    "parse_budget",
    "preview",
    "processes",
]
