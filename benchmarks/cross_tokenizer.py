"""A teacher with another tokenizer: how far off are the probabilities of the student's tokens that are made of its own? Against the truth.

Texts over a few characters, drawn by a chain, so that what the teacher says of any token of any vocabulary is known exactly. Pairs of
tokenizers, one for each side; rollouts of a student that writes other texts. At every node the probabilities made of the teacher's are
compared with the true ones: by matching tokens of the same text alone, with the chain rule for spans of the teacher's tokens, with the
whole mass of each teacher token on the student token that comes first, inside of teacher tokens too, with tokens that begin before an
edge, and with that mass shared with longer student tokens that nothing else tells.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from rich.progress import track
from trials import SMALL, console, report

from gradalign.models.cross import CrossModel
from gradalign.models.told import Told
from gradalign.models.translation import Translation
from gradalign.objectives import NodeSignals, parse_objective
from gradalign.tails import spread_shares, spread_tail
from gradalign.testbed import CharacterChain, TokenView

ALPHABET = "abcd"
CHARACTERS = [*ALPHABET]
PAIRED = [*ALPHABET, "ab", "cd", "ba"]
OTHER = [*ALPHABET, "bc", "da", "cc"]
LONG = [*ALPHABET, "ab", "abc", "cd", "dad"]
TOKENIZERS = {
    "the same": (PAIRED, PAIRED),
    "student in pairs, teacher in characters": (PAIRED, CHARACTERS),
    "student in characters, teacher in pairs": (CHARACTERS, PAIRED),
    "other pairs": (PAIRED, OTHER),
    "pairs, longer words": (PAIRED, LONG),
    "longer words, other pairs": (LONG, OTHER),
}
WORLDS, ROLLOUTS, LENGTH = (2, 8, 12) if SMALL else (20, 64, 24)
_TINY = 1e-12


def matched(model: CrossModel, told: Told) -> torch.Tensor:
    """Tokens with the same text alone, at edges alone; the rest is untold."""
    translation = model.translation
    words = [translation.student.words_V, translation.teacher.words_V]
    equal = [
        (token, first)
        for token, first in enumerate(translation.first_V)
        if words[0][first] == words[1][token]
    ]  # fmt: skip
    teacher, student = (torch.tensor(ids) for ids in zip(*equal, strict=True))
    found = torch.full((len(told.kind_N), model.vocabulary_size), torch.nan, dtype=torch.float64)
    edges = (told.kind_N == -1).nonzero()[:, 0]
    found[edges[:, None], student] = model.inner.logprobs(told.hidden_NH)[edges][:, teacher]
    return found


def matched_and_taken(model: CrossModel, told: Told) -> torch.Tensor:
    """The same, and the products of the teacher's probabilities over spans."""
    found = matched(model, told)
    there = (told.to_NM >= 0) & (told.kind_N == -1)[:, None]
    found[there.nonzero()[:, 0], told.to_NM[there].long()] = told.moved_NM[there]
    return found


def without(**blank: bool) -> Callable[[CrossModel, Told], torch.Tensor]:
    """The library's own, less some of what it knows."""

    def found(model: CrossModel, told: Told) -> torch.Tensor:
        if blank.get("inside"):
            told = replace(told, kind_N=torch.where(told.kind_N >= 0, -2.0, told.kind_N))
        if blank.get("earlier"):
            told = replace(told, target_NW=torch.full_like(told.target_NW, -1), rest_N=torch.full_like(told.rest_N, torch.nan))
        if blank.get("taken"):
            told = replace(told, to_NM=torch.full_like(told.to_NM, -1), from_NM=torch.full_like(told.from_NM, -1))
        if blank.get("inside"):
            dark = (told.kind_N == -2)[:, None]
            told = replace(told, target_NW=torch.where(dark, -1.0, told.target_NW), to_NM=torch.where(dark, -1.0, told.to_NM))
            told = replace(told, from_NM=torch.where(dark, -1.0, told.from_NM))
        return model.logprobs(told.pack())

    return found


