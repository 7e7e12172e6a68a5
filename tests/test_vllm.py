"""Sampling with a real vLLM: the exact distribution, seeds, stops, padding, interruptions, and a run against transformers."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import chi2_contingency, chisquare
from transformers import AutoModelForCausalLM

import gradalign
from gradalign.builtin import builtin_path
from gradalign.engines import HFEngine, VLLMEngine, vllm_setup
from gradalign.models import CausalLanguageModel, LoadOptions, load_model
from gradalign.seeds import seed_of
from gradalign.types import Completion, CompletionRequest, GradalignError

# vLLM and what it imports warn of their own affairs, here and there even while sampling
pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900), pytest.mark.filterwarnings("ignore")]

MANY = 20_000
PROMPTS = [
    "Start at 3: +5 -2 (modulo 10). What is the total?",
    "Hello",
    "Start at 7: +1 +1 -9 (modulo 10). What is the total? " * 2,
]


@pytest.fixture(scope="module")
def engine(small):
    return VLLMEngine(small.language_model, small.codec.stop_ids)


@pytest.fixture(scope="module")
def requests(small):
    return [
        CompletionRequest(small.codec.prompt(text), tuple(seed_of(text, i) for i in range(12)), 5 + 10 * place)
        for place, text in enumerate(PROMPTS)
    ]


@pytest.fixture(scope="module")
def whole(engine, requests):
    """Every completion of the requests, as they are when nothing gets in the way."""
    return sample(engine, requests)


def sample(engine, requests) -> dict[tuple[int, int], Completion]:
    return {(c.request, c.replicate): c for c in engine.complete(requests)}


def tokens_of(completions: dict[tuple[int, int], Completion]) -> dict[tuple[int, int], list[int]]:
    return {key: completion.tokens.tolist() for key, completion in completions.items()}


def probabilities(model: CausalLanguageModel, prefix: tuple[int, ...], token: int = 0) -> np.ndarray:
    """Exact probabilities (2, V) of the next token and, after `token`, of the one that follows."""
    return model.logprobs(model.hidden_states(prefix, [np.array([token, 0])])[0]).exp().double().numpy()


def fits(tokens: np.ndarray, probs_V: np.ndarray) -> float:
    """p-value that the tokens were drawn from the distribution; tokens expected fewer than five times are one class."""
    expected_V = probs_V / probs_V.sum() * len(tokens)
    counts_V = np.bincount(tokens, minlength=len(probs_V))
    common = expected_V >= 5
    observed = np.append(counts_V[common], counts_V[~common].sum())
    return chisquare(observed, np.append(expected_V[common], expected_V[~common].sum())).pvalue


@pytest.fixture(scope="module")
def wide(small) -> tuple[int, ...]:
    """A prefix after which many tokens are likely."""
    return small.codec.prompt(PROMPTS[0]) + tuple(small.codec.tokenizer("Start 3 +5")["input_ids"])


@pytest.fixture(scope="module")
def drawn(engine, wide) -> np.ndarray:
    """Two tokens (B, 2) after the prefix; no stop token is likely enough to matter."""
    seeds = tuple(seed_of("distribution", i) for i in range(MANY))
    found = engine.complete([CompletionRequest(wide, seeds, 2)])
    return np.array([c.tokens for c in found if len(c.tokens) == 2])


def test_first_tokens_follow_the_exact_distribution_and_not_one_a_little_colder(small, wide, drawn):
    model = small.language_model
    assert len(drawn) > 0.999 * MANY
    assert fits(drawn[:, 0], probabilities(model, wide)[0]) > 0.01
    cold = CausalLanguageModel(model.model, "cold", model.vocabulary_size, temperature=0.9)
    assert fits(drawn[:, 0], probabilities(cold, wide)[0]) < 1e-6


def test_second_tokens_follow_the_distribution_after_the_first(small, wide, drawn):
    model = small.language_model
    firsts, counts = np.unique(drawn[:, 0], return_counts=True)
    frequent = firsts[np.argsort(-counts)[:3]]
    for first in frequent:
        after = probabilities(model, wide, int(first))[1]
        assert fits(drawn[drawn[:, 0] == first, 1], after) > 0.01


def test_both_engines_draw_from_one_distribution(small, wide, drawn):
    seeds = tuple(seed_of("other seeds", i) for i in range(MANY))
    hf = HFEngine(small.language_model, small.codec.stop_ids, 2000)
    others = np.array([c.tokens[0] for c in hf.complete([CompletionRequest(wide, seeds, 1)])])
    width = small.language_model.vocabulary_size
    table = np.stack([np.bincount(tokens, minlength=width) for tokens in (drawn[:, 0], others)])
    common = table.sum(0) >= 10
    assert chi2_contingency(np.column_stack([table[:, common], table[:, ~common].sum(1)])).pvalue > 0.01


def test_tokens_do_not_depend_on_what_is_sampled_beside_them(engine, requests, whole):
    assert len(whole) == 36
    backwards = sample(engine, requests[::-1])
    alone = {
        (i, 0): c
        for i, r in enumerate(requests)
        for c in engine.complete([CompletionRequest(r.prefix, r.seeds[:1], r.max_tokens)])
    }
    for (request, replicate), completion in whole.items():
        other = backwards[len(requests) - 1 - request, replicate]
        assert other.tokens.tolist() == completion.tokens.tolist()
        np.testing.assert_allclose(other.logprobs, completion.logprobs, atol=1e-4)
    assert all(whole[key].tokens.tolist() == c.tokens.tolist() for key, c in alone.items())


def test_log_probabilities_are_those_of_the_forward_pass(small, requests, whole):
    model = small.language_model
    for index, request in enumerate(requests):
        rows = [whole[index, i] for i in range(12)]
        for states, row in zip(model.hidden_states(request.prefix, [row.tokens for row in rows]), rows, strict=True):
            forward = model.logprobs(states).gather(1, torch.from_numpy(row.tokens)[:, None])[:, 0].numpy()
            np.testing.assert_allclose(forward, row.logprobs, atol=1e-3)


def test_lengths_and_reasons(small, requests, whole):
    stops = np.array(sorted(small.codec.stop_ids))
    assert {completion.stop for completion in whole.values()} == {"stop", "length"}
    for (request, _), completion in whole.items():
        limit = requests[request].max_tokens
        assert 1 <= len(completion.tokens) <= limit
        assert np.isin(completion.tokens[:-1], stops).sum() == 0
        assert (completion.stop == "stop") == (completion.tokens[-1] in stops)
        assert completion.stop == "stop" or len(completion.tokens) == limit


def test_only_our_stop_tokens_stop(engine, requests, whole, monkeypatch):
    tokens = np.concatenate([completion.tokens[:-1] for completion in whole.values()])
    frequent = int(np.bincount(tokens).argmax())
    monkeypatch.setattr(engine, "stop_ids", frozenset({frequent}))
    found = sample(engine, requests)
    ends = np.concatenate([completion.tokens[:-1] for completion in found.values()])
    assert frequent not in ends
    assert any(completion.stop == "stop" for completion in found.values())
    monkeypatch.setattr(engine, "stop_ids", frozenset())
    assert all(c.stop == "length" and len(c.tokens) == requests[c.request].max_tokens for c in engine.complete(requests))


def test_another_temperature(small, engine, wide, monkeypatch):
    model = small.language_model
    cold = CausalLanguageModel(model.model, model.name, model.vocabulary_size, temperature=0.6)
    monkeypatch.setattr(engine, "model", cold)
    seeds = tuple(seed_of("cold", i) for i in range(MANY))
    found = list(engine.complete([CompletionRequest(wide, seeds, 1)]))
    tokens, probs_V = np.array([c.tokens[0] for c in found]), probabilities(cold, wide)[0]
    assert fits(tokens, probs_V) > 0.01
    np.testing.assert_allclose([c.logprobs[0] for c in found], np.log(probs_V[tokens]), atol=1e-3)


def test_an_interrupted_call_leaves_the_engine_fit_for_use(engine, requests, whole):
    started = engine.complete(requests)
    next(started)
    started.close()
    assert not engine._engine.has_unfinished_requests()
    assert tokens_of(sample(engine, requests)) == tokens_of(whole)


def test_a_step_that_is_broken_off_starts_vllm_anew(engine, requests, whole, monkeypatch):
    def interrupted():
        raise KeyboardInterrupt

    broken = engine._engine
    monkeypatch.setattr(broken.engine_core.engine_core.model_executor, "sample_tokens", lambda *_, **__: interrupted())
    with pytest.raises(KeyboardInterrupt):
        list(engine.complete(requests))
    assert tokens_of(sample(engine, requests)) == tokens_of(whole)
    assert engine._engine is not broken


def test_rest_is_nothing_on_the_cpu(engine, requests, whole):
    engine.rest()
    assert tokens_of(sample(engine, requests)) == tokens_of(whole)


def test_what_does_not_fit_into_the_window_is_refused_in_a_line(engine, requests):
    with pytest.raises(GradalignError, match=r"vLLM has room for 512; lower --max-tokens"):
        list(engine.complete([CompletionRequest(requests[0].prefix, (1,), 512)]))
    assert not engine._engine.has_unfinished_requests()


def test_torch_keeps_its_threads(engine):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)


def test_tokens_do_not_depend_on_memory_that_runs_short(small, engine, requests, monkeypatch):
    """With room for few tokens vLLM takes requests back and computes them again; the first engine has to start once more after it."""
    long = [CompletionRequest(r.prefix, tuple(seed_of("long", i) for i in range(40)), 150) for r in requests]
    monkeypatch.setattr(engine, "stop_ids", frozenset())
    roomy = tokens_of(sample(engine, long))
    arguments = vllm_setup.engine_arguments
    monkeypatch.setattr(
        vllm_setup, "engine_arguments", lambda *a: arguments(*a) | {"num_gpu_blocks_override": 40, "block_size": 32}
    )
    tight = VLLMEngine(small.language_model, frozenset())
    scheduler = tight._engine.engine_core.engine_core.scheduler
    preempt, preempted = scheduler._preempt_request, []
    monkeypatch.setattr(scheduler, "_preempt_request", lambda *a, **k: (preempted.append(1), preempt(*a, **k))[1])
    assert tokens_of(sample(tight, long)) == roomy
    assert preempted


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        (
            {"no_such_setting": 1},
            r"vLLM 0\.\d+\.\d+ does not take what gradalign tells it .*no_such_setting.* known to work: 0\.32",
        ),
        ({"kv_cache_memory_bytes": 1 << 60}, "too little memory for 'builtin:small'"),
        ({"model": "/no/such/folder"}, "could not start with 'builtin:small'"),
    ],
)
def test_what_keeps_vllm_from_starting_is_one_line(small, monkeypatch, changed, says):
    arguments = vllm_setup.engine_arguments
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
    monkeypatch.setitem(vllm_setup.DEFAULTS, "VLLM_CPU_KVCACHE_SPACE", "")
    monkeypatch.setattr(vllm_setup, "engine_arguments", lambda *a: arguments(*a) | changed)
    with pytest.raises(GradalignError, match=says) as caught:
        VLLMEngine(small.language_model, small.codec.stop_ids)
    assert "\n" not in str(caught.value)


def test_another_version_is_told_of(small, monkeypatch, caplog):
    arguments = vllm_setup.engine_arguments
    monkeypatch.setattr(vllm_setup, "vllm_version", lambda: "0.99.1")
    monkeypatch.setattr(vllm_setup, "engine_arguments", lambda *a: arguments(*a) | {"no_such_setting": 1})
    with pytest.raises(GradalignError, match=r"vLLM 0\.99\.1 does not take .* known to work: 0\.32"):
        VLLMEngine(small.language_model, small.codec.stop_ids)
    assert "vLLM 0.99.1 is not among the versions known to work with gradalign (0.32)" in caplog.text


@pytest.fixture
def padded(small, wide, tmp_path):
    """`builtin:small` with 64 logits of no token, copies of those of likely tokens, and sampling settings that nobody asked for."""
    folder = Path(shutil.copytree(builtin_path("students") / "small", tmp_path / "model"))
    model = AutoModelForCausalLM.from_pretrained(folder)
    likely = torch.from_numpy(probabilities(small.language_model, wide)[0].argsort()[-64:].copy())
    copied = model.get_output_embeddings().weight[likely].detach().clone()
    width = small.language_model.vocabulary_size
    model.resize_token_embeddings(width + 64, mean_resizing=False)
    with torch.no_grad():
        model.get_output_embeddings().weight[width:] = copied
    model.save_pretrained(folder)
    settings = folder / "generation_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"do_sample": True, "top_k": 3, "temperature": 0.5}))
    return load_model(str(folder), LoadOptions(device="cpu"))


def test_padded_logits_are_never_sampled_and_weigh_nothing(padded, wide):
    model = padded.language_model
    assert model.head.weight.shape[0] == model.vocabulary_size + 64
    full = torch.softmax(model.model(input_ids=torch.tensor([wide])).logits[0, -1].float(), -1)
    assert full[model.vocabulary_size :].sum() > 0.4
    engine = VLLMEngine(model, padded.codec.stop_ids)
    found = list(engine.complete([CompletionRequest(wide, tuple(seed_of("padded", i) for i in range(MANY)), 1)]))
    tokens, probs_V = np.array([c.tokens[0] for c in found]), probabilities(model, wide)[0]
    assert tokens.max() < model.vocabulary_size
    assert fits(tokens, probs_V) > 0.01
    np.testing.assert_allclose([c.logprobs[0] for c in found], np.log(probs_V[tokens]), atol=1e-3)


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="two workers need two cores")
def test_two_workers_sample_what_one_does(padded, wide, monkeypatch):
    """Tensor parallelism, on the CPU: other processes, which find the padding mask by its name."""
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    requests = [CompletionRequest(wide, tuple(seed_of("workers", i) for i in range(200)), 8)]
    two = VLLMEngine(padded.language_model, padded.codec.stop_ids, tensor_parallel=2)
    found = tokens_of(sample(two, requests))
    two.close()
    monkeypatch.delenv("VLLM_CPU_OMP_THREADS_BIND")
    assert found == tokens_of(sample(VLLMEngine(padded.language_model, padded.codec.stop_ids), requests))


def test_the_padding_mask_keeps_the_interface_of_both_model_runners():
    from vllm.v1.sample.logits_processor import LogitsProcessor
    from vllm.v1.worker.gpu.sample.logits_processor import build_custom_logits_processors_params_validator

    from gradalign.engines.vllm_padding import PaddingMask

    class Config:
        def __init__(self):
            self.additional_config = {vllm_setup.SPAN: 3}

    build_custom_logits_processors_params_validator(["gradalign.engines.vllm_padding:PaddingMask"])
    assert issubclass(PaddingMask, LogitsProcessor)
    for arguments in ((torch.device("cpu"), False), (None,)):
        masked = PaddingMask(Config(), *arguments).apply(torch.zeros(2, 5), *arguments[1:])
        assert masked.isinf().sum(1).tolist() == [2, 2]


def test_a_run_agrees_with_one_by_transformers_and_is_not_mixed_with_it(tmp_path):
    settings = {"limit": 24, "rollouts": 16, "device": "cpu"}
    frames = {}
    for engine in ("hf", "vllm"):
        run = gradalign.score("builtin:arithmetic", out=tmp_path / engine, engine=engine, **settings)
        assert json.loads((tmp_path / engine / "run.json").read_text())["identity"]["engine"] == engine
        frames[engine] = gradalign.rank(run, by="drive").frame.set_index(["teacher", "objective"]).sort_index()
    for score in ("drive", "gain"):
        for one, other in (("hf", "vllm"), ("vllm", "hf")):
            inside = frames[one][score].between(frames[other][f"{score}_low"], frames[other][f"{score}_high"])
            assert inside.all(), f"{score} of {one}"
    with pytest.raises(GradalignError, match="engine='vllm', not 'hf'"):
        gradalign.score("builtin:arithmetic", out=tmp_path / "vllm", engine="hf", **settings)
