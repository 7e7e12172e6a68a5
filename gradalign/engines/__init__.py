"""Where completions come from: one protocol, and what keeps it. Knows token ids and seeds; nothing of trees or text."""

from gradalign.engines.choose import ENGINES, student_engine, suited_engine
from gradalign.engines.hf import BATCH, HFEngine
from gradalign.engines.protocol import Engine
from gradalign.engines.vllm import VLLMEngine

__all__ = ["BATCH", "ENGINES", "Engine", "HFEngine", "VLLMEngine", "student_engine", "suited_engine"]
