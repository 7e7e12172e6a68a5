"""`gradalign contexts`: pre-screen what the teacher should see."""

from pathlib import Path
from typing import Annotated

import typer

from gradalign_cli.console import errors, output, safe
from gradalign_cli.progress import ProgressDisplay


def contexts(
    questions: Annotated[
        str | None, typer.Argument(help="builtin:arithmetic|boolean|choice[:train|:heldout], or a .jsonl file.")
    ] = None,
    student: Annotated[
        str | None, typer.Option(help="Hub id, folder, FILE.gguf, builtin:NAME or a well-known name such as Qwen3-0.6B.")
    ] = None,
    teacher: Annotated[
        list[str] | None, typer.Option(help="A teacher; give it once for each [default: every built-in context].")
    ] = None,
    objective: Annotated[str, typer.Option(help="The objective to train with.")] = "reverse_kl",
    teacher_rollouts: Annotated[int, typer.Option(help="Rollouts a question under each context.", min=1)] = 16,
    rollouts: Annotated[int, typer.Option(help="Base rollouts a question.")] = 64,
    budget: Annotated[
        str, typer.Option(help="Targeted rollouts a question, as 32; or tokens of the whole run, as 200k-tokens.")
    ] = "32",
    demonstrations: Annotated[int, typer.Option(help="Extra rollouts a question to take demonstrations from.")] = 8,
    limit: Annotated[int | None, typer.Option(help="Take the first questions only (64 of a built-in set).")] = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="Longest rollout [default: 1024 or half the window, built-in students 64].")
    ] = None,
    temperature: Annotated[float, typer.Option(help="Divides the logits of student, sampler and teacher.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Equal seeds give equal rows.")] = 0,
    out: Annotated[Path | None, typer.Option(help="The run folder [default: runs/ and a name made of the settings].")] = None,
    table: Annotated[
        Path | None, typer.Option(help="Also write the whole table: a .csv, .json, .parquet, .md or .tex file.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1.")] = "auto",
    dtype: Annotated[
        str, typer.Option(help="auto (bfloat16 on CUDA, float32 elsewhere), float32, bfloat16, float16.")
    ] = "auto",
    batch_size: Annotated[int, typer.Option(help="Completions under way at once; halved when memory runs out.")] = 256,
    chat_template: Annotated[Path | None, typer.Option(help="A Jinja chat template to use instead of the model's own.")] = None,
) -> None:
    """Pre-screen teacher contexts: what each does to the student's own answers, what a step toward it would do, and its price.

    The student answers under every context; success there is counted by difficulty, and so is how often an answer is copied from the
    context. A context that raises the teacher and not other questions is warned of. It is a run like any other: `gradalign rank`,
    `report` and `show` read it too.

    **Examples**

    `gradalign contexts`

    `gradalign contexts questions.jsonl --student Qwen3-0.6B --teacher ctx:correct_demo --teacher ctx:summary --teacher ctx:mine.j2`

    `gradalign contexts builtin:boolean --teacher-rollouts 32 --table contexts.csv`
    """
    from gradalign_cli.writing import check_suffix, write_frame

    if table is not None:
        check_suffix(table)
    with ProgressDisplay() as progress:
        progress.stage("starting")
        from gradalign.api import configure, default_folder, run_score
        from gradalign.contexts import CONTEXTS
        from gradalign.findings import screen_contexts
        from gradalign.pipeline import Effort, Execution, parse_budget
        from gradalign_cli.tables import print_sheets

        config = configure(
            questions, student, teacher or [f"ctx:{name}" for name in CONTEXTS], [objective], limit, max_tokens, rollouts=rollouts,
            demonstrations=demonstrations, teacher_rollouts=teacher_rollouts, temperature=temperature, seed=seed, dtype=dtype,
            chat_template=None if chat_template is None else str(chat_template),
        )  # fmt: skip
        folder = out or default_folder(config)
        run = run_score(config, folder, Execution(device, batch_size), progress, effort=Effort(parse_budget(budget)))
    for notice in run.description["provenance"]["notices"]:
        errors.print(f"note: {safe(notice)}")
    found = screen_contexts(run)
    print_sheets(found.sheets())
    if table is not None:
        write_frame(found.frame, table)
    output.print(
        f"The run lies in [bold]{safe(str(folder))}[/]; read it with `gradalign report {safe(str(folder))}`.", soft_wrap=True
    )
