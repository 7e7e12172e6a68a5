"""Findings: tables computed from the stored rows alone, without torch."""

from gradalign.findings.ranking import CAVEAT, Ranking, paired_difference, rank

__all__ = ["CAVEAT", "Ranking", "paired_difference", "rank"]
