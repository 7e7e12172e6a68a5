"""Train what `gradalign export --to trl` wrote: python train.py --model MODEL [--max-steps N] [--output-dir FOLDER]

trl.json beside this script names the trainer, its arguments and the teacher; train.jsonl has the questions. Change either as you like.
TRL's trainers have no weights of examples, so questions are drawn in proportion to their weight: the mean of the gradient is the same.
"""

# TRL hands its names out as they are asked for.
# pyright: reportPrivateImportUsage=false

import argparse
import json
import math
import os
from pathlib import Path

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import numpy as np
import torch
from datasets import Dataset  # pyright: ignore[reportMissingImports]
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import (  # pyright: ignore[reportMissingImports]
    DistillationConfig,
    DistillationTrainer,
    GRPOConfig,
    GRPOTrainer,
)
from trl.experimental.sdft import SDFTConfig, SDFTTrainer  # pyright: ignore[reportMissingImports]

HERE = Path(__file__).parent
CONFIGS = {"DistillationTrainer": DistillationConfig, "SDFTTrainer": SDFTConfig, "GRPOTrainer": GRPOConfig}
PASSES = 3  # over the questions, where --max-steps is not given


def main() -> None:
    parser = argparse.ArgumentParser(description="Train what `gradalign export --to trl` wrote.")
    parser.add_argument("--model", help="folder or hub id of the student [default: the one in trl.json]")
    parser.add_argument("--max-steps", type=int, help=f"optimiser steps [default: {PASSES} passes over the questions]")
    parser.add_argument("--output-dir", type=Path, default=HERE / "trained", help="where the trained model goes")
    options = parser.parse_args()
    plan = json.loads((HERE / "trl.json").read_text(encoding="utf-8"))
    rows = [json.loads(line) for line in (HERE / "train.jsonl").read_text(encoding="utf-8").split("\n") if line]
    path = options.model or plan["student"]["model"]
    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False, padding_side="left", truncation_side="left")
    if (HERE / "chat_template.jinja").exists():
        tokenizer.chat_template = (HERE / "chat_template.jinja").read_text(encoding="utf-8")
    for lost in plan["not_carried"]:
        print(f"Not carried over: {lost}")

    stages = plan["arguments"] if isinstance(plan["arguments"], list) else [plan["arguments"]]
    model, config = path, CONFIGS[plan["trainer"]]
    for number, arguments in enumerate(stages, start=1):
        settings = config(
            **arguments,
            output_dir=str(options.output_dir / "checkpoints" / f"stage-{number}"),
            bf16=torch.cuda.is_available() and torch.cuda.is_bf16_supported(),
        )
        per_step = questions_per_step(settings)
        steps = options.max_steps or math.ceil(PASSES * len(rows) / per_step)
        settings.max_steps = max(1, (steps + len(stages) - number) // len(stages))
        drawn = draw(rows, settings.max_steps * per_step, settings.seed + number)
        trainer = build(plan, model, settings, Dataset.from_list(drawn), tokenizer)
        trainer.train()
        trainer.save_model(str(options.output_dir))
        model = trainer.accelerator.unwrap_model(trainer.model)  # the next stage goes on with it
    print(f"The trained model lies in {options.output_dir}")


def questions_per_step(settings) -> int:
    """How many questions one optimiser step takes."""
    rollouts = settings.per_device_train_batch_size * settings.gradient_accumulation_steps * settings.world_size
    return max(1, rollouts // getattr(settings, "num_generations", 1))


def draw(rows: list[dict], count: int, seed: int) -> list[dict]:
    """`count` rows, each as often as its weight says, up to one more or less (systematic sampling, seeded)."""
    edges = np.cumsum([row["weight"] for row in rows])
    places = (np.arange(count) + np.random.default_rng(seed).random()) / count * edges[-1]
    return [rows[place] for place in np.searchsorted(edges, places, side="right").clip(max=len(rows) - 1)]


def build(plan: dict, model, settings, data: Dataset, tokenizer):
    """The trainer that trl.json names, with its teacher."""
    shared = {"model": model, "args": settings, "train_dataset": data, "processing_class": tokenizer}
    if plan["trainer"] == "GRPOTrainer":
        shared["train_dataset"] = data.add_column("opened", [opened(tokenizer, settings)] * len(data))
        return GRPOTrainer(reward_funcs=right, **shared)
    teacher = None
    if plan["teacher"] is not None:
        place, file = plan["teacher"]["model"], plan["teacher"]["gguf_file"]
        teacher = AutoModelForCausalLM.from_pretrained(
            place, dtype="auto", trust_remote_code=False, **({"gguf_file": file} if file else {})
        )
        teacher = teacher.eval().requires_grad_(False)
    if plan["trainer"] == "DistillationTrainer":
        return DistillationTrainer(teacher_model=teacher, **shared)
    trainer = SDFTTrainer(**shared)
    if teacher is not None:
        trainer.teacher_model = trainer.accelerator.prepare_model(teacher, evaluation_mode=True)
    if plan["teacher_sees"] == "context":
        settings.teacher_prompt_template = "{privileged_context}"
    return trainer


def opened(tokenizer, settings) -> str:
    """`<think>` where the chat template opens hidden reasoning and leaves it open, so that completions begin within it; else nothing."""
    shown = tokenizer.apply_chat_template(
        [{"role": "user", "content": "?"}], add_generation_prompt=True, tokenize=False, **(settings.chat_template_kwargs or {})
    )
    return "<think>" if shown.rfind("<think>") > shown.rfind("</think>") else ""


def right(completions, prompts, question, answer, kind, choices, opened, grader=None, **others) -> list[float | None]:
    """Rewards by gradalign's own graders, or by the function that graded the run."""
    from gradalign.questions import grade
    from gradalign.types import Question

    asked = [
        Question(i, prompt[-1]["content"], a, k, tuple(c), grader=g)
        for i, prompt, a, k, c, g in zip(
            question, prompts, answer, kind, choices, grader or [None] * len(question), strict=True
        )
    ]
    texts = [tag + (text[0]["content"] or "") for tag, text in zip(opened, completions, strict=True)]
    return [grade(q, text).reward for q, text in zip(asked, texts, strict=True)]


if __name__ == "__main__":
    main()
