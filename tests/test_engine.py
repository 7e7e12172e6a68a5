"""Sampling on a real model: the right distribution, the same tokens whatever the batch, and memory that runs out."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from gradalign.engines import HFEngine, continuous
from gradalign.engines.continuous import Continuous
from gradalign.engines.sampling import defined_token, token_by_blocks
from gradalign.engines.trunks import passes, trunks_of
from gradalign.models import CausalLanguageModel
from gradalign.models.lines import laid_out, parts_of
from gradalign.models.shared_prefixes import Rows
from gradalign.seeds import seed_of
from gradalign.types import CompletionRequest, GradalignError

PROMPTS = [
    "Start at 3: +5 -2 (modulo 10). What is the total?",
    "Hello",
    "Start at 7: +1 +1 -9 (modulo 10). What is the total? " * 2,
]


@pytest.fixture(scope="module")
def requests(small):
    return [
        CompletionRequest(small.codec.prompt(text), tuple(seed_of(text, i) for i in range(12)), 5 + 10 * place)
        for place, text in enumerate(PROMPTS)
    ]


def sample(small, requests, batch_size) -> dict[tuple[int, int], tuple[list[int], np.ndarray, str]]:
    engine = HFEngine(small.language_model, small.codec.stop_ids, batch_size)
    return {(c.request, c.replicate): (c.tokens.tolist(), c.logprobs, c.stop) for c in engine.complete(requests)}


def test_tokens_do_not_depend_on_the_batch(small, requests):
    one = sample(small, requests, 1)
    assert len(one) == 36
    for batch_size in (5, 256):
        other = sample(small, requests, batch_size)
        for key, (tokens, logprobs, stop) in one.items():
            assert other[key][0] == tokens
            assert other[key][2] == stop
            np.testing.assert_allclose(other[key][1], logprobs, atol=1e-4)


def test_rows_that_read_none_some_or_all_of_one_prefix(small):
    long = small.codec.prompt(PROMPTS[2] * 6)
    counts = {1: 1500, 2: 100, 20: 100, len(long): 100}
    requests = [CompletionRequest(long[:length], tuple(range(count)), 3) for length, count in counts.items()]
    together, alone = (sample(small, requests, size) for size in (2048, 32))
    assert together.keys() == alone.keys()
    for key, (tokens, logprobs, _) in alone.items():
        assert together[key][0] == tokens
        np.testing.assert_allclose(together[key][1], logprobs, atol=1e-4)


def test_lengths_and_reasons(small, requests):
    stops = np.array(sorted(small.codec.stop_ids))
    for (request, _), (tokens, _, stop) in sample(small, requests, 256).items():
        limit = requests[request].max_tokens
        assert 1 <= len(tokens) <= limit
        assert np.isin(tokens[:-1], stops).sum() == 0
        assert (stop == "stop") == (tokens[-1] in stops)
        assert stop == "stop" or len(tokens) == limit


def test_log_probabilities_are_those_of_the_forward_pass(small, requests):
    model = small.language_model
    found = sample(small, requests, 256)
    for request in range(len(requests)):
        rows = [found[request, i] for i in range(12)]
        hidden = model.hidden_states(requests[request].prefix, [np.array(tokens) for tokens, _, _ in rows])
        for states, (tokens, logprobs, _) in zip(hidden, rows, strict=True):
            forward = model.logprobs(states).gather(1, torch.tensor(tokens)[:, None])[:, 0].numpy()
            np.testing.assert_allclose(forward, logprobs, atol=1e-4)


@torch.inference_mode()
def test_hidden_states_equal_a_plain_forward_pass(small):
    model, prompt = small.language_model, small.codec.prompt(PROMPTS[0])
    tokens = [np.array([20, 30, 40, 50]), np.array([60, 70])]
    for states, sequence in zip(model.hidden_states(prompt, tokens), tokens, strict=True):
        ids = torch.tensor([[*prompt, *sequence.tolist()]])
        plain = model.model(input_ids=ids).logits[0, len(prompt) - 1 : -1].float()
        torch.testing.assert_close(model.logits(states), plain[:, : model.vocabulary_size], atol=1e-4, rtol=1e-4)


def test_first_tokens_follow_the_distribution(small):
    prompt = small.codec.prompt(PROMPTS[0]) + tuple(small.codec.tokenizer("Start 3 +5")["input_ids"])
    seeds = tuple(seed_of("distribution", i) for i in range(4000))
    engine = HFEngine(small.language_model, small.codec.stop_ids, 2000)
    drawn = np.array([c.tokens[0] for c in engine.complete([CompletionRequest(prompt, seeds, 1)])])
    model = small.language_model
    probs = model.logprobs(model.hidden_states(prompt, [np.array([0])])[0]).exp()[0].double().numpy()
    counts = np.bincount(drawn, minlength=len(probs))
    common = probs * 4000 >= 5
    observed, expected = np.append(counts[common], counts[~common].sum()), np.append(probs[common], probs[~common].sum()) * 4000
    keep = expected > 0
    assert chisquare(observed[keep], expected[keep] * observed.sum() / expected[keep].sum()).pvalue > 1e-3


@torch.inference_mode()
def test_temperature_divides_the_logits(small):
    hot = CausalLanguageModel(small.language_model.model, "hot", small.language_model.vocabulary_size, temperature=2.0)
    states = small.language_model.hidden_states(small.codec.prompt("Hello"), [np.array([0])])[0]
    expected = torch.log_softmax(small.language_model.logits(states) / 2, -1)
    torch.testing.assert_close(hot.logprobs(states), expected)


def test_out_of_memory_halves_the_batch_and_goes_on(small, requests, monkeypatch, caplog):
    whole = sample(small, requests, 256)
    engine = HFEngine(small.language_model, small.codec.stop_ids, 36)
    real = Continuous._step

    def limited(self):
        if len(self.live_B) > 9 and self.rows.length_B.max() > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self)

    monkeypatch.setattr(Continuous, "_step", limited)
    found = {(c.request, c.replicate): c.tokens.tolist() for c in engine.complete(requests)}
    assert found == {key: tokens for key, (tokens, _, _) in whole.items()}
    assert engine.batches.size == 9
    assert "out of memory" in caplog.text
    monkeypatch.setattr(Continuous, "_step", lambda self: (_ for _ in ()).throw(torch.OutOfMemoryError("no")))
    with pytest.raises(GradalignError, match="one at a time"):
        list(engine.complete(requests))


def branching(small) -> list[CompletionRequest]:
    """Requests of a tree: prefixes that begin alike, lie within each other or are one token alone, with few rollouts and many."""
    root = small.codec.prompt(PROMPTS[0])
    prefixes = [
        root[:1],
        root,
        (*root, 20),
        (*root, 30),
        (*root, 20, 40, 50),
        (*root, 20, 60),
        (*root, 30, 40),
        (*root, 30, 40, 41),
    ]
    return [
        CompletionRequest(prefix, tuple(seed_of(i, j) for j in range((1, 9, 3, 2, 5, 1, 4, 2)[i])), 3 + 5 * (i % 4))
        for i, prefix in enumerate(prefixes)
    ]


def test_places_are_taken_again_and_prefixes_shared_whatever_the_batch(small, monkeypatch):
    requests, changes = branching(small), []
    real = Continuous._change
    monkeypatch.setattr(Continuous, "_change", lambda self, coming: (changes.append(coming), real(self, coming))[1])
    whole = sample(small, requests, 256)
    assert len(whole) == 27
    assert changes[0] == 27
    for batch_size in (1, 4, 11):
        changes.clear()
        found = sample(small, requests, batch_size)
        assert len(changes) > 3
        assert {key: row[0] for key, row in found.items()} == {key: row[0] for key, row in whole.items()}


def test_a_model_that_shares_nothing_gives_the_same_tokens(small, monkeypatch):
    requests = branching(small)
    shared = sample(small, requests, 11)
    monkeypatch.setattr(small.language_model, "shares_prefixes", False)
    alone = sample(small, requests, 11)
    for key, (tokens, logprobs, stop) in alone.items():
        assert shared[key][0] == tokens
        assert shared[key][2] == stop
        np.testing.assert_allclose(shared[key][1], logprobs, atol=1e-4)


@pytest.mark.parametrize("vocabulary", [5, 256, 700, 1024])
@pytest.mark.parametrize("spread", [0.0, 1.0, 30.0])
def test_blocks_find_the_defined_token(vocabulary, spread):
    torch.manual_seed(vocabulary)
    logprobs = torch.log_softmax(torch.randn(400, vocabulary) * spread, -1)
    uniform = torch.rand(400, dtype=torch.float64)
    uniform[:2] = torch.tensor([0.0, 1 - 2.0**-53])
    defined, found = (token(logprobs.exp(), uniform) for token in (defined_token, token_by_blocks))
    reached = logprobs.double().exp().cumsum(-1)
    at = uniform * reached[:, -1]
    edge = (reached - at[:, None]).abs().amin(-1)
    assert ((defined == found) | (edge < 1e-6)).all()
    assert (logprobs.exp().gather(1, found[:, None]) > 0).all()


def test_rows_that_read_little_get_lines_of_their_own():
    layout = laid_out(np.array([64]), np.repeat([10, 400], 32))
    assert layout.width == 32
    np.testing.assert_array_equal(layout.most(np.repeat([10, 400], 32)), [10, 400])
    assert laid_out(np.array([64]), np.full(64, 400)).width == 64


def test_what_begins_alike_is_fed_once(small, requests, monkeypatch):
    fed, real = [], continuous.next_states
    monkeypatch.setattr(continuous, "next_states", lambda *given: (fed.append(len(given[2])), real(*given))[1])
    together = sample(small, requests, 256)
    assert fed[:2] == [3, 36]
    fed.clear()
    alone = sample(small, requests, 1)
    assert set(fed) == {1}
    assert {key: row[0] for key, row in together.items()} == {key: row[0] for key, row in alone.items()}


def test_prefixes_read_by_lines_or_by_parts_give_the_same_tokens(small, monkeypatch):
    """As they are read elsewhere than on a CPU, and by a kernel there."""
    requests = branching(small)
    parted = sample(small, requests, 11)
    assert continuous.new_rows(small.language_model.model, torch.device("cpu")).parted
    monkeypatch.setattr(continuous, "new_rows", lambda model, device: Rows(device))
    for key, (tokens, logprobs, stop) in sample(small, requests, 11).items():
        assert parted[key][0] == tokens
        assert parted[key][2] == stop
        np.testing.assert_allclose(parted[key][1], logprobs, atol=1e-4)


def test_parts_hold_every_row_once_and_read_one_line():
    rng = np.random.default_rng(0)
    for most in (3, 300, 3000):
        line_B = np.repeat(np.arange(6), rng.integers(1, 40, 6))
        keys_B = rng.integers(0, most, len(line_B))
        parts = parts_of(line_B, keys_B)
        assert [row for part in parts for row in range(part.start, part.stop)] == list(range(len(line_B)))
        for part in parts:
            rows = slice(part.start, part.stop)
            assert {*line_B[rows].tolist()} == {part.line}
            assert part.keys == keys_B[rows].max()
            assert part.even == (len({*keys_B[rows].tolist()}) == 1)
            assert part.keys == 0 or keys_B[rows].min() > 0
    assert len(parts_of(np.zeros(64, dtype=int), np.repeat([100, 101], 32))) == 1
    assert len(parts_of(np.zeros(64, dtype=int), np.repeat([100, 1000], 32))) == 2


def test_lines_hold_every_row_once():
    rng = np.random.default_rng(0)
    for counts in ([32] * 8, [1] * 20, [200, *[1] * 56], [5], rng.integers(1, 40, 30).tolist()):
        layout = laid_out(np.array(counts), np.zeros(sum(counts), dtype=np.int64))
        lines = layout.row_C.reshape(-1, layout.width)
        prefix_B = np.repeat(np.arange(len(counts)), counts)
        assert (layout.row_C[layout.place_B] == np.arange(sum(counts))).all()
        assert (layout.prefix_P[layout.place_B // layout.width] == prefix_B).all()
        assert len(np.unique(layout.place_B)) == sum(counts)
        assert lines.size <= 3 * sum(counts)
        assert layout.full == (lines.size == sum(counts))


def test_trunks_are_the_longest_and_every_pass_is_bounded():
    bodies = [(1, 2), (1, 2, 3), (1, 2, 4, 5), (1,), (7,), (), (7, 8, 9)]
    trunk_of = trunks_of(bodies)
    assert {trunk_of[body] for body in bodies} == {(1, 2, 3), (1, 2, 4, 5), (7, 8, 9)}
    assert all(trunk[: len(body)] == body for body, trunk in trunk_of.items())
    trunks = [(*range(50), i, *range(i)) for i in range(20)] + [(100 + i,) * (i + 1) for i in range(9)]
    groups = list(passes(trunks, 60))
    assert sorted(trunk for group in groups for trunk in group) == sorted(trunks)
    assert max(map(len, groups)) > 3


def test_threads_may_share_a_model(small, requests):
    """As they do behind a server: attention is switched where all of them read it."""
    alone = [sample(small, [request], 5) for request in requests]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda place: sample(small, [requests[place % 3]], 5), range(18)))
    for place, found in enumerate(together):
        assert {key: tokens for key, (tokens, *_) in found.items()} == {
            key: tokens for key, (tokens, *_) in alone[place % 3].items()
        }
