"""Where completions come from: one protocol, and what keeps it. Knows token ids and seeds; nothing of trees or text."""

from gradalign.engines.hf import HFEngine
from gradalign.engines.protocol import Engine

__all__ = ["Engine", "HFEngine"]
