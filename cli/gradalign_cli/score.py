"""`gradalign score`: the main job, from a student and teachers to a ranked table."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gradalign.types import GradalignError
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
    TeacherTopK,
    Temperature,
    TensorParallel,
    Thinking,
    TrustRemoteCode,
    WorkerCpus,
    WorkerGpus,
    Workers,
)
from gradalign_cli.progress import ProgressDisplay, plain_bar

if TYPE_CHECKING:
    from gradalign.configurations import Configuration
    from gradalign.store import Run

_EXAMPLES = """
Score teachers and objectives for a student, and rank them.

With no arguments it runs on the built-in student, questions and teachers: no download, under 90 seconds on two cores.
Interrupted or killed, the same command goes on where it was.

**Examples**

`gradalign score`

`gradalign score --student Qwen3-0.6B --teacher ctx:correct_demo --teacher model:Qwen3-1.7B`

`gradalign score questions.jsonl --student ./my-model --teacher ctx:reference --objective jsd:0.5 --out runs/mine`

`gradalign score builtin:boolean --budget 200k-tokens --seed 1`

`gradalign score boolq --student Qwen3-0.6B --sample 200 --filter pass_rate:0.1-0.9`

`gradalign score exam.csv --map question=QUERY,answer=KEY,choices=A+B+C+D --student ./my-model`

`gradalign score --configs configs/` scores what training configurations need, and ranks them.

`gradalign score --decide` stops as soon as one teacher and objective is best; `gradalign score --dry-run` tells the cost first.

The same command with a larger `--budget` goes on with a finished run: what was sampled stays and counts.

**Teachers** `ctx:none|correct_demo|correct_wrong_demo|wrong_demo|summary|reference|answer` or `ctx:TEMPLATE.j2` (the student itself
under a context), `model:NAME` (another model), `model:NAME+ctx:…` (both), `ctx:…@model:NAME` (demonstrations from another model);
`server:URL#MODEL` in the place of `model:NAME` is a model that is served elsewhere; NAME may end in @REVISION. `ctx:NAME:system`, `:before`
or `:after` (the question, the default) says where the context's text goes.

