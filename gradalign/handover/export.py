"""Write a configuration of a run into a folder that a trainer reads."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gradalign.configurations import Configuration
from gradalign.handover.mapping import trl_plan
from gradalign.handover.tables import question_table, token_table
from gradalign.home import expanded
from gradalign.store import Run
from gradalign.types import GradalignError

FORMATS = ("trl", "json", "parquet")
_TABLES = ("questions", "tokens")
_TRAINING = ("trl.json", "train.jsonl", "train.py", "chat_template.jinja")
_KEPT = (
    "student",
    "questions",
    "seed",
    "max_tokens",
    "temperature",
    "rollouts",
    "dtype",
    "chat_template",
    "weights of student",
)


@dataclass(frozen=True)
class Export:
    """What was written: the folder, its files, questions and those left out by reason, the trainer (of `to="trl"`), and in words what
    it does not carry over."""

    folder: Path
    files: tuple[str, ...]
    questions: int
    left_out: dict[str, int]
    trainer: str | None
    not_carried: tuple[str, ...]
    notes: tuple[str, ...]


def default_folder(run: Run, configuration: Configuration) -> Path:
    """RUN/export/NAME, or ./export/NAME for a run in an object store; the name made safe: it never leads out of that folder."""
    slug = re.sub(r"[^A-Za-z0-9._]+", "-", configuration.name)[:80].strip("-.")
    return (run.path if isinstance(run.path, Path) else Path()) / "export" / (slug or "configuration")


def export_configuration(
    run: Run, configuration: Configuration, folder: str | Path, to: str = "trl", force: bool = False
) -> Export:
    """Write a training configuration of a run for a trainer into `folder`; with `force` in the place of an earlier export.

    configuration.json; `questions` with weights of mean 1 and teacher messages; `tokens` with a weight for every token of the base
    rollouts. `to` is `json` (JSON lines), `parquet`, or `trl`, which adds trl.json, train.jsonl and a script train.py that trains.
    """
    if to not in FORMATS:
        raise GradalignError(f"cannot export to {to!r}; choose from {', '.join(FORMATS)}")
    _require_scored_alike(run, configuration)
    target = expanded(folder)
    _require_free(target, force)
    questions, left_out = question_table(run, configuration)
    tokens = token_table(run, configuration, questions)
    lost, notes = _unknown_weights(configuration, tokens), _unscored(run, configuration)
    plan = None
    if to == "trl":
        plan = trl_plan(configuration, run.identity, questions["prompt"].to_pylist(), questions["teacher_message"].to_pylist())
        lost = [*plan.description["not_carried"], *lost]
        notes = [*plan.description["notes"], *notes]
    template = _chat_template(run, lost) if plan is not None else None
    written: dict[str, str | pa.Table] = {}
    for name, table in zip(_TABLES, (questions, tokens), strict=True):
        written[f"{name}.jsonl" if to == "json" else f"{name}.parquet"] = table
    if plan is not None:
        written["trl.json"] = _json(plan.description | {"not_carried": lost, "notes": notes})
        written["train.jsonl"] = "".join(json.dumps(row) + "\n" for row in _rows(questions, plan.contexts, _own_grader(run)))
        written["train.py"] = (resources.files("gradalign.handover") / "train.py").read_text(encoding="utf-8")
        written |= {} if template is None else {"chat_template.jinja": template}
    written["configuration.json"] = _json({
        "configuration": {field.name: _plain(getattr(configuration, field.name)) for field in fields(configuration)},
        "run": {name: run.identity.get(name) for name in _KEPT} | {"gradalign": _version(run)},
        "questions": questions.num_rows,
        "left_out": left_out,
        "files": [*written, "configuration.json"],
        "not_carried": lost,
        "notes": notes,
    })  # fmt: skip
    _write(target, written)
    trainer = None if plan is None else plan.description["trainer"]
    return Export(target, tuple(written), questions.num_rows, left_out, trainer, tuple(lost), tuple(notes))


def _require_scored_alike(run: Run, configuration: Configuration) -> None:
    """Refuse a configuration whose teacher or temperature the run does not have."""
    name, teacher, identity = configuration.name, configuration.teacher, run.identity
    if teacher is not None and teacher not in identity["teachers"]:
        raise GradalignError(f"{name}: the run has no teacher {teacher}; score with --teacher {teacher}")
    if configuration.temperature != identity["temperature"]:
        mend = f"score with --temperature {configuration.temperature:g}"
        raise GradalignError(f"{name}: the run has temperature {identity['temperature']:g}; {mend}")


def _require_free(folder: Path, force: bool) -> None:
    try:
        if folder.is_dir() and any(folder.iterdir()) and not force:
            raise GradalignError(f"folder {folder} is not empty; choose another --out, or --force to write there")
    except OSError as error:
        raise GradalignError(f"cannot read {folder}: {error.strerror or error}; choose another --out") from error


def _unknown_weights(configuration: Configuration, tokens: pa.Table) -> list[str]:
    unknown = tokens["weight"].null_count
    if not unknown:
        return []
    reason = (
        "alignment is known at nodes with targeted rollouts only" if configuration.tokens.kind == "positive_alignment" else ""
    )
    reason = reason or "the run knows nothing of their nodes"
    return [f"Weights of {unknown:,} of {tokens.num_rows:,} tokens are missing: {reason}. Missing is not 0."]


def _unscored(run: Run, configuration: Configuration) -> list[str]:
    missing = [objective for objective in configuration.objectives if objective not in run.identity["objectives"]]
    return [f"The run has no scores of {', '.join(missing)}: it says nothing of this configuration."] if missing else []


def _chat_template(run: Run, lost: list[str]) -> str | None:
    """The text of the chat template that the run was given in the place of the model's own."""
    path = run.identity.get("chat_template")
    if path is None:
        return None
    try:
        return expanded(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        lost.append(f"The chat template {path} cannot be read here: trained is with the one that the model brings.")
        return None


def _rows(questions: pa.Table, contexts: list[str] | None, grader: str | None) -> Iterable[dict[str, Any]]:
    """The data set in TRL's columns; answer, kind, choices and the user's own function are for the grader."""
    for place, row in enumerate(questions.drop_columns(["teacher_message", "teacher_prompt_tokens", "pass_rate"]).to_pylist()):
        row["prompt"] = [{"role": "user", "content": row["prompt"]}]
        row |= {} if grader is None else {"grader": grader}
        yield row if contexts is None else row | {"privileged_context": contexts[place]}


def _own_grader(run: Run) -> str | None:
    """The user's function that graded the run, as `MODULE:FUNCTION`."""
    grader = run.identity.get("grader")
    return grader if grader is not None and ":" in grader else None


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, str | int | float) else str(value)


def _version(run: Run) -> str | None:
    return run.description["provenance"].get("versions", {}).get("gradalign")


def _json(record: dict[str, Any]) -> str:
    return json.dumps(record, indent=2) + "\n"


def _write(folder: Path, written: dict[str, str | pa.Table]) -> None:
    """Write the files; those of an earlier export in another format go."""
    earlier = {*_TRAINING, *(f"{name}.{suffix}" for name in _TABLES for suffix in ("jsonl", "parquet"))}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in earlier - {*written}:
            (folder / name).unlink(missing_ok=True)
        for name, content in written.items():
            if isinstance(content, str):
                (folder / name).write_text(content, encoding="utf-8")
            elif name.endswith(".parquet"):
                pq.write_table(content, folder / name, compression="zstd")
            else:
                frame = content.to_pandas()
                frame.to_json(folder / name, orient="records", lines=True, double_precision=15)
    except OSError as error:
        raise GradalignError(f"cannot write {folder}: {error.strerror or error}; choose another --out") from error
