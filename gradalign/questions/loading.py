"""Question sets from a source: built in, named, on the hub, or a user's own file; all of it, the first, or a random sample."""

import heapq
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from gradalign.builtin import builtin_names, builtin_path
from gradalign.home import expanded
from gradalign.questions.columns import Columns
from gradalign.questions.files import files_of, read_records
from gradalign.questions.sets import HubSource, hub_source, near_names
from gradalign.seeds import seed_of
from gradalign.types import GradalignError, Question

SPLITS = ("train", "heldout")


def load_questions(
    source: str,
    limit: int | None = None,
    *,
    split: str | None = None,
    columns: Mapping[str, str] | None = None,
    sample: int | None = None,
    seed: int = 0,
) -> tuple[Question, ...]:
    """Questions of `builtin:NAME[:SPLIT]`, a named set (`SETS`), `hf://OWNER/NAME[:CONFIG]`, a file, or a folder that `datasets` saved.

    `columns` says which column holds what (`parse_columns`). With `limit` no more than the first so many are read; `sample` takes so many
    of these at random, by `seed` and what each asks, whatever their order. A fault names file, place and mend.
    """
    asked = _distinct(_questions(source, split, columns or {}), source)
    taken = itertools.islice(asked, limit)
    questions = tuple(taken if sample is None else sampled(taken, sample, seed))
    if not questions:
        raise GradalignError(f"{source} holds no questions; give a set that has some")
    return questions


def sampled(questions: Iterable[Question], count: int, seed: int) -> list[Question]:
    """`count` questions at random, in their order: those with the smallest hashes of seed and text, so a larger sample holds a smaller."""

    def rank(place: tuple[int, Question]) -> tuple[int, int]:
        return seed_of(seed, "sample", place[1].text, *place[1].choices, place[1].answer), place[0]

    return [
        question for _, question in sorted(heapq.nsmallest(count, enumerate(questions), key=rank), key=lambda place: place[0])
    ]


def _questions(source: str, split: str | None, mapping: Mapping[str, str]) -> Iterator[Question]:
    hub = None if source.startswith("builtin:") else hub_source(source)
    if hub is not None:
        yield from _of_hub(hub, split, mapping)
        return
    path = _builtin(source, split) if source.startswith("builtin:") else expanded(source)
    if not os.path.exists(path):
        raise GradalignError(
            f"no such question set or file: {source}; give a file or folder, builtin:arithmetic, hf://OWNER/NAME or one of "
            f"{near_names(source)}"
        )
    split = None if source.startswith("builtin:") else split
    yield from _of_files(files_of(path, split, source), source, Columns(mapping))


def _of_hub(source: HubSource, split: str | None, mapping: Mapping[str, str]) -> Iterator[Question]:
    from gradalign.questions.hub import fetched

    if split is not None and source.splits and split not in source.splits:
        raise GradalignError(f"{source.text} has no split {split!r}; it has {', '.join(source.splits)}")
    for part in source.parts:
        name = source.text if len(source.parts) == 1 else f"{source.text} ({part.repository}, {part.configuration})"
        yield from _of_files(fetched(source, part, split), name, Columns(mapping, source.kind, part.label))


def _of_files(files: Iterable[Path], source: str, columns: Columns) -> Iterator[Question]:
    """The questions of files one after the other; where there are several, faults name the one."""
    files = tuple(files)
    for path in files:
        name = source if len(files) == 1 else f"{source} ({path.name})"
        for where, record in read_records(path, name):
            try:
                yield columns.question(record)
            except (ValueError, TypeError, RecursionError, OverflowError) as error:
                raise GradalignError(f"{name}, {where}: {error}") from error


def _builtin(source: str, split: str | None) -> Path:
    name, _, said = source.removeprefix("builtin:").partition(":")
    known = builtin_names("questions")
    if split is not None and said not in ("", split):
        raise GradalignError(f"{source} names a split and --split {split} another; give one")
    chosen = said or split or "train"
    if name not in known or chosen not in SPLITS:
        choices = ", ".join(f"builtin:{n}" for n in known)
        raise GradalignError(f"unknown built-in questions {source!r}; choose from {choices}, with :train or :heldout behind it")
    return builtin_path("questions") / name / f"{chosen}.jsonl"


def _distinct(questions: Iterable[Question], source: str) -> Iterator[Question]:
    seen: set[str] = set()
    for question in questions:
        if question.id in seen:
            raise GradalignError(
                f"{source} holds the question id {question.id!r} twice; give each question its own, or number them with --map id="
            )
        seen.add(question.id)
        yield question
