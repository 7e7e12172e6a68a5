"""Kinds of questions with known truth: easy, hard, long with one decisive token, many nearly tied tokens, and a mixture.

In all of them a state of a layer is a line of thought: most tokens keep to it, at forks some lead to another, and the last
line decides success. As in language models most states are nearly sure of their token and a few are forks.
"""

from dataclasses import dataclass

import numpy as np

from gradalign.testbed.automaton import Automaton


@dataclass(frozen=True)
class Family:
    """How questions of a kind are drawn.

    `length` thoughts, one token each, and the verdict; `vocabulary` tokens, `forks` share of states that are unsure, `jump` chance
    that a token of a fork leads to another line, `pass_rate` about which the pass rates of the questions lie, `slips` share of
    last tokens that fail anyway. With `decisive`, lines change in one random layer of each question only.
    """

    length: int = 24
    vocabulary: int = 16
    width: int = 6
    forks: float = 0.25
    jump: float = 0.3
    pass_rate: float = 0.5
    slips: float = 0.02
    decisive: bool = False


_CERTAIN = 40.0  # nats by which other verdicts are less likely

FAMILIES = {
    "easy": Family(pass_rate=0.85),
    "hard": Family(pass_rate=0.12),
    "decisive": Family(length=30, forks=0.4, jump=0.6, decisive=True),
    "tied": Family(jump=0.02, forks=0.6),
    "mixed": Family(length=28, pass_rate=0.5, jump=0.15),
}


def draw_family(name: str, questions: int, seed: int) -> Automaton:
    """`questions` random questions of the family as one automaton."""
    family = FAMILIES[name]
    rng = np.random.default_rng([seed, sorted(FAMILIES).index(name)])
    shape = (questions, family.length, family.width, family.vocabulary)
    fork_QTW = rng.random(shape[:3]) < family.forks
    fork_QTW[:, 0, 0] = True
    sharpness = np.where(fork_QTW, 1.5, 5.0)
    logits = sharpness[..., None] * rng.standard_normal(shape)
    logits[~fork_QTW, 0] += 8.0
    logprobs = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    may_jump = fork_QTW.copy()
    if family.decisive:
        layer = rng.integers(0, family.length - 1, questions)
        may_jump[:] = False
        may_jump[np.arange(questions), layer] = True
        logprobs[np.arange(questions), layer] = _softened(rng, (questions, family.width, family.vocabulary))
    jumps = (rng.random(shape) < family.jump) & may_jump[..., None]
    stay = np.broadcast_to(np.arange(family.width)[:, None], shape)
    successor = np.where(jumps, rng.integers(0, family.width, shape), stay)
    successor[:, -1] = _right(family, logprobs, successor, rng)
    verdict = np.full((questions, 1, *shape[2:]), -_CERTAIN)
    verdict[:, :, 0, 0] = verdict[:, :, 1:, 1] = 0.0
    logprobs = np.concatenate([logprobs, verdict], axis=1)
    return Automaton(logprobs, np.concatenate([successor, np.zeros_like(successor[:, :1])], axis=1), name)


def _softened(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    logits = 1.5 * rng.standard_normal(shape)
    return logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)


def _right(family: Family, logprobs: np.ndarray, successor: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Which last thoughts (Q, W, V) are right: lines in random order until the question's pass rate is reached, the last in part."""
    questions, _, width, vocabulary = logprobs.shape
    reach_QW = Automaton(logprobs, successor).visitation_QTW[:, -1]
    target_Q = rng.beta(8 * family.pass_rate, 8 * (1 - family.pass_rate), questions)
    right = np.zeros((questions, width, vocabulary), dtype=bool)
    for q in range(questions):
        left = target_Q[q]
        for line in rng.permutation(width):
            share = float(np.clip(left / max(reach_QW[q, line], 1e-12), 0, 1))
            right[q, line] = _right_tokens(np.exp(logprobs[q, -1, line]), share, rng)
            left -= reach_QW[q, line]
            if left <= 0:
                break
    return right ^ (rng.random(right.shape) < family.slips)


def _right_tokens(probs: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """A random set of tokens that holds about `share` of the mass."""
    order = rng.permutation(len(probs))
    before = np.cumsum(probs[order]) - probs[order]
    right = np.zeros(len(probs), dtype=bool)
    right[order] = before + probs[order] / 2 < share
    return right
