"""What `gradalign foretell` costs: a configuration's first step and its slopes against one plain epoch on the same rollouts.

    python benchmarks/first_steps_cost.py                                    # SmolLM2-135M's shape, on the CPU
    python benchmarks/first_steps_cost.py --shape qwen3-0.6b --device cuda   # Qwen3-0.6B's, on a GPU
    SMALL=1 python benchmarks/first_steps_cost.py                            # fewer rollouts and layers; keeps nothing

The model has random weights in the shape of a real one, in float32, as foretelling wants them. A run folder of made-up rollouts, right and
wrong, stands for a scored run: what is asked is what the work costs and not what it finds. The baseline is a forward and a backward pass of
every rollout, with the cross-entropy of its tokens, which is the least that any training on them takes.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from machine import machine
from rich.console import Console
from rich.table import Table
from side_by_side import Comparison, tell
from synthetic import write_run
from transformers import AutoModelForCausalLM as Auto
from vocabulary_pass import SHAPES, status_kib

from gradalign.configurations import QuestionWeighting, TokenWeighting
from gradalign.first_step import Foretelling, Unit
from gradalign.first_step.student import Trainee
from gradalign.models import CausalLanguageModel, LoadedModel, LoadOptions, load_model
from gradalign.pipeline import Cast, Member, Silent

SMALL = os.environ.get("SMALL") == "1"
BATCH = 32
UNIT = Unit("ctx:correct_demo", "reverse_kl", QuestionWeighting(), TokenWeighting())


def known_cast(shape: str, device: str) -> Cast:
    """A student of random weights, which also teaches."""
    torch.manual_seed(0)
    with torch.device(device):
        model = Auto.from_config(SHAPES[shape], dtype=torch.float32).eval()
    codec = load_model("builtin:small", LoadOptions(device="cpu")).codec
    student = CausalLanguageModel(model, shape, SHAPES[shape].vocab_size)
    return Cast(Member(LoadedModel(student, codec, shape), None), ())  # pyright: ignore[reportArgumentType]: nothing is sampled


def plain_epoch(work: Foretelling) -> None:
    """Forward and backward passes over every rollout, a question's in a batch, cross-entropy of its tokens."""
    trainee = work.trainee
    with torch.enable_grad():
        for taught in work.taught:
            prompt, rollouts = list(taught.prompt), [tokens.tolist() for tokens in taught.rollouts.tokens]
            ids = torch.tensor([prompt + tokens for tokens in rollouts], device=trainee.model.device)
            logits = trainee.body(input_ids=ids, use_cache=False, logits_to_keep=len(rollouts[0]) + 1).logits[:, :-1]
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, len(prompt) :].flatten())
            torch.autograd.grad(loss, trainee.parameters)


def measured(work: Callable[[], Any], device: str) -> dict[str, float]:
    """Seconds, and the peak of memory in GiB: what torch holds on a GPU, else what the process holds."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from here
    began = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    took = time.perf_counter() - began
    return {"s": took, "gib": (torch.cuda.max_memory_allocated() if device == "cuda" else status_kib("VmHWM") * 1024) / 2**30}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="smollm2-135m")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--questions", type=int, default=4 if SMALL else 8, help="with 16 rollouts each, of --length tokens")
    parser.add_argument("--length", type=int, default=10 if SMALL else 64)
    parser.add_argument("--repeats", type=int, default=1 if SMALL else 3)
    parser.add_argument("--out", type=Path, help="where to keep the figures")
    chosen = parser.parse_args()
    cast = known_cast(chosen.shape, chosen.device)
    student = cast.student.model.language_model
    assert isinstance(student, CausalLanguageModel)
    with tempfile.TemporaryDirectory() as place:
        run = write_run(Path(place) / "run", chosen.questions, 4, length=chosen.length)
        work = Foretelling(run, cast, Trainee(student), 16, BATCH)
        told, plain = partial(work.rows, UNIT, Silent()), partial(plain_epoch, work)
        for each in () if SMALL else (plain, told):  # not counted
            each()
        turns = [(measured(told, chosen.device), measured(plain, chosen.device)) for _ in range(chosen.repeats)]
    weights = sum(p.numel() * p.element_size() for p in student.model.parameters()) / 2**30
    row = {
        "tokens": chosen.questions * 16 * chosen.length,
        "seconds": [ours["s"] for ours, _ in turns],
        "baseline_seconds": [theirs["s"] for _, theirs in turns],
        "weights_gib": weights,
        "peak_gib": max(ours["gib"] for ours, _ in turns),
        "baseline_peak_gib": max(theirs["gib"] for _, theirs in turns),
    }
    what = f"first steps of one configuration, {chosen.shape}, T = {row['tokens']:,}"
    tell([Comparison(what, "s", row["seconds"], "a plain epoch", row["baseline_seconds"])])
    table = Table(title=what)
    for head in ("ours s", "plain epoch s", "ratio", "weights GiB", "ours peak GiB", "epoch's peak GiB"):
        table.add_column(head, justify="right")
    ours, theirs = (statistics.median(row[name]) for name in ("seconds", "baseline_seconds"))
    gib = (f"{row[name]:.2f}" for name in ("weights_gib", "peak_gib", "baseline_peak_gib"))
    table.add_row(f"{ours:.2f}", f"{theirs:.2f}", f"{ours / theirs:.2f}", *gib)
    Console(width=120).print(table)
    if chosen.out is not None:
        chosen.out.write_text(json.dumps({"machine": machine(chosen.device), "shape": chosen.shape, **row}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
