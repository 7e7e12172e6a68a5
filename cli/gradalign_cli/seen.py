"""`gradalign contexts show` and `gradalign contexts template`: what models would see, and templates to copy."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from gradalign.types import GradalignError
from gradalign_cli.options import (
    BatchSize,
    ChatTemplate,
    ContextTokens,
    Demonstrations,
    Device,
    Dtype,
    Engine,
    Grader,
    Instruction,
    Map,
    MaxTokens,
    Place,
    Questions,
    Seed,
    Split,
    Student,
    TeacherTopK,
    Temperature,
    Thinking,
)

if TYPE_CHECKING:
    from rich.text import Text

    from gradalign.pipeline import Preview, Sight


def show(
    questions: Questions = None,
    student: Student = None,
    teacher: Annotated[
        list[str] | None, typer.Option(help="A teacher; give it once for each [default: every built-in context].")
    ] = None,
    question: Annotated[str | None, typer.Option(help="Id of the question [default: the first].", show_default=False)] = None,
    limit: Annotated[int, typer.Option(help="How many questions, from the first.", min=1)] = 1,
    columns: Map = None,
    split: Split = None,
    grader: Grader = None,
    instruction: Instruction = None,
    demonstrations: Demonstrations = 8,
    max_tokens: MaxTokens = None,
    temperature: Temperature = 1.0,
    seed: Seed = 0,
    thinking: Thinking = "off",
    context_tokens: ContextTokens = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    batch_size: BatchSize = None,
    engine: Engine = "auto",
    place: Place = None,
    teacher_top_k: TeacherTopK = 20,
    chat_template: ChatTemplate = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Print exactly what the student and each teacher would see, with special tokens, token counts and the boundary marked.

    Demonstrations are sampled as a run with the same settings samples them; nothing is scored and nothing kept. The boundary, the tokens
    with which the chat template opens the answer, stands between ⟦ and ⟧; behind it goes on the student's first rollout.

    **Examples**

    `gradalign contexts show --teacher ctx:correct_demo --teacher ctx:correct_demo:system`

    `gradalign contexts show questions.jsonl --student Qwen3-0.6B --teacher ctx:mine.j2 --question q7 --thinking on`
    """
    from gradalign_cli.console import errors, safe
    from gradalign_cli.progress import ProgressDisplay

    with ProgressDisplay() as progress:
        progress.stage("starting")
        from gradalign.api import configure, run_preview
        from gradalign.contexts import CONTEXTS
        from gradalign.pipeline import Execution

        config = configure(
            questions, student, teacher or [f"ctx:{name}" for name in CONTEXTS], limit=limit, max_tokens=max_tokens,
            demonstrations=demonstrations, temperature=temperature, seed=seed, dtype=dtype, thinking=thinking == "on",
            context_tokens=context_tokens, teacher_top_k=teacher_top_k, columns=tuple(columns or ()), split=split,
            grader=grader, instruction=instruction,
            chat_template=None if chat_template is None else str(chat_template),
        )  # fmt: skip
        execution = Execution(device, batch_size, engine, place=tuple(place or ()))
        found, notices = run_preview(config, question, execution, progress)
    for notice in notices:
        errors.print(f"note: {safe(notice)}")
    if as_json:
        typer.echo(json.dumps([asdict(each) for each in found], indent=2))
        return
    for each in found:
        _print_preview(each, config.student)


def template(name: Annotated[str, typer.Argument(help="A built-in context, as correct_demo.", metavar="NAME")]) -> None:
    """Print the template of a built-in context, to copy and to edit.

    What it makes is privileged text, and goes where the teacher's PLACE says; a template that uses `prompt`, what the student sees, is the
    whole user message.

    **Examples**

    `gradalign contexts template correct_demo > mine.j2`
    """
    from gradalign.contexts import CONTEXTS, template_text

    if name not in CONTEXTS[1:]:
        raise GradalignError(f"no built-in template {name!r}; choose from {', '.join(CONTEXTS[1:])}")
    typer.echo(template_text(name))


def _print_preview(found: "Preview", student: str) -> None:
    from gradalign_cli.console import output, safe

    output.print(f"[bold]question {safe(found.question.id)}[/]  answer {safe(found.question.answer)}", soft_wrap=True)
    for sight in found.sights:
        who = f"student {student}" if sight.who == "student" else sight.who
        output.print(f"\n[bold]{safe(who)}[/]: {safe(_counts(sight))}", highlight=False, soft_wrap=True)
        output.print(_prompt(sight, found.completion), soft_wrap=True)
    for skip in found.skips:
        detail = f" ({skip.detail})" if skip.detail else ""
        output.print(f"\n[bold]{safe(skip.teacher or 'all')}[/]: left out, {safe(skip.reason + detail)}", soft_wrap=True)
    output.print(f"\nBehind every ⟧: the student's first rollout, {found.completion_tokens} tokens.\n", style="dim")


def _counts(sight: "Sight") -> str:
    parts = [f"{sight.length:,} tokens"]
    if sight.private:
        parts.append(f"{sight.private:,} of them privileged")
    if sight.private is None:
        parts.append("a whole message of one's own")
    if sight.cut:
        parts.append(f"{sight.cut:,} more cut")
    opening = " ".join(repr(piece) for piece in sight.boundary) or "none"
    return f"{', '.join(parts)}; boundary of {len(sight.boundary)}: {opening}"


def _prompt(sight: "Sight", completion: str) -> "Text":
    """The prompt, its boundary between brackets, and how the completion goes on."""
    from rich.text import Text

    from gradalign.visible import visible

    text = Text(visible(sight.prompt))
    text.append("⟦", "bold")
    text.append(visible("".join(sight.boundary)), "reverse")
    text.append("⟧", "bold")
    text.append(visible(completion), "dim")
    return text
