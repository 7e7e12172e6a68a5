"""How fast targeted rollouts are sampled: the engine `hf` against one call of transformers' own `generate` for each candidate token.

Every node has four candidates with eight rollouts each, as in a run: nodes lie along rollouts of a few questions, so that prefixes begin
alike. Both sides sample at temperature 1 from the same prefixes, in turns (ours, theirs, ours, ...), and the same number of tokens where
nothing ends a rollout. `generate` has its cache on and eight sequences a call. As it is slow it samples some of the candidates only.

    python benchmarks/sampling.py                                     # SmolLM2-135M and the built-in student, on the CPU
    python benchmarks/sampling.py --device cuda --shape qwen3-0.6b    # random weights in that shape, in bfloat16
    SMALL=1 python benchmarks/sampling.py                             # the built-in student and a few candidates; keeps no file
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
import transformers
from machine import machine
from rich.console import Console
from rich.table import Table
from side_by_side import Comparison, tell
from smollm2_run import model_file
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from gradalign.engines import HFEngine
from gradalign.models import CausalLanguageModel, LoadOptions, load_model
from gradalign.seeds import seed_of
from gradalign.types import CompletionRequest

SMALL = os.environ.get("SMALL") == "1"
RESULTS = Path(__file__).parent / "results"
CANDIDATES, ROLLOUTS = 4, 8
SHAPES = {
    "qwen3-0.6b": {
        "hidden_size": 1024, "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128,
        "intermediate_size": 3072, "vocab_size": 151_936, "tie_word_embeddings": True, "max_position_embeddings": 40_960,
    }
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A model and its candidates, in `parts` of a turn each; of a turn's candidates the other side samples `theirs`."""

    name: str
    model: CausalLanguageModel
    stop_ids: frozenset[int]
    prefixes: list[tuple[int, ...]]
    max_tokens: int
    parts: int
    theirs: int
    batch_size: int | None
    bar: float | None = None
    repeats: int = 5

    def turns(self) -> Iterator[list[CompletionRequest]]:
        """The requests of each turn; with one part it is the same several times."""
        seeds = [tuple(seed_of("benchmark", i, replicate) for replicate in range(ROLLOUTS)) for i in range(len(self.prefixes))]
        requests = [CompletionRequest(p, s, self.max_tokens) for p, s in zip(self.prefixes, seeds, strict=True)]
        size = len(requests) // self.parts
        for turn in range(self.parts if self.parts > 1 else self.repeats):
            start = turn % self.parts * size
            yield requests[start : start + size]


@dataclass
class Speed:
    """Tokens a second of one side, turn by turn, and from how many candidates."""

    candidates: int = 0
    per_second: list[float] = field(default_factory=list)

    def add(self, tokens: int, seconds: float, candidates: int) -> None:
        self.candidates += candidates
        self.per_second.append(tokens / seconds)

    def __str__(self) -> str:
        return f"{statistics.median(self.per_second):,.1f} ({min(self.per_second):,.1f} to {max(self.per_second):,.1f})"


