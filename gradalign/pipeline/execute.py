"""Carry out a run: parts in waves between looks, pass after pass over them, by whatever executor."""

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import pairwise

import numpy as np

from gradalign.contexts import parse_teacher
from gradalign.findings import Standing, Tally
from gradalign.pipeline.budget import Budget, Effort
from gradalign.pipeline.config import RunConfig
from gradalign.pipeline.group import SET_ASIDE, Spending, planned_units
from gradalign.pipeline.progress import Progress
from gradalign.pipeline.samples import sources
from gradalign.pipeline.stopping import Watch, looks, passes
from gradalign.pipeline.tries import Tries
from gradalign.pipeline.work import SPENT, Done, Executor, Task, spent
from gradalign.seeds import seed_of
from gradalign.store import RunFolder, RunLog, session
from gradalign.types import GradalignError, Question

Places = list[tuple[int, Question]]


def execute(
    folder: RunFolder, questions: Sequence[Question], executor: Executor, config: RunConfig, effort: Effort, progress: Progress
) -> None:
    """Score every question that the run folder does not hold yet at this budget, or until the run's goal is reached."""
    _check(config, effort)
    parts = split(questions, config)
    ledger = _Ledger(folder, config, effort.budget)
    budgets = passes(effort)
    counts = looks(len(questions))
    watch = Watch(effort, len(counts) + len(budgets) - 1, config.pairs, len(questions), folder.outcome())
    todo = [(budget, part) for budget in budgets for part in range(len(parts)) if not ledger.reached(part, budget)]
    units = _Units(config, len(questions))
    progress.begin(units.total(todo, parts, set(ledger.notes)), 0)
    progress.standing(ledger.standing(), ledger.spent())
    if todo or effort.sequential:
        folder.write_outcome(watch.verdict(ledger.standing(), ledger.spent(), ended=False) if effort.sequential else {})
    if not todo and not effort.sequential:
        return
    facts = {"questions": len(questions), "parts": len(parts), "to_do": len(todo), "budget": str(effort.budget)}
    with session(folder.path, **facts) as run_log:
        crew = _Crew(folder, config, executor, ledger, progress, Tries(run_log), run_log)
        for budget in budgets:
            due = counts if effort.sequential and budget == budgets[0] else [len(questions)]
            for wave, scored in _waves(parts, due):
                spending = Spending(budget, len(questions), frozenset(watch.dropped))
                crew.score(
                    [units.task(part, parts[part], spending, ledger) for part in wave if not ledger.reached(part, budget)]
                )
                if effort.sequential:
                    seen = ledger.standing(range(wave[-1] + 1))
                    stop = watch.look(f"{scored} questions at {budget}", seen)
                    folder.write_outcome(watch.verdict(seen, ledger.spent(), ended=stop))
                    run_log.write("look", questions=scored, budget=str(budget), stopped=watch.stopped)
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


