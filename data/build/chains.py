"""Worked solutions as rows of words, each with the distribution it came from: the solver that students imitate."""

import random
from dataclasses import dataclass

from tasks import Puzzle

OPENING = "Start"
CLOSING = ". Answer:"
LURED = 0.7
OBEYED = 0.98

Distribution = dict[str, float]


@dataclass(frozen=True)
class Slot:
    """One word of a solution: the word drawn and the distribution over words it came from."""

    word: str
    target: Distribution


@dataclass(frozen=True)
class Chain:
    """A worked solution: its words, the state after each operation and the final answer."""

    slots: tuple[Slot, ...]
    states: tuple[str, ...]
    answer: str

    @property
    def text(self) -> str:
        return "".join(slot.word for slot in self.slots)


def solve(puzzle: Puzzle) -> Chain:
    """The right solution."""
    return draw_chain(puzzle, 0.0, random.Random(0))


def draw_chain(puzzle: Puzzle, rate: float, rng: random.Random, lure: Chain | None = None, given: str | None = None) -> Chain:
    """A solution with slips at about `rate` a step, each carried on; slips follow `lure`, the answer obeys `given`."""
    slots = [_certain(OPENING), _certain(f" {puzzle.start}")]
    states: list[str] = []
    for index, operation in enumerate(puzzle.operations):
        lured_to = lure.states[index] if lure else None
        slot = _draw(step_target(puzzle, states[-1] if states else puzzle.start, operation, rate, lured_to), rng)
        slots += [_certain(f" {operation}"), slot]
        states.append(slot.word.strip())
    final = _draw(_answer_target(puzzle.task.conclude(states[-1]), given), rng)
    return Chain((*slots, _certain(CLOSING), final), tuple(states), final.word.strip())


def step_target(puzzle: Puzzle, state: str, operation: str, rate: float, lured_to: str | None) -> Distribution:
    """The distribution of the next state."""
    task = puzzle.task
    right = task.step(state, operation)
    error = min(0.5, rate * task.weight(state, operation))
    target = {f" {right}": 1.0 - error}
    lured = LURED if lured_to not in (None, right) else 0.0
    slips = task.slips(state, operation)
    for slip in slips:
        target[f" {slip}"] = error * (1.0 - lured) / len(slips)
    if lured:
        target[f" {lured_to}"] = target.get(f" {lured_to}", 0.0) + error * lured
    return target


def draw_chain_with(puzzle: Puzzle, correct: bool, rate: float, rng: random.Random) -> Chain:
    """A noisy solution whose answer is right or wrong as asked, by drawing until it is."""
    answer = solve(puzzle).answer
    while True:
        chain = draw_chain(puzzle, rate, rng)
        if (chain.answer == answer) == correct:
            return chain


def condense(puzzle: Puzzle, chain: Chain) -> Chain:
    """Every second step of a solution and its answer."""
    slots = [_certain(OPENING)]
    for operation, state in list(zip(puzzle.operations, chain.states, strict=True))[1::2]:
        slots += [_certain(f" {operation}"), _certain(f" {state}")]
    return Chain((*slots, _certain(CLOSING), _certain(f" {chain.answer}")), chain.states, chain.answer)


def _answer_target(concluded: str, given: str | None) -> Distribution:
    if given is None or given == concluded:
        return {f" {concluded}": 1.0}
    return {f" {given}": OBEYED, f" {concluded}": 1.0 - OBEYED}


def _certain(word: str) -> Slot:
    return Slot(word, {word: 1.0})


def _draw(target: Distribution, rng: random.Random) -> Slot:
    return Slot(rng.choices(tuple(target), weights=tuple(target.values()))[0], target)
