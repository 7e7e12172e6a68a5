"""One self-contained HTML file: sections, style and script filled into a template, everything from models and files escaped."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined

from gradalign.configurations import Configuration
from gradalign.findings import CAVEAT
from gradalign.report.explorer import Explorer, pack_tokens
from gradalign.report.sections import make_sections
from gradalign.store import Place, Run, place_of
from gradalign.types import GradalignError
from gradalign.visible import visible


@dataclass(frozen=True)
class Report:
    """Where the page was written, its size in bytes, and of how many questions it has tokens."""

    path: Place
    size: int
    questions: int
    token_questions: int


def write_report(
    run: Run,
    path: str | Place | None = None,
    compare: Run | None = None,
    configurations: Sequence[Configuration] = (),
    token_questions: int = 200,
    draws: int = 1000,
    seed: int = 0,
    stage: Callable[[str, float], None] = lambda what, share: None,
) -> Report:
    """Write one self-contained HTML file about a run [RUN/report.html], beside another run if `compare` is given.

    `configurations` are ranked too. Tokens of at most `token_questions` questions are put in. `stage` is told what is being done
    and which share of the work is behind.
    """
    target = run.path / "report.html" if path is None else place_of(path)
    summary, sections = make_sections(run, compare, configurations, draws, seed, lambda what, share: stage(what, share / 2))
    explorer = pack_tokens(run, token_questions, done=lambda share: stage("tokens", 0.5 + 0.45 * share))
    questions = len(run.frame("questions", ["question"]))
    stage("page", 0.95)
    text = (
        _environment()
        .get_template("report.html.j2")
        .render(
            identity=run.identity,
            versions=run.description["provenance"].get("versions", {}),
            notices=run.description["provenance"].get("notices", []),
            summary=summary,
            sections=sections,
            packets=explorer.packets,
            shown=_shown(explorer, questions),
            index=_for_script(explorer.index),
            questions=questions,
            caveat=CAVEAT,
        )
    )
    content = text.encode("utf-8", "replace")
    try:
        if isinstance(target, Path):
            partial = target.with_name(f".{target.name}.partial")
            partial.write_bytes(content)
            partial.replace(target)
        else:
            target.write_bytes(content)
    except OSError as fault:
        raise GradalignError(f"cannot write {target}: {fault.strerror or fault}; choose another --out") from fault
    return Report(target, len(content), questions, len(explorer.packets))


def _shown(explorer: Explorer, questions: int) -> str:
    """How much of the run the explorer holds."""
    held = len(explorer.packets)
    if not held:
        return "No question of this run has scored tokens."
    if explorer.whole and held == questions:
        return f"All {questions:,} questions and all their rollouts are here."
    chance = ", taken at random" if held < explorer.questions else ""
    most = max(question["shown"] for question in explorer.index["questions"])
    which = "the rollout that passes" if most == 1 else f"up to {most} rollouts, those that pass"
    return (
        f"Tokens of {held:,} of {questions:,} questions are here{chance}; of each {which} the most scored tokens. "
        "`gradalign show` has every one."
    )


def _environment() -> Environment:
    environment = Environment(loader=FunctionLoader(_resource), autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters["visible"] = lambda text: visible(str(text))
    environment.globals["resource"] = _resource
    return environment


def _resource(name: str) -> str:
    return (resources.files("gradalign.report") / "templates" / name).read_text(encoding="utf-8")


def _for_script(value: Any) -> str:
    """JSON that cannot end the script element that it stands in."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
