"""The pass over the vocabulary against bare forward passes, and against whole arrays of log-probabilities.

    python benchmarks/vocabulary_pass.py                                     # SmolLM2-135M's shape, on the CPU
    python benchmarks/vocabulary_pass.py --shape qwen3-0.6b --device cuda    # Qwen3-0.6B's, on a GPU
    SMALL=1 python benchmarks/vocabulary_pass.py                             # fewer tokens and layers; keeps nothing

Models have random weights in the shape of real ones, student and teachers their own each. Measured side by side, one after the other,
several times over; given are medians, and the least and largest.

1. `survey`: a question's whole survey (forward passes, all teachers and objectives, candidates, steps) over the same models' plain
   forward passes with logits, on the same tokens. The rollouts share nothing but the prompt, so that no pass is saved. Bar: 1.15.
   Plain passes are transformers', as a user would run them; the survey's own may be faster (on a GPU its norms are one kernel each).
   On the CPU the survey's time without its kernel (as where there is no C++ compiler), and what it takes to compile that, are told beside.
2. `whole arrays`: from the same hidden states, one objective (generalised JSD, GKD eq. 1), the numbers of the survey against both (T x V)
   arrays of log-softmax and the loss on them, nothing but its value. Peak memory is the rise of the process's over what it
   held before, each in a process of its own (on a GPU: of what torch allocated). Bars: faster, and a fifth of the memory.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import machine
from rich.console import Console
from rich.table import Table
from side_by_side import Comparison, tell
from torch import Tensor
from transformers import AutoModelForCausalLM as Auto
from transformers import LlamaConfig, PreTrainedModel, Qwen3Config

from gradalign.models import CausalLanguageModel
from gradalign.objectives import parse_objective
from gradalign.pipeline import native, survey
from gradalign.pipeline.survey import SurveyRequest, survey_nodes, survey_states
from gradalign.tree import build_tree

SMALL = os.environ.get("SMALL") == "1"
RESULT = Path(__file__).parent / "results" / "vocabulary_pass.json"
SHAPES = {
    "smollm2-135m": LlamaConfig(
        vocab_size=49_152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, max_position_embeddings=8192, tie_word_embeddings=True,
    ),
    "qwen3-0.6b": Qwen3Config(
        vocab_size=151_936, hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16,
        num_key_value_heads=8, head_dim=128, max_position_embeddings=40_960, tie_word_embeddings=True,
    ),
}  # fmt: skip
CASES = {
    "1 teacher, 2 objectives": (1, ("reverse_kl", "forward_kl")),
    "2 teachers, 4 objectives": (2, ("reverse_kl", "forward_kl", "jsd:0.5", "sampled_kl")),
}
if SMALL:  # a few layers say whether it runs
    for config in SHAPES.values():
        config.num_hidden_layers = 2
JSD = ("jsd:0.5",)
AT_ONCE = {"cpu": 4, "cuda": 32}  # rollouts in a forward pass
PROMPT = tuple(range(3, 35))
CANDIDATES = 4


def random_model(shape: str, seed: int, device: str) -> CausalLanguageModel:
    """A model whose logits spread as those of a trained one do (entropies of a few nats), in bfloat16 on a GPU."""
    torch.manual_seed(seed)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    with torch.device(device):
        model = Auto.from_config(SHAPES[shape], dtype=dtype).eval()
        model.get_output_embeddings().weight.data.mul_(3 / (0.02 * math.sqrt(SHAPES[shape].hidden_size)))
    return CausalLanguageModel(model, f"{shape} {seed}", SHAPES[shape].vocab_size, batch_size=AT_ONCE[device])


def random_rollouts(vocabulary: int, tokens: int) -> list[np.ndarray]:
    """Rollouts of equal length that part at their first token."""
    length = min(512, tokens // 2)
    rng = np.random.default_rng(0)
    found = [rng.integers(0, vocabulary, length) for _ in range(tokens // length)]
    for i, rollout in enumerate(found):
        rollout[0] = i
    return found


@torch.inference_mode()
def bare(models: Sequence[PreTrainedModel], rollouts: list[np.ndarray], device: str) -> None:
    """Plain forward passes with the logits that predict each rollout's tokens, as many rollouts at once as the survey takes."""
    ids = torch.from_numpy(np.stack([np.concatenate([PROMPT, rollout]) for rollout in rollouts])).to(device)
    for model in models:
        for batch in ids.split(AT_ONCE[device]):
            model(input_ids=batch[:, :-1], use_cache=False, logits_to_keep=len(rollouts[0]))


