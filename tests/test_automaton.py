"""The testbed's dynamic programming against enumeration and against its own engine."""

import itertools

import numpy as np
import pytest
import torch

from gradalign.engines import Engine
from gradalign.models import LanguageModel
from gradalign.objectives import NodeSignals, ideal_direction, parse_objective
from gradalign.testbed import FAMILIES, Automaton, AutomatonCodec, draw_family
from gradalign.types import CompletionRequest


@pytest.fixture(scope="module")
def small_automaton() -> Automaton:
    """Two questions, four steps, three states, three tokens: 81 sequences each."""
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((2, 4, 3, 3))
    return Automaton(logits - np.logaddexp.reduce(logits, -1, keepdims=True), rng.integers(0, 3, logits.shape))


def test_it_is_an_engine_and_a_language_model(small_automaton):
    assert isinstance(small_automaton, Engine)
    assert isinstance(small_automaton, LanguageModel)


def test_values_and_scores_equal_enumeration(small_automaton):
    model, objective = small_automaton, parse_objective("reverse_kl")
    teacher = model.teacher(2.0, 0.5, 0.7, seed=1)
    exact = model.exact_scores(teacher, objective)
    for q in range(2):
        value, dot, norm2, advantage = 0.0, 0.0, 0.0, 0.0
        for sequence in itertools.product(range(3), repeat=4):
            states = model.states(q, np.array(sequence))[:4]
            chance = np.exp(sum(model.logprobs_QTWV[q, t, s, k] for t, (s, k) in enumerate(zip(states, sequence, strict=True))))
            value += chance * (sequence[-1] == 1)
            for t, s in enumerate(states):
                pi, tau = (torch.tensor(m.logprobs_QTWV[q, t, s])[None] for m in (model, teacher))
                success = torch.tensor(model.success_QTWV[q, t, s])[None]
                d = objective.direction(NodeSignals(pi, tau))
                dot += chance * float((ideal_direction(pi, success) * d).sum())
                norm2 += chance * float((d**2).sum())
                advantage += chance * float(((tau.exp() - pi.exp()) * success).sum())
        assert model.value_QTW[q, 0, 0] == pytest.approx(value)
        assert exact.dot_Q[q] == pytest.approx(dot)
        assert exact.d_norm2_Q[q] == pytest.approx(norm2)
        assert exact.advantage_Q[q] == pytest.approx(advantage)
    assert exact.length_Q == pytest.approx([4, 4])


def test_the_engine_samples_what_the_table_says(small_automaton):
    request = CompletionRequest((4, 2), tuple(range(4000)), 9)
    completions = list(small_automaton.complete([request]))
    state = small_automaton.states(1, np.array([2]))[-1]
    first = np.bincount([c.tokens[0] for c in completions], minlength=3) / 4000
    expected = np.exp(small_automaton.logprobs_QTWV[1, 1, state])
    assert (np.abs(first - expected) < 4.5 * np.sqrt(expected * (1 - expected) / 4000)).all()
    assert all(len(c.tokens) == 3 for c in completions)
    success = np.mean([c.tokens[-1] == 1 for c in completions])
    assert abs(success - small_automaton.success_QTWV[1, 0, 0, 2]) < 4.5 * 0.5 / np.sqrt(4000)
    again = {c.replicate: tuple(c.tokens) for c in small_automaton.complete([CompletionRequest((4, 2), (7, 3), 9)])}
    by_seed = {c.replicate: tuple(c.tokens) for c in completions}
    assert again == {0: by_seed[7], 1: by_seed[3]}


def test_hidden_states_are_the_rows_of_the_prefixes(small_automaton):
    tokens = np.array([2, 0, 1, 1])
    [hidden] = small_automaton.hidden_states((4,), [tokens])
    states = small_automaton.states(1, tokens)[:4]
    expected = small_automaton.logprobs_QTWV[1, np.arange(4), states]
    np.testing.assert_allclose(small_automaton.logprobs(hidden).numpy(), expected)


@pytest.mark.parametrize("name", FAMILIES)
def test_families_are_what_they_are_called(name):
    model = draw_family(name, 40, 0)
    passed = model.value_QTW[:, 0, 0]
    assert abs(passed.mean() - FAMILIES[name].pass_rate) < 0.12
    assert np.allclose(np.exp(model.logprobs_QTWV).sum(-1), 1)
    codec = AutomatonCodec(model)
    [done] = model.complete([CompletionRequest(codec.prompt("question 3"), (1,), 99)])
    assert len(done.tokens) == model.length
    assert codec.text(done.tokens) in ("Answer: yes", "Answer: no")
    better, worse = (model.exact_scores(model.teacher(tilt), parse_objective("reverse_kl")) for tilt in (1.0, -1.0))
    assert better.drive > 0 > worse.drive
    assert better.gain > 0 > worse.gain
    assert better.teacher_advantage > 0 > worse.teacher_advantage


def test_only_one_layer_of_a_decisive_question_leads_elsewhere():
    model = draw_family("decisive", 10, 0)
    thoughts = model.successor_QTWV[:, :-2]
    moves = (thoughts != np.arange(model.width)[:, None]).any(axis=(2, 3)).sum(1)
    assert (moves <= 1).all()
    assert moves.sum() > 5
