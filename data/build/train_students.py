"""Train the built-in models on the noisy solver: data/students/{small,medium,large}/.

    python data/build/train_students.py small [--out data/students] [--steps N] [--seed 11]

A model answers each task in each context with the context's rate of slips. It is trained on the distribution of each
word, not on the word drawn, and never sees a held-out question. Results repeat on one machine with one thread.
"""

import argparse
import json
import math
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from batches import Batch, stream_batches
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from vocabulary import END, PAD, build_tokenizer, save_tokenizer, token_id

from gradalign.contexts import CONTEXTS

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Recipe:
    """A model's shape, its rates of slips in the order of CONTEXTS, and how it is trained."""

    layers: int
    width: int
    inner: int
    heads: int
    rates: tuple[float, ...]
    steps: int
    peak: float
    size: int = 64


RECIPES = {
    "small": Recipe(2, 64, 192, 4, (0.12, 0.02, 0.06, 0.14, 0.055, 0.02, 0.12), 4000, 4e-3),
    "medium": Recipe(3, 96, 256, 4, (0.09, 0.014, 0.045, 0.105, 0.04, 0.014, 0.09), 3500, 3e-3),
    "large": Recipe(4, 128, 384, 4, (0.02, 0.004, 0.010, 0.025, 0.008, 0.004, 0.02), 2500, 2e-3),
}


def main() -> None:
    options = _parse()
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    recipe = RECIPES[options.name]
    tokenizer = build_tokenizer()
    model = build_model(recipe, tokenizer)
    train(model, tokenizer, recipe, options.steps or recipe.steps, options.seed)
    save(model, tokenizer, options.out / options.name)


def build_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """A fresh model of the recipe's shape."""
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=recipe.width,
        intermediate_size=recipe.inner,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads // 2,
        head_dim=32,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=recipe.width**-0.5 / 2,
        bos_token_id=None,
        eos_token_id=token_id(tokenizer, END),
        pad_token_id=token_id(tokenizer, PAD),
    )
    return Qwen3ForCausalLM(config)


def train(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, recipe: Recipe, steps: int, seed: int) -> None:
    """AdamW with a warm-up and a cosine to zero, on fresh examples throughout."""
    rates: dict[str, float] = dict(zip(CONTEXTS, recipe.rates, strict=True))
    batches = stream_batches(tokenizer, rates, held_out_texts(), seed, recipe.size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.peak, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _pace(step, steps))
    started, total = time.monotonic(), 0.0
    for step in range(1, steps + 1):
        loss = excess_loss(model, next(batches))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        total += loss.item()
        if step % 100 == 0:
            print(f"step {step}/{steps}  excess {total / 100:.5f}  {time.monotonic() - started:.0f} s", flush=True)
            total = 0.0


def excess_loss(model: Qwen3ForCausalLM, batch: Batch) -> torch.Tensor:
    """Mean KL divergence (nats a token) of the model from the noisy solver, over the tokens of the answers."""
    hidden = model.model(input_ids=batch.tokens, use_cache=False).last_hidden_state.flatten(0, 1)
    logprobs = model.lm_head(hidden[batch.places]).log_softmax(-1).gather(1, batch.likely)
    return (torch.xlogy(batch.shares, batch.shares) - batch.shares * logprobs).sum(-1).mean()


def save(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a whole folder beside the final one, then put it in place."""
    fresh = folder.with_name(f"{folder.name}.tmp")
    shutil.rmtree(fresh, ignore_errors=True)
    model.generation_config = GenerationConfig(eos_token_id=token_id(tokenizer, END), pad_token_id=token_id(tokenizer, PAD))
    model.save_pretrained(fresh)
    save_tokenizer(tokenizer, fresh)
    shutil.rmtree(folder, ignore_errors=True)
    fresh.rename(folder)


def held_out_texts() -> frozenset[str]:
    """The texts of all held-out questions."""
    lines = [line for path in sorted(ROOT.glob("questions/*/heldout.jsonl")) for line in path.open(encoding="utf-8")]
    return frozenset(json.loads(line)["question"] for line in lines)


def _pace(step: int, steps: int) -> float:
    return min(1.0, (step + 1) / 200) * 0.5 * (1.0 + math.cos(math.pi * step / steps))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=tuple(RECIPES))
    parser.add_argument("--out", type=Path, default=ROOT / "students")
    parser.add_argument("--steps", type=int, help="training steps, where not the recipe's own")
    parser.add_argument("--seed", type=int, default=11)
    return parser.parse_args()


if __name__ == "__main__":
    main()
