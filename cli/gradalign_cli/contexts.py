"""`gradalign contexts`: pre-screen what the teacher should see."""

from typing import Annotated

import typer

from gradalign_cli.by_default import CommandWithOthers
from gradalign_cli.console import errors, output, safe
from gradalign_cli.options import (
    Address,
    Attention,
    BatchSize,
    Budget,
    ChatTemplate,
    ContextTokens,
    CrossTokenizer,
    Demonstrations,
    Device,
    Dtype,
    Engine,
    Executor,
    Filter,
    FilterRollouts,
    Grader,
    Instruction,
    Limit,
    Load,
    Map,
    MaxTokens,
    Out,
    Place,
    Quantize,
    Questions,
    Rollouts,
    Sample,
    Seed,
    Split,
    Student,
    Table,
    TeacherTopK,
    Temperature,
    TensorParallel,
    Thinking,
    TrustRemoteCode,
    WorkerCpus,
    WorkerGpus,
    Workers,
)
from gradalign_cli.progress import ProgressDisplay
from gradalign_cli.seen import show, template


def contexts(
    questions: Questions = None,
    student: Student = None,
    teacher: Annotated[
        list[str] | None, typer.Option(help="A teacher; give it once for each [default: every built-in context].")
    ] = None,
    objective: Annotated[str, typer.Option(help="The objective to train with.")] = "reverse_kl",
    teacher_rollouts: Annotated[int, typer.Option(help="Rollouts a question under each context.", min=1)] = 16,
    rollouts: Rollouts = 64,
    budget: Budget = "32",
    demonstrations: Demonstrations = 8,
    columns: Map = None,
    split: Split = None,
    grader: Grader = None,
    instruction: Instruction = None,
    limit: Limit = None,
    sample: Sample = None,
    filter_by: Filter = None,
    filter_rollouts: FilterRollouts = 8,
    max_tokens: MaxTokens = None,
    temperature: Temperature = 1.0,
    seed: Seed = 0,
    out: Out = None,
    table: Table = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    attention: Attention = None,
    quantize: Quantize = None,
    trust_remote_code: TrustRemoteCode = False,
    batch_size: BatchSize = None,
    engine: Engine = "auto",
    tensor_parallel: TensorParallel = 1,
    place: Place = None,
    load: Load = "auto",
    executor: Executor = "local",
    workers: Workers = None,
    worker_cpus: WorkerCpus = 1.0,
    worker_gpus: WorkerGpus = None,
    address: Address = None,
    teacher_top_k: TeacherTopK = 20,
    cross_tokenizer: CrossTokenizer = False,
    chat_template: ChatTemplate = None,
    thinking: Thinking = "off",
    context_tokens: ContextTokens = None,
) -> None:
    """Pre-screen teacher contexts: what each does to the student's own answers, what a step toward it would do, and its price.

    The student answers under every context; success there is counted by difficulty, and so is how often an answer is copied from the
    context. A context that raises the teacher and not other questions is warned of. It is a run like any other: `gradalign rank`,
    `report` and `show` read it too. `gradalign contexts show` prints what each model would see, before anything is scored.

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
            attention=attention, quantize=quantize, trust_remote_code=trust_remote_code, thinking=thinking == "on",
            context_tokens=context_tokens, teacher_top_k=teacher_top_k, cross_tokenizer=cross_tokenizer, columns=tuple(columns or ()),
            split=split, sample=sample, filter=filter_by, filter_rollouts=filter_rollouts, grader=grader,
            instruction=instruction,
            chat_template=None if chat_template is None else str(chat_template),
        )  # fmt: skip
        folder = out or default_folder(config)
        execution = Execution(
            device,
            batch_size,
            engine,
            tensor_parallel,
            tuple(place or ()),
            executor,
            workers,
            worker_cpus,
            worker_gpus,
            address,
            load,
        )
        run = run_score(config, folder, execution, progress, effort=Effort(parse_budget(budget)))
    for notice in run.description["provenance"]["notices"]:
        errors.print(f"note: {safe(notice)}")
    found = screen_contexts(run)
    print_sheets(found.sheets())
    if table is not None:
        write_frame(found.frame, table)
    output.print(
        f"The run lies in [bold]{safe(str(folder))}[/]; read it with `gradalign report {safe(str(folder))}`.", soft_wrap=True
    )


app = typer.Typer(cls=CommandWithOthers, help=contexts.__doc__, rich_markup_mode="markdown")
app.command("screen")(contexts)
app.command()(show)
app.command()(template)