@torch.inference_mode()
def whole_jsd(
    student: CausalLanguageModel, teacher: CausalLanguageModel, states: Sequence[Tensor], beta: float = 0.5
) -> Tensor:
    """Generalised JSD of arrays (T, V), per token as GKD trainers compute it."""
    pi, tau = (
        torch.log_softmax(m.model.get_output_embeddings()(h).float(), -1)
        for m, h in zip((student, teacher), states, strict=True)
    )
    weights = torch.tensor([1 - beta, beta], device=pi.device).log()
    mixture = torch.logsumexp(torch.stack([pi + weights[0], tau + weights[1]]), 0)
    kl = torch.nn.functional.kl_div
    loss = beta * kl(mixture, tau, reduction="none", log_target=True) + (1 - beta) * kl(
        mixture, pi, reduction="none", log_target=True
    )
    return loss.sum() / len(pi)


def request_of(models: Sequence[CausalLanguageModel], rollouts: list[np.ndarray]) -> SurveyRequest:
    teachers = {f"teacher {i}": (model, PROMPT) for i, model in enumerate(models[1:])}
    reward = (np.arange(len(rollouts)) % 2).astype(float)
    return SurveyRequest(build_tree(rollouts), rollouts, reward, (models[0], PROMPT), teachers)


def timed(work: Callable[[], Any], device: str) -> float:
    began = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def side_by_side(ours: Callable[[], Any], theirs: Callable[[], Any], repeats: int, device: str) -> dict[str, Any]:
    """Medians and spread of both, in turns, after one turn that is not counted; the ratio is the median of the turns' own."""
    timed(theirs, device), timed(ours, device)
    turns = [(timed(ours, device), timed(theirs, device)) for _ in range(repeats)]
    ratios = [mine / other for mine, other in turns]
    columns = {"seconds": [mine for mine, _ in turns], "baseline_seconds": [other for _, other in turns], "ratio": ratios}
    return {name: {"median": statistics.median(v), "least": min(v), "most": max(v), "turns": v} for name, v in columns.items()}


def without_kernel(work: Callable[[], Any]) -> dict[str, float]:
    """Seconds of a plain survey (the second of two), and of compiling the kernel."""
    fuse, survey.can_fuse = survey.can_fuse, lambda *_: False
    plain = min(timed(work, "cpu") for _ in range(2))
    survey.can_fuse = fuse
    native.compiled.cache_clear()
    return {"plain_s": plain, "compile_s": timed(native.compiled, "cpu")}


def survey_rows(shape: str, device: str, tokens: int, repeats: int) -> list[dict[str, Any]]:
    rows = []
    for name, (teachers, objectives) in CASES.items():
        models = [random_model(shape, seed, device) for seed in range(1 + teachers)]
        rollouts = random_rollouts(SHAPES[shape].vocab_size, tokens)
        request, parsed = request_of(models, rollouts), [parse_objective(spec) for spec in objectives]
        work = partial(survey_nodes, request, parsed, CANDIDATES)
        about, nodes = without_kernel(work) if device == "cpu" else {}, len(request.tree) - 1
        found = side_by_side(work, partial(bare, [m.model for m in models], rollouts, device), repeats, device)
        rows.append({"what": "survey / bare forward passes", "case": name, "tokens": nodes, "bar": 1.15, **found, **about})
    return rows


