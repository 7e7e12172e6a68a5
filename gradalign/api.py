"""The Python door to scoring: `gradalign.score(...)`, the same as the command."""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from gradalign.contexts import parse_teacher, template_fingerprints
from gradalign.engines.vllm_setup import vllm_version
from gradalign.objectives import parse_objective
from gradalign.pipeline import (
    Budget,
    Cast,
    Effort,
    Execution,
    Facts,
    Forecast,
    Preview,
    Progress,
    RunConfig,
    Silent,
    data_fingerprint,
    engaged,
    execute,
    forecast,
    load_cast,
    needs_teacher_rollouts,
    parse_budget,
    preview,
    processes,
)
from gradalign.plugins import fingerprints as fingerprint_functions
from gradalign.plugins import imported
from gradalign.questions import load_questions, parse_columns, regraded
from gradalign.seeds import seed_of
from gradalign.store import Place, Run, RunFolder, load_run, place_of
from gradalign.types import GradalignError, Question

BUILTIN_STUDENT = "builtin:medium"
BUILTIN_QUESTIONS = "builtin:arithmetic"
BUILTIN_TEACHERS = ("ctx:correct_demo", "ctx:correct_wrong_demo", "ctx:wrong_demo", "ctx:answer")
BUILTIN_LIMIT = 64
BUILTIN_MAX_TOKENS = 64
MAX_TOKENS = 1024
TEACHER_ROLLOUTS = 32


def configure(
    questions: str | None = None,
    student: str | None = None,
    teachers: Sequence[str] = (),
    objectives: Sequence[str] = (),
    limit: int | None = None,
    max_tokens: int | None = None,
    columns: Sequence[str] | Mapping[str, str] = (),
    **settings: Any,
) -> RunConfig:
    """A run's settings with the defaults filled in.

    With no student everything is built in: `builtin:medium` on 64 questions of `builtin:arithmetic` under four contexts (of a built-in
    set the first 64 are taken unless `limit` or `sample` says otherwise). `columns` may be a mapping, as `{"question": "QUERY"}`.
    A student of one's own is scored under `ctx:correct_demo` unless teachers are given. Teachers sample rollouts of their own where an
    objective asks for them.
    """
    student = BUILTIN_STUDENT if student is None else student
    builtin_student = student.startswith("builtin:")
    questions = BUILTIN_QUESTIONS if questions is None else questions
    if limit is None and settings.get("sample") is None and questions.startswith("builtin:"):
        limit = BUILTIN_LIMIT
    objectives = tuple(objectives) or ("reverse_kl", "forward_kl")
    if settings.get("teacher_rollouts") is None:
        settings["teacher_rollouts"] = TEACHER_ROLLOUTS if any(map(needs_teacher_rollouts, objectives)) else 0
    if not isinstance(settings.get("thinking", False), bool):  # "off" would be as good as on
        raise GradalignError(f"thinking is {settings['thinking']!r}; it must be True or False")
    default_teachers = BUILTIN_TEACHERS if builtin_student else ("ctx:correct_demo",)
    named = tuple(f"{name}={column}" for name, column in columns.items()) if isinstance(columns, Mapping) else tuple(columns)
    return RunConfig(
        student=student,
        questions=questions,
        teachers=tuple(teachers) or default_teachers,
        objectives=objectives,
        columns=named,
        limit=limit,
        max_tokens=BUILTIN_MAX_TOKENS if builtin_student and max_tokens is None else max_tokens,
        **settings,
    )


def default_folder(config: RunConfig) -> Path:
    """runs/STUDENT-QUESTIONS-HASH: the same settings find the same run again."""
    parts = [Path(name).stem if "/" in name else name.replace("builtin:", "") for name in (config.student, config.questions)]
    stem = "-".join("".join(c if c.isalnum() or c in "._" else "-" for c in part) for part in parts)
    return Path("runs") / f"{stem[:80]}-{seed_of(repr(sorted(config.as_dict().items()))) & 0xFFFFFF:06x}"


def run_score(
    config: RunConfig,
    out: str | Place | None = None,
    execution: Execution | None = None,
    progress: Progress | None = None,
    cast: Cast | None = None,
    questions: Sequence[Question] | None = None,
    effort: Effort | None = None,
) -> Run:
    """Carry out the run that `config` describes, or go on with it, and open it for reading.

    `cast` brings models of one's own instead of those that `config` names, `questions` a set of one's own. A finished run goes on under a
    larger budget in `effort`: what was sampled stays and counts.
    """
    progress = progress or Silent()
    folder = RunFolder(out or default_folder(config))
    folder.check()
    with folder.held():
        chosen = _chosen(config, questions)
        progress.stage("loading models")
        with engaged(config, execution or Execution(), folder.path, cast) as executor:
            config = _with_length(config, executor.facts.window)
            folder.open(_identity(config, executor.facts, chosen), provenance(executor.facts) | {"questions": len(chosen)})
            execute(folder, chosen, executor, config, effort or Effort(), progress)
    return load_run(folder.path)