def split(questions: Sequence[Question], config: RunConfig) -> list[Places]:
    """Parts of questions in a seeded random order, so that those finished first stand for all; each with its place in the set.

    Parts are of about equal size, since a question's design is measured by the others of its part.
    """
    order = np.random.default_rng(seed_of(config.seed, "order of questions")).permutation(len(questions))
    places = [(int(i), questions[int(i)]) for i in order]
    count = -(-len(places) // config.part_size)
    edges = [len(places) * part // count for part in range(count + 1)]
    return [places[start:stop] for start, stop in pairwise(edges)]


def data_fingerprint(questions: Sequence[Question]) -> str:
    """A hash of the questions as they were read."""
    text = json.dumps([asdict(question) for question in questions], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _waves(parts: Sequence[Places], due: Sequence[int]) -> Iterator[tuple[range, int]]:
    """Ranges of parts up to each number of questions that is due, with the number that is then scored.

    Between them a run is looked at; what is scored next may depend on it, and on nothing else, whatever the order in which parts end.
    """
    start, scored = 0, 0
    for number, places in enumerate(parts):
        before, scored = scored, scored + len(places)
        if any(before < count <= scored for count in due):
            yield range(start, number + 1), scored
            start = number + 1


class _Crew:
    """Has waves of tasks scored, and keeps the ledger, the log and the display of it."""

    def __init__(
        self,
        folder: RunFolder,
        config: RunConfig,
        executor: Executor,
        ledger: "_Ledger",
        progress: Progress,
        tries: Tries,
        run_log: RunLog,
    ):
        self.folder, self.config, self.executor, self.ledger = folder, config, executor, ledger
        self.progress, self.tries, self.run_log = progress, tries, run_log
        self.shown = self.took = 0.0

    def score(self, tasks: Sequence[Task]) -> None:
        """Score tasks, and what has to be tried again because of them."""
        self.tries.begin()
        while tasks:
            again: list[Task] = []
            for outcome in self.executor.run(self.folder, self.config, tasks, self.progress):
                if isinstance(outcome, Done) and not outcome.task.trial:
                    self._note(outcome)
                again += self.tries.after(outcome)
            tasks = again
        self._show(due=True)

    def _note(self, done: Done) -> None:
        self.folder.require_held()
        self.folder.require_seen(done.task.part, done.worker or "this process")
        self.ledger.put(done)
        rollouts, tokens = self.ledger.spent()
        self.run_log.write(
            "part", part=done.task.part, questions=len(done.task.places), budget=str(done.task.spending.budget),
            took=round(done.seconds, 3), worker=done.worker, scored=self.ledger.questions(), rollouts=rollouts, tokens=tokens,
        )  # fmt: skip
        self._show()

    def _show(self, due: bool = False) -> None:
        """Tell where the run stands: when it is `due`, else in at most a twentieth of the time, since a look at thousands has its price."""
        began = time.monotonic()
        if not due and began - self.shown < 20 * self.took:
            return
        self.progress.standing(self.ledger.standing(), self.ledger.spent())
        self.shown = time.monotonic()
        self.took = self.shown - began


class _Ledger:
    """What the run folder holds: how far each part went, and the sums that the standing is made of."""

    def __init__(self, folder: RunFolder, config: RunConfig, budget: Budget):
        self.notes = folder.finished()
        for note in self.notes.values():
            if note["unit"] != budget.unit:
                raise GradalignError(
                    f"run {folder.path} has a budget in {note['unit']}, not {budget.unit}; go on with the same unit"
                )
        self.tally = Tally(config.teachers, config.objectives)
        self.counts: dict[int, tuple[int, int, int]] = {}
        self.aside: dict[int, dict[str, str]] = {}
        for part in self.notes:
            skips = (row for row in folder.rows(part, "skipped") if row["reason"] == SET_ASIDE)
            self.aside[part] = {row["question"]: row["detail"] for row in skips}
            questions = folder.table(part, "questions", SPENT)
            self.tally.put(part, folder.rows(part, "scores"))
            self.counts[part] = (len(questions), *spent(questions))

    def reached(self, part: int, budget: Budget) -> bool:
        """Was the part scored with this budget or a larger one?"""
        note = self.notes.get(part)
        return note is not None and note["amount"] >= budget.amount

    def put(self, done: Done) -> None:
        """Take note of a part that was just written."""
        part, budget = done.task.part, done.task.spending.budget
        self.notes[part] = {"amount": budget.amount, "unit": budget.unit}
        self.tally.put(part, done.scores)
        self.aside[part] = dict(done.task.left_out)
        self.counts[part] = (len(done.task.places), done.rollouts, done.tokens)

    def standing(self, parts: Sequence[int] | None = None) -> Standing:
        """Where teachers and objectives stand on the finished parts, or on some of them."""
        return self.tally.standing(parts)

    def spent(self) -> tuple[int, int]:
        """Rollouts and tokens sampled so far."""
        return sum(count[1] for count in self.counts.values()), sum(count[2] for count in self.counts.values())

    def questions(self) -> int:
        """Questions in finished parts."""
        return sum(count[0] for count in self.counts.values())


class _Units:
    """How much work parts are planned to be, in units of `Progress`."""

    def __init__(self, config: RunConfig, questions: int):
        self.config, self.questions = config, questions
        self.pools = len(sources([parse_teacher(spec) for spec in config.teachers]))

    def total(self, todo: Sequence[tuple[Budget, int]], parts: Sequence[Places], held: set[int]) -> int:
        """Units of all passes over all parts, the first of which samples what later ones find stored."""
        total, seen = 0, set(held)
        for budget, part in todo:
            total += self._of(parts[part], budget, part in seen)
            seen.add(part)
        return total

    def task(self, part: int, places: Places, spending: Spending, ledger: _Ledger) -> Task:
        """The task that scores a part."""
        held = part in ledger.notes
        units = self._of(places, spending.budget, held)
        return Task(part, places, spending, units, held, left_out=ledger.aside.get(part, {}))

    def _of(self, places: Places, budget: Budget, held: bool) -> int:
        return len(places) * planned_units(self.config, self.pools, budget, self.questions, held)
