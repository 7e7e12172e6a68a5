"""The three built-in tasks: how their questions read, what each step does, and how a noisy solver slips on it.

A puzzle is a start state and a row of operations, no operation twice. Its worked solution restates them:

    arithmetic  Start 3 +5 8 -2 6. Answer: 6
    boolean     Start off press on wait on. Answer: yes
    choice      Start red red-blue blue green-black blue. Answer: C
"""

import random
from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import permutations

from gradalign.types import AnswerKind

COLOURS = ("red", "blue", "green", "black")
LETTERS = ("A", "B", "C", "D")
TOGGLES = ("press", "flip", "tap", "click", "toggle", "twist", "push", "pull")
IDLES = ("wait", "skip", "rest", "look", "pause", "sit", "nod", "hum")
SLIP_PRONE_VERBS = frozenset(TOGGLES[4:] + IDLES[4:])


@dataclass(frozen=True)
class Task(ABC):
    """What a task must say of itself; states, operations and answers are single words."""

    name: str
    kind: AnswerKind
    difficulties: tuple[int, ...]
    states: tuple[str, ...]
    operations: tuple[str, ...]
    answers: tuple[str, ...]
    options: tuple[str, ...] = ()

    @abstractmethod
    def ask(self, start: str, operations: tuple[str, ...]) -> str:
        """The question's text."""

    @abstractmethod
    def step(self, state: str, operation: str) -> str:
        """The right next state."""

    @abstractmethod
    def slips(self, state: str, operation: str) -> tuple[str, ...]:
        """The wrong next states that a careless solver may write."""

    @abstractmethod
    def weight(self, state: str, operation: str) -> float:
        """How much likelier than average a slip is here."""

    @abstractmethod
    def conclude(self, state: str) -> str:
        """The answer that a last state means."""

    def share(self, state: str, operation: str) -> float:
        """How often an operation is asked for in this state, next to others."""
        return 1.0


@dataclass(frozen=True)
class Arithmetic(Task):
    """A running total modulo ten; slips are off by one, likelier on subtraction and on wrapping around."""

    name: str = "arithmetic"
    kind: AnswerKind = "numeric"
    difficulties: tuple[int, ...] = (2, 4, 6)
    states: tuple[str, ...] = tuple(map(str, range(10)))
    operations: tuple[str, ...] = tuple(f"{sign}{size}" for sign in "+-" for size in range(1, 10))
    answers: tuple[str, ...] = states

    def ask(self, start: str, operations: tuple[str, ...]) -> str:
        return f"Start at {start}: {' '.join(operations)} (modulo 10). What is the total?"

    def step(self, state: str, operation: str) -> str:
        return str((int(state) + int(operation)) % 10)

    def slips(self, state: str, operation: str) -> tuple[str, ...]:
        right = int(self.step(state, operation))
        return str((right + 1) % 10), str((right - 1) % 10)

    def share(self, state: str, operation: str) -> float:
        return 0.25 if self._wraps(state, operation) else 1.0

    def weight(self, state: str, operation: str) -> float:
        return 0.75 * (1.5 if operation.startswith("-") else 1.0) * (1.8 if self._wraps(state, operation) else 1.0)

    def conclude(self, state: str) -> str:
        return state

    def _wraps(self, state: str, operation: str) -> bool:
        return not 0 <= int(state) + int(operation) <= 9


@dataclass(frozen=True)
class Boolean(Task):
    """A light that half of the actions switch; a slip switches it when it should not, or the reverse."""

    name: str = "boolean"
    kind: AnswerKind = "boolean"
    difficulties: tuple[int, ...] = (4, 6, 8)
    states: tuple[str, ...] = ("on", "off")
    operations: tuple[str, ...] = TOGGLES + IDLES
    answers: tuple[str, ...] = ("yes", "no")

    def ask(self, start: str, operations: tuple[str, ...]) -> str:
        return f"The light is {start}. Actions: {' '.join(operations)}. Is the light on?"

    def step(self, state: str, operation: str) -> str:
        return _other(state, self.states) if operation in TOGGLES else state

    def slips(self, state: str, operation: str) -> tuple[str, ...]:
        return (_other(self.step(state, operation), self.states),)

    def weight(self, state: str, operation: str) -> float:
        return 1.5 if operation in SLIP_PRONE_VERBS else 0.5

    def conclude(self, state: str) -> str:
        return "yes" if state == "on" else "no"


@dataclass(frozen=True)
class Choice(Task):
    """A ball under one of four cups that are swapped; a slip misses a swap of its cup or follows another one."""

    name: str = "choice"
    kind: AnswerKind = "choice"
    difficulties: tuple[int, ...] = (2, 4, 6)
    states: tuple[str, ...] = COLOURS
    operations: tuple[str, ...] = tuple("-".join(pair) for pair in permutations(COLOURS, 2))
    answers: tuple[str, ...] = LETTERS
    options: tuple[str, ...] = COLOURS

    def ask(self, start: str, operations: tuple[str, ...]) -> str:
        return f"The ball is under {start}. Swaps: {' '.join(operations)}. Where is the ball?"

    def step(self, state: str, operation: str) -> str:
        pair = tuple(operation.split("-"))
        return _other(state, pair) if state in pair else state

    def slips(self, state: str, operation: str) -> tuple[str, ...]:
        pair = tuple(operation.split("-"))
        return (state,) if state in pair else pair

    def weight(self, state: str, operation: str) -> float:
        return 1.4 if state in operation.split("-") else 0.7

    def conclude(self, state: str) -> str:
        return LETTERS[COLOURS.index(state)]


TASKS: tuple[Task, ...] = (Arithmetic(), Boolean(), Choice())


@dataclass(frozen=True)
class Puzzle:
    """One question of a task, before it is put in words."""

    task: Task
    start: str
    operations: tuple[str, ...]

    @property
    def text(self) -> str:
        return self.task.ask(self.start, self.operations)


def draw_puzzle(task: Task, steps: int, rng: random.Random) -> Puzzle:
    """A random puzzle of `steps` distinct operations."""
    start = state = rng.choice(task.states)
    operations: list[str] = []
    for _ in range(steps):
        left = [operation for operation in task.operations if operation not in operations]
        operations += rng.choices(left, [task.share(state, operation) for operation in left])
        state = task.step(state, operations[-1])
    return Puzzle(task, start, tuple(operations))


def _other(value: str, pair: tuple[str, ...]) -> str:
    return pair[1] if value == pair[0] else pair[0]