def _identity(config: RunConfig, facts: Facts, questions: Sequence[Question]) -> dict[str, Any]:
    """Everything that rows depend on, as run.json keeps it."""
    teachers = [parse_teacher(spec) for spec in config.teachers]
    brought = [o.function for o in map(parse_objective, config.objectives) if o.function is not None]
    grader = None if config.grader_function is None else imported(config.grader_function)
    brought += [] if grader is None else [grader]
    return (
        config.as_dict()
        | {f"weights of {name}": value for name, value in facts.fingerprints.items()}
        | {f"text of {path}": digest for path, digest in template_fingerprints(teachers).items()}
        | {f"code of {name}": digest for name, digest in fingerprint_functions(brought).items()}
        | {"engine": facts.engine, "data": data_fingerprint(questions)}
    )


def run_forecast(
    config: RunConfig,
    execution: Execution | None = None,
    progress: Progress | None = None,
    cast: Cast | None = None,
    questions: Sequence[Question] | None = None,
    effort: Effort | None = None,
    out: str | Place | None = None,
) -> Forecast:
    """What `run_score` would cost at its whole budget: a few questions are scored, timed, and thrown away. Nothing is written to `out`."""
    progress = progress or Silent()
    chosen = _chosen(config, questions)
    progress.stage("loading models")
    execution = execution or Execution()
    cast = cast or load_cast(config, execution)
    place = place_of(out or default_folder(config))
    count = processes(cast, execution.workers, place) if execution.executor == "local" else 1
    window = cast.student.model.language_model.context_window
    return forecast(chosen, cast, _with_length(config, window), effort or Effort(), progress, count)


def run_preview(
    config: RunConfig, question: str | None = None, execution: Execution | None = None, progress: Progress | None = None
) -> tuple[list[Preview], list[str]]:
    """What student and teachers would see of the question of that id, or of the first `config.limit`; and what loading had to say."""
    progress = progress or Silent()
    chosen = _chosen(config if question is None else replace(config, limit=None), None)
    asked = [each for each in chosen if question in (None, each.id)]
    if not asked:
        raise GradalignError(
            f"{config.questions} has no question {question!r}; it has {chosen[0].id!r} and {len(chosen) - 1:,} others"
        )
    progress.stage("loading models")
    cast = load_cast(config, execution or Execution())
    config = _with_length(config, cast.student.model.language_model.context_window)
    return preview(asked, cast, config, progress), cast.notices


def _chosen(config: RunConfig, questions: Sequence[Question] | None) -> Sequence[Question]:
    """The questions that a run is given, else those that its settings name, under its grader and instruction where it has them."""
    if questions is None:
        columns = parse_columns(config.columns)
        source = {"split": config.split, "columns": columns, "sample": config.sample, "seed": config.seed}
        questions = load_questions(config.questions, config.limit, **source)
    if config.instruction is not None:
        questions = [replace(question, instruction=config.instruction) for question in questions]
    return tuple(questions if config.grader is None else (regraded(question, config.grader) for question in questions))


def _with_length(config: RunConfig, window: int) -> RunConfig:
    """The configuration with its longest rollout settled, for a student with that window."""
    return config if config.max_tokens is not None else replace(config, max_tokens=min(MAX_TOKENS, window // 2))


def score(
    questions: str | None = None,
    *,
    student: str | None = None,
    teachers: Sequence[str] = (),
    objectives: Sequence[str] = (),
    out: str | Place | None = None,
    budget: str | int = Budget().amount,
    precision: float | None = None,
    decide: float | None = None,
    **settings: Any,
) -> Run:
    """Score teachers and objectives for a student on questions; returns the Run.

    `questions` is `builtin:NAME[:SPLIT]`, a named set such as `boolq` or `mmlu:anatomy`, `hf://OWNER/NAME[:CONFIG]`, or a file or folder
    (docs/questions.md), with `split`, `columns`, `limit`, `sample` and `filter` to choose from it; `student` a hub id, folder, .gguf file,
    built-in or well-known name;
    `teachers` such as `ctx:correct_demo` or `model:NAME`; `objectives` such as `reverse_kl` or `jsd:0.5`. `budget` is targeted rollouts a
    question, or text such as `"200k-tokens"`; with `precision` (half-width of the intervals of gain) or `decide` (confidence that
    one is best) the run stops as soon as it may. `out` is a folder or an address such as `s3://bucket/run`. Other settings are those of
    `RunConfig` (rollouts, limit, max_tokens, seed, temperature, ...) and of `Execution` (device, batch_size, engine, executor, ...). Raises
    `GradalignError` for what the user can mend. An interrupted run goes on when it is called again, a finished one when it is
    called with a larger budget.
    """
    carried = {field.name: settings.pop(field.name) for field in fields(Execution) if field.name in settings}
    config = configure(questions, student, teachers, objectives, **settings)
    effort = Effort(parse_budget(str(budget)), precision, decide)
    return run_score(config, out, Execution(**carried), effort=effort)


def provenance(facts: Facts) -> dict[str, Any]:
    """Versions that the run was made with, and what loading the models had to say."""
    packages = ("gradalign", "torch", "transformers", "numpy")
    engine = {"vllm": vllm_version()} if facts.engine == "vllm" else {}
    return {
        "versions": {name: version(name) for name in packages} | engine | {"python": platform.python_version()},
        "notices": list(facts.notices),
    }
