"""Options that several commands have, worded once."""

from pathlib import Path
from typing import Annotated, Literal

import typer

RunFolder = Annotated[
    str, typer.Argument(help="The run that `gradalign score` wrote: a folder, or an address as s3://bucket/run.", metavar="RUN")
]
Support = Annotated[str, typer.Option(help="Support of the cosines: visited or full.")]
Draws = Annotated[int, typer.Option(help="Bootstrap resamples of questions.", min=100, max=100_000)]
BootstrapSeed = Annotated[int, typer.Option(help="Seed of the bootstrap.", min=0)]
Table = Annotated[Path | None, typer.Option(help="Also write the whole table: a .csv, .json, .parquet, .md or .tex file.")]

Steps = Annotated[
    int | None,
    typer.Option(help="Steps of Adam that `foretold` speaks of [default: as long as the best teacher takes to be learned]."),
]
LearningRate = Annotated[float | None, typer.Option(help="Learning rate of these steps, as 1e-5.")]

Questions = Annotated[
    str | None,
    typer.Argument(
        help="builtin:arithmetic|boolean|choice[:train|:heldout]; boolq, mmlu[:SUBJECT,...], aime[:YEAR,...], gsm8k, math500 or "
        "gpqa[:diamond|main|extended] from the hub; hf://OWNER/NAME[:CONFIG]; a .jsonl, .json, .csv, .tsv or .parquet file; or a folder "
        "that datasets saved.",
        metavar="QUESTIONS",
    ),
]
Student = Annotated[
    str | None,
    typer.Option(
        help="Hub id (with @REVISION if wanted), folder of a model or of a PEFT adapter, FILE.gguf, builtin:NAME, or a name as Qwen3-0.6B."
    ),
]
Rollouts = Annotated[int, typer.Option(help="Base rollouts a question.")]
Budget = Annotated[
    str,
    typer.Option(
        help="Targeted rollouts a question, on average, as 64 or 64-rollouts-per-question; or tokens of the whole run, as 200k-tokens."
    ),
]
Demonstrations = Annotated[int, typer.Option(help="Extra rollouts a question to take demonstrations from.")]
Limit = Annotated[
    int | None, typer.Option(help="Take the first questions only (64 of a built-in set); no more of a file is read.")
]
Map = Annotated[
    list[str] | None,
    typer.Option(
        "--map",
        help="Which column holds what, as question=QUERY,answer=LABEL,choices=A+B+C+D; also passage, solution, difficulty, id and kind "
        "[default: by the names that sets use].",
    ),
]
Split = Annotated[
    str | None, typer.Option(help="Split of the set, as train or validation [default: train where there is one; of mmlu test].")
]
Sample = Annotated[
    int | None,
    typer.Option(help="Take so many questions at random by --seed (of the first --limit, if both are given), as 200."),
]
Filter = Annotated[
    str | None,
    typer.Option(
        "--filter",
        help="Leave out questions by the student's pass rate, as pass_rate:0.1-0.9, told by --filter-rollouts that are not scored.",
    ),
]
FilterRollouts = Annotated[int, typer.Option(help="Rollouts a question that --filter goes by.")]
MaxTokens = Annotated[
    int | None, typer.Option(help="Longest rollout [default: 1024 or half the window, built-in students 64].")
]
Temperature = Annotated[float, typer.Option(help="Divides the logits of student, sampler and teacher.")]
Seed = Annotated[int, typer.Option(help="Equal seeds give equal rows.")]
Out = Annotated[
    str | None,
    typer.Option(
        help="The run folder, or an address such as s3://bucket/run [default: runs/ and a name made of the settings]."
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1.")]
Dtype = Annotated[str, typer.Option(help="auto (bfloat16 on CUDA, float32 elsewhere), float32, bfloat16, float16.")]
Attention = Annotated[
    str | None,
    typer.Option(
        help="Attention that models compute with: eager, sdpa, flash_attention_2, ... [default: the model's own choice]."
    ),
]
Quantize = Annotated[
    str | None,
    typer.Option(help="Load models that are not quantised already as 8bit (torchao) or 4bit (bitsandbytes) weights."),
]
TrustRemoteCode = Annotated[
    bool,
    typer.Option("--trust-remote-code", help="Run Python code that lies with a model's files, on this machine; read it first."),
]
Load = Annotated[
    str,
    typer.Option(
        help="External teachers that share a device: together, in-turn (one after another), auto (in turn if memory is short)."
    ),
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        help="Completions under way at once; halved when memory runs out. Not given: 256, and 2048 with a student of under four million "
        "parameters."
    ),
]
Engine = Annotated[
    str,
    typer.Option(
        help="What the student samples with: auto (vllm on a CUDA machine where it is installed, else hf), hf, vllm, server:URL#MODEL."
    ),
]
TensorParallel = Annotated[int, typer.Option(help="GPUs that vLLM spreads one copy of the student over.", min=1)]
Place = Annotated[
    list[str] | None,
    typer.Option(
        help="NAME=DEVICE, as student=cuda:0, or NAME=shard (all GPUs, memory, disk) [default: student first, others on the other GPUs]."
    ),
]
Executor = Annotated[str, typer.Option(help="Where questions are scored: local (this machine) or ray (workers of a cluster).")]
Workers = Annotated[
    int | None,
    typer.Option(
        help="Processes of this machine, for small models on the CPU [default: one a core], or Ray workers [default: as many as there is "
        "room for].",
        min=1,
    ),
]
WorkerCpus = Annotated[float, typer.Option(help="CPUs that each Ray worker takes.", min=0)]
WorkerGpus = Annotated[
    float | None,
    typer.Option(help="GPUs that each Ray worker takes; 0.5 lets two share one [default: 1 where there are any].", min=0),
]
Address = Annotated[
    str | None, typer.Option(help="Address of a running Ray cluster, or auto [default: start one on this machine].")
]
TeacherTopK = Annotated[
    int, typer.Option(help="Most likely tokens that a served teacher tells at each place; the rest is one bucket.", min=1)
]
Thinking = Annotated[
    Literal["on", "off"],
    typer.Option(help="Whether models think before they answer, for every chat template that has a switch for it."),
]
ContextTokens = Annotated[
    int | None,
    typer.Option(
        help="Longest that a demonstration, summary or solution may be, in the teacher's tokens: of a longer one the first and the last "
        "are kept, half each, around the mark [...]; answers are never cut [default: nothing is cut].",
        min=1,
    ),
]
Instruction = Annotated[
    str | None,
    typer.Option(
        help='What is said behind every question of how to answer; "" says nothing [default: by kind, as: Reason step by step, then end '
        'with "Answer:" and the number].'
    ),
]
Grader = Annotated[
    str | None,
    typer.Option(
        help="What grades every question: numeric, boolean, choice, exact, math, regex, or your own function as MODULE:FUNCTION "
        "[default: as each question says]."
    ),
]
CrossTokenizer = Annotated[
    bool,
    typer.Option(
        "--cross-tokenizer",
        help="Let teachers with another tokenizer in: their probabilities are aligned by text, and approximate.",
    ),
]
ChatTemplate = Annotated[
    Path | None,
    typer.Option(help="A Jinja chat template for the student, and models with its tokenizer, instead of their own."),
]
