"""Question sets: the built-in ones and JSON-lines files. Every fault names its file and line."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gradalign.builtin import builtin_names, builtin_path
from gradalign.home import expanded
from gradalign.questions.grading import is_number, read_answer
from gradalign.types import GradalignError, Question

KINDS = ("numeric", "boolean", "choice", "exact")
SPLITS = ("train", "heldout")


def load_questions(source: str, limit: int | None = None) -> tuple[Question, ...]:
    """Questions of `builtin:NAME`, `builtin:NAME:SPLIT` or a .jsonl file, the first `limit` of them."""
    path = _builtin(source) if source.startswith("builtin:") else expanded(source)
    if not os.path.isfile(path):
        raise GradalignError(f"no such question file: {source}; give a .jsonl file or builtin:arithmetic")
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise GradalignError(f"{source} cannot be read ({error}); give a .jsonl file in UTF-8") from error
    questions = tuple(_parsed(lines, source))
    if not questions:
        raise GradalignError(f"{source} holds no questions")
    _require_unique(questions, source)
    return questions[:limit]


def _builtin(source: str) -> Path:
    name, _, split = source.removeprefix("builtin:").partition(":")
    known = builtin_names("questions")
    if name not in known or (split or "train") not in SPLITS:
        choices = ", ".join(f"builtin:{n}" for n in known)
        raise GradalignError(f"unknown built-in questions {source!r}; choose from {choices}, with :train or :heldout behind it")
    return builtin_path("questions") / name / f"{split or 'train'}.jsonl"


def _parsed(lines: Iterable[str], source: str) -> Iterable[Question]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            yield _question(json.loads(line), number)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            what = f"lacks {error}" if isinstance(error, KeyError) else str(error)
            raise GradalignError(
                f"{source}, line {number}: {what}; a line is a JSON object with question, answer and, if wanted, id, kind, "
                "choices, solution, difficulty"
            ) from error


def _question(record: Any, number: int) -> Question:
    if not isinstance(record, dict):
        raise TypeError("not an object")
    listed = record.get("choices") or []
    if not isinstance(listed, list) or len(listed) > 26:
        raise ValueError("choices must be a list of at most 26")
    choices = tuple(_text(choice, "a choice") for choice in listed)
    answer = _text(record["answer"], "the answer")
    kind = record.get("kind") or _guessed_kind(answer, choices)
    if kind not in KINDS:
        raise ValueError(f"kind {kind!r} is none of {', '.join(KINDS)}")
    optional = {key: None if record.get(key) is None else _text(record[key], key) for key in ("solution", "difficulty")}
    name = _text(record.get("id", f"q{number}"), "the id")
    question = Question(name, _text(record["question"], "the question"), answer, kind, choices, **optional)
    if read_answer(question, answer) is None:
        raise ValueError(f"the answer {answer!r} is not one that a {kind} grader can read")
    return question


def _text(value: Any, what: str) -> str:
    """A text from a JSON string, number or boolean; nothing empty, and nothing that has no UTF-8."""
    if not isinstance(value, str | int | float | bool):
        raise TypeError(f"{what} is neither text nor a number")
    text = ("yes" if value else "no") if isinstance(value, bool) else str(value).strip()
    text.encode()
    if not text:
        raise ValueError(f"{what} is empty")
    return text


def _guessed_kind(answer: str, choices: tuple[str, ...]) -> str:
    if choices:
        return "choice"
    if answer.lower() in ("yes", "no", "true", "false"):
        return "boolean"
    return "numeric" if is_number(answer) else "exact"


def _require_unique(questions: tuple[Question, ...], source: str) -> None:
    seen: set[str] = set()
    for question in questions:
        if question.id in seen:
            raise GradalignError(f"{source} holds the question id {question.id!r} twice; give each question its own")
        seen.add(question.id)
