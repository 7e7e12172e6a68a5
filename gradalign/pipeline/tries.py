"""What to do about parts that break: three tries, then the questions at fault are set aside and the rest of the part goes on."""

import logging
from collections import Counter
from dataclasses import dataclass, field, replace

from gradalign.pipeline.work import Done, Failed, Task
from gradalign.store import RunLog
from gradalign.types import GradalignError

log = logging.getLogger(__name__)
TRIES = 3


@dataclass(eq=False)
class _Case:
    """A part in trouble: its task, how often it failed by the question that was named (None: none was), and how many are on trial."""

    task: Task
    failures: Counter[str | None] = field(default_factory=Counter)
    on_trial: int = 0
    trials: Counter[str] = field(default_factory=Counter)
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def again(self) -> Task:
        return replace(self.task, left_out=dict(self.left_out))


class Tries:
    """Tells which tasks to run after a failure.

    A question that is named by three failures is set aside with the reason. Where a part breaks three times and none is named, as when
    its worker dies, each of its questions is tried alone, and those that break alone are set aside; if none does, the part has three
    more tries, and is then set aside whole. Where questions break one after the other, two in the same way before anything is scored or a
    whole part with nothing scored between them, that is not their fault, as when a device is lost: the run ends, and goes on later. A part
    that the run holds already, from a smaller budget, stays as it was after three failures: nothing finished is given up.
    """

    def __init__(self, run_log: RunLog):
        self.run_log = run_log
        self.cases: dict[int, _Case] = {}
        self.reasons: Counter[str] = Counter()
        self.scored = False

    def begin(self) -> None:
        """A new wave of tasks: what failed in an earlier one is settled."""
        self.cases.clear()

    def after(self, outcome: Done | Failed) -> list[Task]:
        """The tasks to run next because of this outcome; empty where it is settled."""
        if isinstance(outcome, Done):
            if outcome.scores:
                self.scored = True
                self.reasons.clear()
            return self._tried(outcome.task) if outcome.task.trial else []
        task, question = outcome.task, outcome.question
        case = self.cases.setdefault(task.part, _Case(task, left_out=dict(task.left_out)))
        if task.trial:
            return self._after_trial(case, outcome)
        if question in case.left_out or len(case.left_out) == len(task.places):
            raise GradalignError(f"part {task.part} cannot be written: {outcome.reason}") from outcome.error
        case.failures[question] += 1
        tries = case.failures[question]
        where = f"part {task.part}" if question is None else f"question {question!r}"
        log.warning("%s failed (try %d): %s", where, tries, outcome.reason)
        self.run_log.write("failed", part=task.part, question=question, tries=tries, reason=outcome.reason)
        if task.held and tries >= TRIES:
            log.warning("part %d stays as it was before: %s", task.part, outcome.reason)
            return []
        if question is not None and tries >= TRIES:
            self._set_aside(case, question, outcome)
        elif question is None and tries == TRIES:
            return self._trials(case)
        elif question is None and tries >= 2 * TRIES:
            for _, left in task.places:
                self._set_aside(case, left.id, outcome)
        return [case.again]

    def _after_trial(self, case: _Case, failed: Failed) -> list[Task]:
        """A question that fails alone, as often as a part may, is at fault."""
        question = failed.task.places[0][1].id
        case.trials[question] += 1
        if case.trials[question] < TRIES:
            return [failed.task]
        self._set_aside(case, question, failed)
        return self._tried(failed.task)

    def _trials(self, case: _Case) -> list[Task]:
        alone = [place for place in case.task.places if place[1].id not in case.left_out]
        case.on_trial = len(alone)
        return [replace(case.task, places=[place], units=0, held=False, trial=True) for place in alone]

    def _tried(self, trial: Task) -> list[Task]:
        case = self.cases[trial.part]
        case.on_trial -= 1
        return [] if case.on_trial else [case.again]

    def _set_aside(self, case: _Case, question: str, failed: Failed) -> None:
        if question in case.left_out:
            return
        case.left_out[question] = failed.reason
        self.run_log.write("set aside", part=case.task.part, question=question, reason=failed.reason)
        log.warning("question %r is set aside: %s", question, failed.reason)
        self.reasons[failed.reason] += 1
        in_a_row, lasting = sum(self.reasons.values()), max(TRIES, len(case.task.places))
        if in_a_row >= lasting or (not self.scored and self.reasons[failed.reason] > 1):
            raise GradalignError(
                f"{'no more' if self.scored else 'nothing'} can be scored: one question after the other fails, the last ({question!r}) "
                f"with {failed.reason}"
            ) from failed.error
