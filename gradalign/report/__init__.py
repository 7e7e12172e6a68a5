"""One HTML file that tells what a run found, with a token explorer. Reads stored rows only; knows no torch."""

from gradalign.report.page import Report, write_report

__all__ = ["Report", "write_report"]
