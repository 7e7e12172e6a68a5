"""`gradalign score`: the main job, from a student and teachers to a ranked table."""

from pathlib import Path
from typing import Annotated

import typer

from gradalign.types import GradalignError
from gradalign_cli.console import ProgressDisplay, errors, output, safe

_EXAMPLES = """
Score teachers and objectives for a student, and rank them.

With no arguments it runs on the built-in student, questions and teachers: no download, under 90 seconds on two cores.
Interrupted or killed, the same command goes on where it was.

**Examples**

`gradalign score`

`gradalign score --student Qwen3-0.6B --teacher ctx:correct_demo --teacher model:Qwen3-1.7B`

`gradalign score questions.jsonl --student ./my-model --teacher ctx:reference --objective jsd:0.5 --out runs/mine`

`gradalign score builtin:boolean --rollouts 32 --budget 512 --seed 1`

**Teachers** `ctx:none|correct_demo|correct_wrong_demo|wrong_demo|summary|reference|answer` or `ctx:TEMPLATE.j2` (the student itself
under a context), `model:NAME` (another model), `model:NAME+ctx:…` (both), `ctx:…@model:NAME` (demonstrations from another model).

**Objectives** `reverse_kl` (alias `gkd`), `forward_kl`, `jsd:BETA`, `sampled_kl`.
"""


def score(
    questions: Annotated[
        str | None, typer.Argument(help="builtin:arithmetic|boolean|choice[:train|:heldout], or a .jsonl file.")
    ] = None,
    student: Annotated[
        str | None, typer.Option(help="Hub id, folder, FILE.gguf, builtin:NAME or a well-known name such as Qwen3-0.6B.")
    ] = None,
    teacher: Annotated[list[str] | None, typer.Option(help="A teacher; give it once for each.")] = None,
    objective: Annotated[list[str] | None, typer.Option(help="An objective; give it once for each.")] = None,
    rollouts: Annotated[int, typer.Option(help="Base rollouts a question.")] = 16,
    budget: Annotated[str, typer.Option(help="Targeted rollouts a question, as 256 or 256-rollouts-per-question.")] = "256",
    demonstrations: Annotated[int, typer.Option(help="Extra rollouts a question to take demonstrations from.")] = 8,
    candidates: Annotated[int, typer.Option(help="Candidate tokens a node, at most.")] = 4,
    replicates: Annotated[int, typer.Option(help="Targeted rollouts a candidate.")] = 8,
    min_visits: Annotated[int, typer.Option(help="Rollouts a token needs to count.")] = 4,
    node_selection: Annotated[
        str,
        typer.Option(help="pps (probability proportional to size, for ranking) or top (the published scheduler, for looking)."),
    ] = "pps",
    limit: Annotated[int | None, typer.Option(help="Take the first questions only (64 of a built-in set).")] = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="Longest rollout [default: 1024 or half the window, built-in students 64].")
    ] = None,
    temperature: Annotated[float, typer.Option(help="Divides the logits of student, sampler and teacher.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Equal seeds give equal rows.")] = 0,
    out: Annotated[Path | None, typer.Option(help="The run folder [default: runs/ and a name made of the settings].")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1.")] = "auto",
    dtype: Annotated[
        str, typer.Option(help="auto (bfloat16 on CUDA, float32 elsewhere), float32, bfloat16, float16.")
    ] = "auto",
    batch_size: Annotated[int, typer.Option(help="Completions under way at once; halved when memory runs out.")] = 256,
    chat_template: Annotated[Path | None, typer.Option(help="A Jinja chat template to use instead of the model's own.")] = None,
    top_k: Annotated[int | None, typer.Option(hidden=True)] = None,
    top_p: Annotated[float | None, typer.Option(hidden=True)] = None,
) -> None:
    _refuse_truncation(top_k, top_p)
    settings = {
        "rollouts": rollouts,
        "budget": parse_budget(budget),
        "demonstrations": demonstrations,
        "candidates": candidates,
        "replicates": replicates,
        "min_visits": min_visits,
        "node_selection": node_selection,
        "temperature": temperature,
        "seed": seed,
        "dtype": dtype,
        "chat_template": None if chat_template is None else str(chat_template),
    }
    with ProgressDisplay() as progress:
        progress.stage("starting")
        from gradalign.api import configure, default_folder, run_score
        from gradalign.findings import rank
        from gradalign.pipeline import Execution
        from gradalign_cli.tables import print_ranking

        config = configure(questions, student, teacher or (), objective or (), limit, max_tokens, **settings)
        folder = out or default_folder(config)
        run = run_score(config, folder, Execution(device, batch_size), progress)
    for notice in run.description["provenance"]["notices"]:
        errors.print(f"note: {safe(notice)}")
    if node_selection == "top":
        output.print("Nodes were taken outright (--node-selection top): look at them; they cannot be ranked by.")
        output.print(f"The run lies in [bold]{safe(str(folder))}[/].", soft_wrap=True)
        return
    print_ranking(rank(run))
    output.print(
        f"The run lies in [bold]{safe(str(folder))}[/]; rank it again with `gradalign rank {safe(str(folder))}`.",
        soft_wrap=True,
    )


score.__doc__ = _EXAMPLES


def parse_budget(text: str) -> int:
    """Targeted rollouts a question from `256` or `256-rollouts-per-question`."""
    number = text.removesuffix("-rollouts-per-question")
    if not number.isdecimal():
        raise GradalignError(f"budget {text!r} is not understood; write a number of rollouts a question, as 256")
    return int(number)


def _refuse_truncation(top_k: int | None, top_p: float | None) -> None:
    if top_k is not None or top_p is not None:
        raise GradalignError(
            "truncated sampling (--top-k, --top-p) is refused: rollouts must come from the very distribution whose gradient is taken"
        )