def along_rollouts(first: int, last: int, longest: int, nodes: int = 64, questions: int = 4) -> list[tuple[int, ...]]:
    """Prefixes of 257 to `longest` random tokens from some on: prompts of 256, and nodes along two rollouts of each question."""
    rng, prefixes = np.random.default_rng(0), []
    for _ in range(questions):
        prompt = rng.integers(first, last, 256)
        for _ in range(2):
            path = np.concatenate([prompt, rng.integers(first, last, longest - 256)])
            for depth in np.sort(rng.choice(longest - 256, nodes // (2 * questions), replace=False)):
                prefixes += [
                    (*path[: 256 + depth].tolist(), forced) for forced in rng.integers(first, last, CANDIDATES).tolist()
                ]
    return prefixes


def smollm2(batch_size: int | None) -> Case:
    """64 nodes in four turns. Random tokens make it babble, so nothing ends a rollout but its length."""
    model = load_model(str(model_file()), LoadOptions(device="cpu")).language_model
    assert isinstance(model, CausalLanguageModel)
    prefixes = along_rollouts(1000, 40_000, 512)
    return Case("SmolLM2-135M, float32", model, frozenset(), prefixes, 16, 4, 1, batch_size, 4.0)


def built_in(batch_size: int | None) -> Case:
    """Nodes along the student's own rollouts, which end as they do in a run."""
    loaded, rng = load_model("builtin:small", LoadOptions(device="cpu")), np.random.default_rng(0)
    model = loaded.language_model
    assert isinstance(model, CausalLanguageModel)
    steps = [
        " ".join(f"{'+-'[int(s)]}{n}" for s, n in zip(rng.integers(0, 2, 6), rng.integers(1, 10, 6), strict=True))
        for _ in range(8)
    ]
    prompts = [loaded.codec.prompt(f"Start at {i}: {terms} (modulo 10). What is the total?") for i, terms in enumerate(steps)]
    requests = [CompletionRequest(p, (seed_of("base", i, 0), seed_of("base", i, 1)), 48) for i, p in enumerate(prompts)]
    prefixes = []
    for rollout in HFEngine(model, loaded.codec.stop_ids).complete(requests):
        prompt, tokens = requests[rollout.request].prefix, rollout.tokens.tolist()
        for depth in range(4):
            forced = rng.integers(0, 300, CANDIDATES).tolist()
            prefixes += [(*prompt, *tokens[: 2 * depth], token) for token in forced]
    return Case("built-in student", model, loaded.codec.stop_ids, prefixes, 48, 1, 4 if SMALL else 32, batch_size)


def built_in_long(batch_size: int | None) -> Case:
    """The same model after as long prefixes as its window allows, of random tokens; only its length ends a rollout."""
    case = replace(built_in(batch_size), name="built-in student, long prefixes", prefixes=along_rollouts(0, 300, 480))
    return replace(case, stop_ids=frozenset(), max_tokens=32, theirs=case.theirs // 4, bar=20.0)


def random_weights(shape: str, device: str, batch_size: int | None) -> Case:
    """A random model of a known shape."""
    torch.manual_seed(0)
    with torch.device(device):
        body = Qwen3ForCausalLM(Qwen3Config(**SHAPES[shape])).to(torch.bfloat16).eval()
    model = CausalLanguageModel(body, shape, SHAPES[shape]["vocab_size"])
    prefixes = along_rollouts(1000, 150_000, 512)
    return Case(f"{shape}, bfloat16, {device}", model, frozenset(), prefixes, 64, 1, 8, batch_size)


def sample_ours(case: Case, requests: Sequence[CompletionRequest]) -> int:
    engine = HFEngine(case.model, case.stop_ids, case.batch_size)
    return sum(len(completion.tokens) for completion in engine.complete(requests))


@torch.inference_mode()
def sample_theirs(case: Case, requests: Sequence[CompletionRequest]) -> int:
    """One call for each candidate; tokens behind a sequence's end do not count."""
    body, stops = case.model.model, np.array(sorted(case.stop_ids), dtype=np.int64)
    assert isinstance(body, PreTrainedModel)
    ends = {"eos_token_id": stops.tolist()} if len(stops) else {"min_new_tokens": case.max_tokens}
    found = 0
    for request in requests:
        ids = torch.tensor([request.prefix], device=case.model.device)
        sequences = body.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=True, temperature=1.0, top_k=0, top_p=1.0, use_cache=True,
            num_return_sequences=ROLLOUTS, max_new_tokens=case.max_tokens, pad_token_id=0, **ends,
        )  # fmt: skip
        ended = np.isin(sequences[:, ids.shape[1] :].cpu().numpy(), stops)
        found += int(np.where(ended.any(1), ended.argmax(1) + 1, ended.shape[1]).sum())
    return found


def compared(case: Case) -> tuple[Speed, Speed]:
    """Both sides in turns, after a first try of each that does not count."""
    ours, theirs = Speed(), Speed()
    short = [replace(request, prefix=request.prefix[:8], max_tokens=4) for request in next(case.turns())[:1]]
    sample_ours(case, short)
    sample_theirs(replace(case, max_tokens=4), short)
    for requests in case.turns():
        some = requests[:: len(requests) // case.theirs]
        for speed, sample, chosen in ((ours, sample_ours, requests), (theirs, sample_theirs, some)):
            began = time.perf_counter()
            tokens = sample(case, chosen)
            if case.model.device.type == "cuda":
                torch.cuda.synchronize()
            speed.add(tokens, time.perf_counter() - began, len(chosen))
    return ours, theirs


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--shape", choices=SHAPES)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--turns", type=int, default=5, help="of a case that is one part, turns that count")
    given = parser.parse_args()
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(os.cpu_count() or 1)
    if given.shape:
        makers = [lambda: random_weights(given.shape, given.device, given.batch_size)]
    else:
        kinds = (built_in,) if SMALL else (built_in, built_in_long, smollm2)
        makers = [lambda kind=kind: kind(given.batch_size) for kind in kinds]
    table = Table(
        title=f"Targeted rollouts, {CANDIDATES} candidates a node x {ROLLOUTS}: tokens a second, median (smallest to largest)"
    )
    for column in ("model", "candidates", "hf", "candidates", "generate", "ratio"):
        table.add_column(column, justify="left" if column == "model" else "right", no_wrap=True)
    stored, found = [], []
    for make in makers:
        case = replace(make(), repeats=given.turns)
        ours, theirs = compared(case)
        ratio = statistics.median(ours.per_second) / statistics.median(theirs.per_second)
        table.add_row(case.name, str(ours.candidates), str(ours), str(theirs.candidates), str(theirs), f"{ratio:.1f}")
        what = f"targeted rollouts, {case.name}"
        baseline = "generate, a call a candidate"
        found.append(Comparison(what, "tokens/s", ours.per_second, baseline, theirs.per_second, case.bar, more=True))
        told = {"prefixes": [min(map(len, case.prefixes)), max(map(len, case.prefixes))], "max_tokens": case.max_tokens}
        stored.append({"model": case.name, **told, "hf": asdict(ours), "generate": asdict(theirs), "ratio": ratio})
    Console(width=150).print(table)
    tell(found)
    if not SMALL:
        name = "sampling.json" if given.device == "cpu" else f"sampling_{given.device}.json"
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / name).write_text(
            json.dumps({"title": table.title, "machine": machine(given.device), "rows": stored}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
