"""Findings: tables computed from the stored rows alone, without torch."""

from gradalign.findings.configured import ConfigurationRanking, rank_configurations
from gradalign.findings.ranking import CAVEAT, Ranking, paired_difference, rank
from gradalign.findings.standing import Standing, standing_of

__all__ = [
    "CAVEAT",
    "ConfigurationRanking",
    "Ranking",
    "Standing",
    "paired_difference",
    "rank",
    "rank_configurations",
    "standing_of",
]
