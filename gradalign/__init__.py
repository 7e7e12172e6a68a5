"""gradalign: does a teacher push a student toward success? Token-level answers before any training run.

run = gradalign.score(student="builtin:medium", teachers=["ctx:correct_demo", "ctx:wrong_demo"])
gradalign.rank(run).frame
gradalign.load_run("runs/...").alignment
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradalign.api import score
    from gradalign.configurations import Configuration, load_configurations
    from gradalign.findings import (
        ConfigurationRanking,
        Ranking,
        alignment_findings,
        compare_paths,
        compare_runs,
        rank,
        rank_configurations,
        screen_contexts,
    )
    from gradalign.first_step import foretell
    from gradalign.handover import Export, export_configuration
    from gradalign.report import write_report
    from gradalign.store import Run, load_run
    from gradalign.types import GradalignError

__version__ = "0.1.0"
__all__ = [
    "Configuration",
    "ConfigurationRanking",
    "Export",
    "GradalignError",
    "Ranking",
    "Run",
    "__version__",
    "alignment_findings",
    "compare_paths",
    "compare_runs",
    "export_configuration",
    "foretell",
    "load_configurations",
    "load_run",
    "rank",
    "rank_configurations",
    "score",
    "screen_contexts",
    "write_report",
]

_HOMES = {
    "Configuration": "gradalign.configurations",
    "ConfigurationRanking": "gradalign.findings",
    "Export": "gradalign.handover",
    "GradalignError": "gradalign.types",
    "Ranking": "gradalign.findings",
    "Run": "gradalign.store",
    "alignment_findings": "gradalign.findings",
    "compare_paths": "gradalign.findings",
    "compare_runs": "gradalign.findings",
    "foretell": "gradalign.first_step",
    "export_configuration": "gradalign.handover",
    "load_configurations": "gradalign.configurations",
    "load_run": "gradalign.store",
    "rank": "gradalign.findings",
    "rank_configurations": "gradalign.findings",
    "score": "gradalign.api",
    "screen_contexts": "gradalign.findings",
    "write_report": "gradalign.report",
}


def __getattr__(name: str) -> Any:
    """Import on first use, so that `import gradalign` and `gradalign --help` need no torch."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'gradalign' has no attribute {name!r}")
