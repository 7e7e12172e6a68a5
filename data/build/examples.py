"""Training examples: a prompt as the toolkit renders it, and the noisy solver's answer with its word distributions."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from chains import Chain, Slot, condense, draw_chain, draw_chain_with, solve
from tasks import TASKS, Puzzle, Task, draw_puzzle
from vocabulary import END

from gradalign.contexts import Material, render_context, render_summary_request
from gradalign.types import Question

SUMMARISE = "summarise"
SHARES = {
    "none": 22,
    "correct_demo": 14,
    "correct_wrong_demo": 13,
    "wrong_demo": 14,
    "summary": 11,
    "reference": 8,
    "answer": 12,
    SUMMARISE: 6,
}
GIVEN_RIGHT = 0.5
DEMONSTRATION_RATES = (0.04, 0.16)


@dataclass(frozen=True)
class Example:
    """A user message and the assistant's words."""

    message: str
    slots: tuple[Slot, ...]


@dataclass(frozen=True)
class Shown:
    """What a context shows of one puzzle."""

    correct: Chain
    wrong: Chain
    answer: str


def stream_examples(rates: dict[str, float], held_out: frozenset[str], rng: random.Random) -> Iterator[Example]:
    """Endless examples of all tasks, difficulties and contexts, without the held-out questions."""
    contexts, weights = tuple(SHARES), tuple(SHARES.values())
    while True:
        task = rng.choice(TASKS)
        puzzle = draw_puzzle(task, rng.choice(task.difficulties), rng)
        if puzzle.text not in held_out:
            yield draw_example(puzzle, rng.choices(contexts, weights)[0], rates, rng)


def draw_example(puzzle: Puzzle, context: str, rates: dict[str, float], rng: random.Random) -> Example:
    """One example: what the context shows is drawn as a student would write it."""
    shown = _draw_shown(puzzle, rng)
    message = _fill(_template(puzzle.task, context), puzzle, shown)
    if context == SUMMARISE:
        chain = condense(puzzle, shown.correct)
    else:
        lure = shown.wrong if context == "wrong_demo" else None
        chain = draw_chain(puzzle, rates[context], rng, lure, shown.answer if context == "answer" else None)
    return Example(message, (*chain.slots, Slot(END, {END: 1.0})))


def _draw_shown(puzzle: Puzzle, rng: random.Random) -> Shown:
    rate = rng.uniform(*DEMONSTRATION_RATES)
    correct = draw_chain_with(puzzle, True, rate, rng)
    wrong = draw_chain_with(puzzle, False, rate, rng)
    return Shown(correct, wrong, correct.answer if rng.random() < GIVEN_RIGHT else rng.choice(puzzle.task.answers))


def _fill(template: str, puzzle: Puzzle, shown: Shown) -> str:
    values = {
        "{question}": puzzle.text,
        "{correct}": shown.correct.text,
        "{wrong}": shown.wrong.text,
        "{summary}": condense(puzzle, shown.correct).text,
        "{solution}": solve(puzzle).text,
        "{answer}": shown.answer,
    }
    for mark, value in values.items():
        template = template.replace(mark, value)
    return template


@cache
def _template(task: Task, context: str) -> str:
    """The toolkit's own rendering of a context, with a mark wherever an example puts its text."""
    question = Question(id="", text="{question}", answer="", kind=task.kind, choices=task.options)
    if context == SUMMARISE:
        return render_summary_request(question, "{correct}")
    material = Material(correct="{correct}", wrong="{wrong}", summary="{summary}", solution="{solution}", answer="{answer}")
    return render_context(context, question, material).user
