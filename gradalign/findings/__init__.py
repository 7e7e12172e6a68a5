"""Findings: tables computed from the stored rows alone, without torch."""

from gradalign.findings.break_down import BREAK_DOWNS, BreakDown, break_down
from gradalign.findings.claims import PaperClaims, paper_claims
from gradalign.findings.comparison import RunComparison, compare_runs
from gradalign.findings.configured import ConfigurationRanking, rank_configurations
from gradalign.findings.foretold import Horizon
from gradalign.findings.notes import CAVEAT
from gradalign.findings.overview import AlignmentFindings, alignment_findings
from gradalign.findings.paced import PacedDiagnostics, paced_diagnostics
from gradalign.findings.paths import PathComparison, compare_paths
from gradalign.findings.pbsd import RewardReweighting, reward_reweighting
from gradalign.findings.ranking import Ranking, paired_difference, rank
from gradalign.findings.screening import ContextScreening, screen_contexts
from gradalign.findings.standing import Standing, Tally, standing_of

__all__ = [
    "BREAK_DOWNS",
    "CAVEAT",
    "AlignmentFindings",
    "BreakDown",
    "ConfigurationRanking",
    "ContextScreening",
    "Horizon",
    "PacedDiagnostics",
    "PaperClaims",
    "PathComparison",
    "Ranking",
    "RewardReweighting",
    "RunComparison",
    "Standing",
    "Tally",
    "alignment_findings",
    "break_down",
    "compare_paths",
    "compare_runs",
    "paced_diagnostics",
    "paired_difference",
    "paper_claims",
    "rank",
    "rank_configurations",
    "reward_reweighting",
    "screen_contexts",
    "standing_of",
]
