"""Models whose every number is known exactly, as a real engine and language model: for testing estimators against the truth."""

from gradalign.testbed.tabular import TabularCodec, TabularModel

__all__ = ["TabularCodec", "TabularModel"]
