"""Carry out a run in this process: parts in order, pass after pass over them, each written when it is done."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import torch

from gradalign.findings import Standing, standing_of
from gradalign.pipeline.budget import Budget, Effort
from gradalign.pipeline.cast import Cast
from gradalign.pipeline.config import RunConfig
from gradalign.pipeline.group import Spending, planned_units, score_group, sources
from gradalign.pipeline.progress import Progress
from gradalign.pipeline.restore import stored_questions
from gradalign.pipeline.stopping import Watch, looks, passes
from gradalign.seeds import seed_of
from gradalign.store import RunFolder
from gradalign.types import GradalignError, Question

_SMALL = 20_000_000


def execute(
    folder: RunFolder, questions: Sequence[Question], cast: Cast, config: RunConfig, effort: Effort, progress: Progress
) -> None:
    """Score every question that the run folder does not hold yet at this budget, or until the run's goal is reached."""
    _check(config, effort)
    parts = split(questions, config)
    ledger = _Ledger(folder, config, effort.budget)
    budgets = passes(effort)
    counts = looks(len(questions))
    watch = Watch(effort, len(counts) + len(budgets) - 1, config.pairs, len(questions), folder.outcome())
    meter = _Meter(progress, config, cast, len(questions))
    todo = [(budget, part) for budget in budgets for part in range(len(parts)) if not ledger.reached(part, budget)]
    meter.plan(todo, [len(part) for part in parts], set(ledger.notes))
    progress.standing(ledger.standing(), ledger.spent())
    if todo or effort.sequential:
        folder.write_outcome(watch.verdict(ledger.standing(), ledger.spent(), ended=False) if effort.sequential else {})
    with fitting_threads(cast):
        for budget in budgets:
            scored = 0
            for number, places in enumerate(parts):
                if not ledger.reached(number, budget):
                    stored = stored_questions(folder, number, cast, config.student) if number in ledger.notes else {}
                    spending = Spending(budget, len(questions), frozenset(watch.dropped))
                    meter.part(len(places), budget, bool(stored))
                    rows = score_group(places, cast, config, spending, meter, stored)
                    ledger.write(number, rows, budget)
                    meter.complete()
                    progress.standing(ledger.standing(), ledger.spent())
                before, scored = scored, scored + len(places)
                due = any(before < count <= scored for count in counts) if budget == budgets[0] else scored == len(questions)
                if effort.sequential and due:
                    seen = ledger.standing(range(number + 1))
                    stop = watch.look(f"{scored} questions at {budget}", seen)
                    folder.write_outcome(watch.verdict(seen, ledger.spent(), ended=stop))
                    if stop:
                        return
    if effort.sequential:
        folder.write_outcome(watch.verdict(ledger.standing(), ledger.spent(), ended=True))


def _check(config: RunConfig, effort: Effort) -> None:
    """Refuse goals that this run can never reach."""
    if effort.sequential and config.node_selection == "top":
        raise GradalignError("a run that takes the top nodes has no intervals to stop by; leave out --decide and --precision")
    if effort.decide is not None and config.pairs == 1:
        raise GradalignError(
            "there is nothing to decide between one teacher and one objective; give more, or leave out --decide"
        )


def split(questions: Sequence[Question], config: RunConfig) -> list[list[tuple[int, Question]]]:
    """Parts of questions in a seeded random order, so that those finished first stand for all; each with its place in the set.

    Parts are of about equal size, since a question's design is measured by the others of its part.
    """
    order = np.random.default_rng(seed_of(config.seed, "order of questions")).permutation(len(questions))
    places = [(int(i), questions[int(i)]) for i in order]
    count = -(-len(places) // config.part_size)
    edges = [len(places) * part // count for part in range(count + 1)]
    return [places[start:stop] for start, stop in pairwise(edges)]


@contextmanager
def fitting_threads(cast: Cast) -> Iterator[None]:
    """One CPU thread while every model is small: their matrices gain nothing from more, and threads that wait for each other lose much."""
    before = torch.get_num_threads()
    if cast.parameters < _SMALL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def data_fingerprint(questions: Sequence[Question]) -> str:
    """A hash of the questions as they were read."""
    text = json.dumps([asdict(question) for question in questions], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


class _Ledger:
    """What the run folder holds: how far each part went, and the rows that the standing is made of."""

    def __init__(self, folder: RunFolder, config: RunConfig, budget: Budget):
        self.folder, self.config = folder, config
        self.notes = folder.finished()
        for note in self.notes.values():
            if note["unit"] != budget.unit:
                raise GradalignError(
                    f"run {folder.path} has a budget in {note['unit']}, not {budget.unit}; go on with the same unit"
                )
        self.scores = {part: folder.rows(part, "scores") for part in self.notes}
        self.counts = {part: _spent(folder.rows(part, "questions")) for part in self.notes}

    def reached(self, part: int, budget: Budget) -> bool:
        """Was the part scored with this budget or a larger one?"""
        note = self.notes.get(part)
        return note is not None and note["amount"] >= budget.amount

    def write(self, part: int, rows: dict[str, list[dict[str, Any]]], budget: Budget) -> None:
        note = {"amount": budget.amount, "unit": budget.unit}
        self.folder.write(part, rows, note)
        self.notes[part], self.scores[part], self.counts[part] = note, rows["scores"], _spent(rows["questions"])

    def standing(self, parts: Sequence[int] | None = None) -> Standing:
        """Where teachers and objectives stand on the finished parts, or on some of them."""
        chosen = self.scores if parts is None else [part for part in parts if part in self.scores]
        rows = [row for part in sorted(chosen) for row in self.scores[part]]
        columns = ["question", "teacher", "objective", "length", "dot", "dot_se", "d_norm2", "advantage"]
        return standing_of(pd.DataFrame(rows, columns=columns), self.config.teachers, self.config.objectives)

    def spent(self) -> tuple[int, int]:
        """Rollouts and tokens sampled so far."""
        return sum(count for count, _ in self.counts.values()), sum(tokens for _, tokens in self.counts.values())


def _spent(questions: Sequence[dict[str, Any]]) -> tuple[int, int]:
    return sum(q["rollouts"] + q["targeted_rollouts"] for q in questions), sum(q["sampled_tokens"] for q in questions)


class _Meter:
    """Keeps a part's units at what was planned for it, whatever it really took."""

    def __init__(self, progress: Progress, config: RunConfig, cast: Cast, questions: int):
        self.progress, self.config, self.questions = progress, config, questions
        self.pools = len(sources(cast))
        self.left = 0

    def plan(self, todo: Sequence[tuple[Budget, int]], sizes: Sequence[int], held: set[int]) -> None:
        """Announce the work: each pass over each part, the first of which samples what later ones find stored."""
        total, seen = 0, set(held)
        for budget, part in todo:
            total += self._units(budget, part in seen) * sizes[part]
            seen.add(part)
        self.progress.begin(total, 0)

    def part(self, questions: int, budget: Budget, held: bool) -> None:
        """A part begins."""
        self.left = questions * self._units(budget, held)

    def _units(self, budget: Budget, held: bool) -> int:
        return planned_units(self.config, self.pools, budget, self.questions, held)

    def begin(self, units: int, done: int) -> None:
        self.progress.begin(units, done)

    def stage(self, what: str) -> None:
        self.progress.stage(what)

    def advance(self, units: int) -> None:
        step = min(units, self.left)
        self.left -= step
        self.progress.advance(step)

    def standing(self, standing: Standing, spent: tuple[int, int]) -> None:
        self.progress.standing(standing, spent)

    def complete(self) -> None:
        self.advance(self.left)
