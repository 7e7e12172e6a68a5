"""Memory at a real vocabulary: no array of (tokens of a rollout x vocabulary) exists at any time.

Runs sampling and the pass over the vocabulary (two teachers, four objectives) on a random model of small width over 151,936
tokens, one process for each rollout length, and watches every tensor that torch makes and the process's peak memory.
The last columns are what one array of (tokens x vocabulary) would hold. Exits 1 if any array is as large as that.

Blocks over 60 kB are taken from the system one by one (MALLOC_MMAP_THRESHOLD_), so that the peak shows what is live and not how
glibc's heap fragments; that costs time, which is not what is measured here.

    python benchmarks/memory.py            # lengths 128 to 1,024
    SMALL=1 python benchmarks/memory.py    # length 128
"""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import Qwen3Config, Qwen3ForCausalLM

from gradalign.engines import HFEngine
from gradalign.models import CausalLanguageModel
from gradalign.objectives import parse_objective
from gradalign.pipeline.survey import SurveyRequest, survey_nodes
from gradalign.tree import build_tree
from gradalign.types import CompletionRequest

VOCABULARY = 151_936
ROLLOUTS = 2
RESULT = Path(__file__).parent / "results" / "memory.json"


class LargestTensor(TorchDispatchMode):
    """Remembers the shape of the largest tensor that any torch operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.shape: tuple[int, ...] = ()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.numel() > np.prod(self.shape, initial=1):
                self.shape = tuple(leaf.shape)
        return result


def small_model(window: int) -> CausalLanguageModel:
    config = Qwen3Config(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=1,
        num_key_value_heads=1, head_dim=32, max_position_embeddings=window, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    return CausalLanguageModel(Qwen3ForCausalLM(config).eval(), "random", VOCABULARY)


def peak_mebibytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(length: int) -> dict[str, Any]:
    """Sample rollouts of `length` tokens and survey their nodes; the largest tensor and the rise of peak memory."""
    model = small_model(length + 16)
    before = peak_mebibytes()
    objectives = [parse_objective(spec) for spec in ("reverse_kl", "forward_kl", "jsd:0.5", "sampled_kl")]
    with LargestTensor() as watch:
        request = CompletionRequest((1, 2, 3), tuple(range(ROLLOUTS)), length)
        sequences = [c.tokens for c in HFEngine(model, frozenset({VOCABULARY - 1})).complete([request])]
        teachers = {"one": (model, (4, 5, 6, 7)), "two": (model, (8, 9))}
        survey = survey_nodes(
            SurveyRequest(build_tree(sequences), sequences, np.zeros(len(sequences)), (model, (1, 2, 3)), teachers),
            objectives,
            4,
        )
    return {
        "length": length,
        "nodes": len(survey.nodes),
        "largest": list(watch.shape),
        "largest_cells": int(np.prod(watch.shape)),
        "forbidden_cells": length * VOCABULARY,
        "peak_rise_mib": peak_mebibytes() - before,
        "one_rollout_mib": length * VOCABULARY * 4 / 2**20,
        "all_rollouts_mib": len(survey.nodes) * VOCABULARY * 4 / 2**20,
    }


def main() -> int:
    if len(sys.argv) > 1:
        print(json.dumps(measure(int(sys.argv[1]))))
        return 0
    lengths = [128] if os.environ.get("SMALL") == "1" else [128, 256, 512, 1024]
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "60000", "OMP_NUM_THREADS": "1"}
    rows = []
    for length in lengths:
        command = [sys.executable, __file__, str(length)]
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
    table = Table(title=f"Vocabulary {VOCABULARY:,}, {ROLLOUTS} rollouts, 2 teachers, 4 objectives")
    for head in ("tokens", "nodes", "largest tensor", "cells", "tokens x V", "peak rise MiB", "one (T, V) MiB", "(N, V) MiB"):
        table.add_column(head, justify="right")
    for row in rows:
        counts = (f"{row[key]:,}" for key in ("largest_cells", "forbidden_cells"))
        sizes = (f"{row[key]:,.0f}" for key in ("peak_rise_mib", "one_rollout_mib", "all_rollouts_mib"))
        table.add_row(f"{row['length']:,}", f"{row['nodes']:,}", str(tuple(row["largest"])), *counts, *sizes)
    Console().print(table)
    if os.environ.get("SMALL") != "1":
        RESULT.write_text(json.dumps(rows, indent=2) + "\n")
    return int(any(row["largest_cells"] >= row["forbidden_cells"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