**Objectives** `reverse_kl` (alias `gkd`), `forward_kl`, `jsd:BETA`, `sampled_kl`, `minillm:GAMMA` (`minillm:1:normalised`),
`pbsd_target:BETA`, `pbsd:BETA`, `SECOND@FIRST*STEP` (a second stage after a step of the first); without a teacher `dr_grpo`, `success`; a
function of your own as `MODULE:FUNCTION`.
"""


def score(
    questions: Questions = None,
    student: Student = None,
    teacher: Annotated[list[str] | None, typer.Option(help="A teacher; give it once for each.")] = None,
    objective: Annotated[list[str] | None, typer.Option(help="An objective; give it once for each.")] = None,
    configs: Annotated[
        Path | None,
        typer.Option(
            help="Take teachers and objectives from training configurations, a YAML file or a folder, and rank those."
        ),
    ] = None,
    rollouts: Rollouts = 64,
    budget: Budget = "64",
    precision: Annotated[
        float | None,
        typer.Option(help="Stop once the 95% interval of every gain is at most this half-width; --budget is the most."),
    ] = None,
    decide: Annotated[
        bool,
        typer.Option(
            "--decide", help="Stop once one teacher and objective has the best drive beyond doubt; --budget is the most."
        ),
    ] = False,
    confidence: Annotated[float, typer.Option(help="Confidence of --decide, over all its looks together.")] = 0.95,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print planned nodes, rollouts, tokens and time from a few questions; keep nothing."),
    ] = False,
    demonstrations: Demonstrations = 8,
    teacher_rollouts: Annotated[
        int | None,
        typer.Option(
            help="Rollouts a question that each teacher samples itself [default: 32 where an objective asks, else 0]."
        ),
    ] = None,
    candidates: Annotated[int, typer.Option(help="Candidate tokens a node, at most.")] = 4,
    replicates: Annotated[int, typer.Option(help="Targeted rollouts that a candidate of a chosen node gets first.")] = 4,
    min_visits: Annotated[int, typer.Option(help="Rollouts a token needs to count.")] = 4,
    node_selection: Annotated[
        str,
        typer.Option(help="pps (probability proportional to size, for ranking) or top (the published scheduler, for looking)."),
    ] = "pps",
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
    report: Annotated[bool, typer.Option("--report/--no-report", help="Write RUN/report.html when the run is done.")] = True,
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
    top_k: Annotated[int | None, typer.Option(hidden=True)] = None,
    top_p: Annotated[float | None, typer.Option(hidden=True)] = None,
) -> None:
    _refuse_truncation(top_k, top_p)
    settings = {
        "rollouts": rollouts,
        "demonstrations": demonstrations,
        "teacher_rollouts": teacher_rollouts,
        "candidates": candidates,
        "replicates": replicates,
        "min_visits": min_visits,
        "node_selection": node_selection,
        "temperature": temperature,
        "seed": seed,
        "dtype": dtype,
        "attention": attention,
        "quantize": quantize,
        "trust_remote_code": trust_remote_code,
        "teacher_top_k": teacher_top_k,
        "columns": tuple(columns or ()),
        "split": split,
        "sample": sample,
        "filter": filter_by,
        "filter_rollouts": filter_rollouts,
        "grader": grader,
        "instruction": instruction,
        "cross_tokenizer": cross_tokenizer,
        "chat_template": None if chat_template is None else str(chat_template),
        "thinking": thinking == "on",
        "context_tokens": context_tokens,
    }
    with ProgressDisplay() as progress:
        progress.stage("starting")
        from gradalign.api import configure, default_folder, run_forecast, run_score
        from gradalign.configurations import load_configurations, step_weightings, unnamed_servers
        from gradalign.findings import rank, rank_configurations
        from gradalign.pipeline import Effort, Execution, parse_budget
        from gradalign_cli.tables import print_forecast, print_sheets

        configurations = load_configurations(configs) if configs is not None else ()
        teachers = [*(teacher or ()), *_wanted((c.teacher for c in configurations), teacher)]
        objectives = [*(objective or ()), *_wanted((o for c in configurations for o in c.objectives), objective)]
        effort = Effort(parse_budget(budget), precision, confidence if decide else None)
        settings["tokens"] = step_weightings(configurations)
        config = configure(questions, student, teachers, objectives, limit, max_tokens, **settings)
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
            unnamed_servers(configurations, (*(teacher or ()), engine)),
        )
        forecast = run_forecast(config, execution, progress, effort=effort, out=folder) if dry_run else None
        run = None if dry_run else run_score(config, folder, execution, progress, effort=effort)
    if forecast is not None:
        print_forecast(forecast)
    if run is None:
        return
    for notice in run.description["provenance"]["notices"]:
        errors.print(f"note: {safe(notice)}")
    if node_selection == "top":
        output.print("Nodes were taken outright (--node-selection top): look at them; they cannot be ranked by.")
        output.print(f"The run lies in [bold]{safe(str(folder))}[/].", soft_wrap=True)
        return
    lies = safe(str(folder))
    try:
        print_sheets((rank_configurations(run, configurations) if configurations else rank(run)).sheets())
        _print_outcome(run.outcome)
    finally:
        output.print(f"The run lies in [bold]{lies}[/]; rank it again with `gradalign rank {lies}`.", soft_wrap=True)
    if report:
        _write_report(run, configurations)


score.__doc__ = _EXAMPLES


def _write_report(run: "Run", configurations: "Sequence[Configuration]") -> None:
    """Write the report of a run that is done and ranked, and say where it lies, or why it could not be written."""
    from gradalign.report import write_report

    with plain_bar() as bar:
        task = bar.add_task("report", total=1.0)
        try:
            page = write_report(
                run,
                configurations=configurations,
                stage=lambda what, share: bar.update(task, description=f"report: {what:<28}", completed=share),
            ).path
            said = f"The report lies in [bold]{safe(str(page))}[/]: open it in a browser."
        except GradalignError as fault:
            said = f"No report was written: {safe(str(fault))}."
    output.print(said, soft_wrap=True)


def _wanted(names: Iterable[str | None], given: Sequence[str] | None) -> list[str]:
    """What configurations want beyond what is given, each once."""
    return [name for name in dict.fromkeys(names) if name is not None and name not in (given or ())]


def _refuse_truncation(top_k: int | None, top_p: float | None) -> None:
    if top_k is not None or top_p is not None:
        raise GradalignError(
            "truncated sampling (--top-k, --top-p) is refused: rollouts must come from the very distribution whose gradient is taken"
        )


def _print_outcome(outcome: dict) -> None:
    """Whether the goal of a run that might stop early was reached, and if not, what stands in the way."""
    if not outcome:
        return
    if outcome["stopped"]:
        output.print(f"[bold]Goal reached:[/] {safe(outcome['stopped'])}, {outcome['tokens']:,} tokens sampled.")
        return
    half, left = outcome["gain_half_width"], outcome["gain_half_width_left"]
    known = (
        ""
        if half is None
        else f" Gains are known to within {half:.2g}; with rollouts without end on these questions about {left:.2g}"
    )
    why = known and f"{known} would be left, and only more questions lessen that."
    output.print(f"The budget was spent before the goal was reached.{why}")