def jsd_parts(shape: str, device: str, tokens: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Both ways from hidden states to one objective."""
    models = [random_model(shape, seed, device) for seed in range(2)]
    request = request_of(models, random_rollouts(SHAPES[shape].vocab_size, tokens))
    hidden = [torch.cat(m.hidden_states(PROMPT, request.sequences)) for m in models]
    parsed = [parse_objective(spec) for spec in JSD]
    return lambda: survey_states(request, hidden, parsed, CANDIDATES), lambda: whole_jsd(models[0], models[1], hidden)


def peak(shape: str, device: str, tokens: int, which: str) -> float:
    """Rise of peak memory in MiB during one way."""
    work = dict(zip(("ours", "theirs"), jsd_parts(shape, device, tokens), strict=True))[which]
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from here
    before = status_kib("VmRSS")
    work()
    return (status_kib("VmHWM") - before) / 1024


def status_kib(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1])


def whole_array_row(shape: str, device: str, tokens: int, repeats: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--shape", shape, "--device", device, "--tokens", str(tokens), "--peak"]
    peaks = {
        which: float(subprocess.run([*command, which], check=True, capture_output=True, text=True).stdout.split()[-1])
        for which in ("ours", "theirs")
    }
    found = side_by_side(*jsd_parts(shape, device, tokens), repeats, device)
    memory = {"peak_mib": peaks["ours"], "baseline_peak_mib": peaks["theirs"], "memory_ratio": peaks["ours"] / peaks["theirs"]}
    return {"what": "numbers / whole arrays", "case": "1 teacher, jsd:0.5", "tokens": tokens, "bar": 1.0, **found, **memory}


def table_of(rows: list[dict[str, Any]], title: str) -> Table:
    table = Table(title=title)
    for head in (
        "ours / baseline",
        "case",
        "tokens",
        "ours s",
        "baseline s",
        "ratio",
        "spread",
        "bar",
        "peak MiB",
        "baseline MiB",
        "memory",
    ):
        table.add_column(head, justify="left" if head in ("ours / baseline", "case") else "right")
    for row in rows:
        ratio = row["ratio"]
        memory = (
            (f"{row['peak_mib']:,.0f}", f"{row['baseline_peak_mib']:,.0f}", f"{row['memory_ratio']:.2f}")
            if "peak_mib" in row
            else ()
        )
        table.add_row(
            row["what"], row["case"], f"{row['tokens']:,}", f"{row['seconds']['median']:.2f}", f"{row['baseline_seconds']['median']:.2f}",
            f"{ratio['median']:.3f}", f"{ratio['least']:.3f} to {ratio['most']:.3f}", f"{row['bar']:g}", *memory,
        )  # fmt: skip
    return table


def comparisons(rows: list[dict[str, Any]], shape: str) -> list[Comparison]:
    """The rows for `bench.py`."""
    found = []
    for row in rows:
        surveys = "bare" in row["what"]
        what = (
            f"{'vocabulary pass' if surveys else 'numbers from hidden states'}, {shape}, {row['case']}, T = {row['tokens']:,}"
        )
        against = "bare forward passes" if surveys else "whole arrays"
        found.append(Comparison(what, "s", row["seconds"]["turns"], against, row["baseline_seconds"]["turns"], row["bar"]))
        if "peak_mib" in row:
            found.append(Comparison(what, "MiB", [row["peak_mib"]], against, [row["baseline_peak_mib"]], 0.2))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="smollm2-135m")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--tokens",
        type=int,
        help="tokens of a question's rollouts; 2,048 (whole arrays 4,096), on a GPU 32,768 (64 rollouts of 512)",
    )
    parser.add_argument("--repeats", type=int, default=1 if SMALL else 5)
    parser.add_argument("--peak", choices=("ours", "theirs"), help="print the rise of peak memory in MiB, and nothing else")
    parser.add_argument("--out", type=Path, help=f"where to keep the figures; {RESULT} for the CPU's")
    chosen = parser.parse_args()
    if chosen.peak:
        print(peak(chosen.shape, chosen.device, chosen.tokens, chosen.peak))
        return 0
    tokens = chosen.tokens or (256 if SMALL else 32_768 if chosen.device == "cuda" else 2048)
    rows = [
        *survey_rows(chosen.shape, chosen.device, tokens, chosen.repeats),
        whole_array_row(chosen.shape, chosen.device, chosen.tokens or (256 if SMALL else 4096), chosen.repeats),
    ]
    tell(comparisons(rows, chosen.shape))
    console = Console(width=170)
    console.print(table_of(rows, f"{chosen.shape}, {chosen.device}"))
    for row in rows:
        if "compile_s" in row:
            console.print(
                f"{row['case']}: {row['plain_s']:.2f} s without the kernel, which takes {row['compile_s']:.1f} s to compile"
            )
    out = chosen.out or (None if SMALL else RESULT)
    if out is not None:
        out.write_text(json.dumps({"machine": machine(chosen.device), "shape": chosen.shape, "rows": rows}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