SHARED = "and shared (used)"
WAYS: dict[str, Callable[[CrossModel, Told], torch.Tensor]] = {
    "matching": matched,
    "matching, spans": matched_and_taken,
    "first token": without(inside=True, earlier=True, taken=True),
    "first token, spans": without(inside=True, earlier=True),
    "and inside tokens": without(earlier=True),
    "and across edges": without(),
    SHARED: without(),
}


def world(student_words: list[str], teacher_words: list[str], seed: int) -> dict[str, dict[str, np.ndarray]]:
    """Errors of every way at all nodes of a fresh pair of chains, by name."""
    pupil = TokenView(CharacterChain.random(ALPHABET, 2 * seed), student_words)
    chain = CharacterChain.random(ALPHABET, 2 * seed + 1)
    truth, teacher = TokenView(chain, student_words), TokenView(chain, teacher_words)
    model = CrossModel(teacher, Translation(truth.spelling, teacher.spelling))
    rng = np.random.default_rng(seed)
    rollouts = [pupil.sample(rng, LENGTH) for _ in range(ROLLOUTS)]
    told = Told.unpack(torch.cat(model.hidden_states((0,), rollouts)))
    pi, exact = (torch.cat(view.hidden_states((0,), rollouts)) for view in (pupil, truth))
    kept = torch.isfinite(exact.exp().sum(-1))
    taken = torch.from_numpy(np.concatenate(rollouts))[kept]
    pi, exact = ((p.exp() + _TINY).log()[kept] for p in (pi, exact))
    found = {name: way(model, told)[kept] for name, way in WAYS.items()}
    found[SHARED] = spread_shares(found[SHARED], pi, model.home_V)
    return {name: errors(values, pi, exact, taken) for name, values in found.items()}


def errors(found: torch.Tensor, pi: torch.Tensor, exact: torch.Tensor, taken: torch.Tensor) -> dict[str, np.ndarray]:
    """What is off at each of N nodes."""
    spread, tail = spread_tail(found, pi)
    spread = spread.clamp_min(float(np.log(_TINY)))
    rows = torch.arange(len(taken))
    reverse = parse_objective("reverse_kl")
    d, d_true = (reverse.direction(NodeSignals(pi, tau)) for tau in (spread, exact))
    values = {
        "total variation": (spread.exp() - exact.exp()).abs().sum(-1) / 2,
        "taken": (spread[rows, taken].exp() - exact[rows, taken].exp()).abs(),
        "tail": tail.nan_to_num(0.0),
        "dot": (d * d_true).sum(-1),
        "norm2": (d**2).sum(-1),
        "norm2_true": (d_true**2).sum(-1),
    }
    return {name: value.numpy() for name, value in values.items()}


def main() -> None:
    rows, stored = [], {}
    for name, (student_words, teacher_words) in track(TOKENIZERS.items(), "tokenizers", console=console):
        worlds = [world(student_words, teacher_words, seed) for seed in range(WORLDS)]
        for way in WAYS:
            found = {key: np.concatenate([w[way][key] for w in worlds]) for key in worlds[0][way]}
            off = found["total variation"]
            said = {
                "nodes": len(off),
                "total_variation": off.mean(),
                "total_variation_95": np.quantile(off, 0.95),
                "taken": found["taken"].mean(),
                "exact_nodes": (off < 1e-6).mean(),
                "tail": found["tail"].mean(),
                "cosine": found["dot"].sum() / np.sqrt(found["norm2"].sum() * found["norm2_true"].sum()),
            }
            stored.setdefault(name, {})[way] = {key: float(value) for key, value in said.items()}
            rows.append([
                f"{name}: {way}", f"{said['total_variation']:.3f}", f"{said['total_variation_95']:.3f}", f"{said['taken']:.3f}",
                f"{said['exact_nodes']:.0%}", f"{said['tail']:.3f}", f"{said['cosine']:.3f}",
            ])  # fmt: skip
    columns = ["tokenizers, and what is told", "off", "95%", "token taken", "exact", "tail", "cosine"]
    report("cross_tokenizer", "A teacher with another tokenizer, against the truth (total variation)", columns, rows, stored)


if __name__ == "__main__":
    main()
