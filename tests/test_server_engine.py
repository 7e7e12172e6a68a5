"""The engine over a served student: the right requests, the right completions, and servers that are not the student."""

import numpy as np
import pytest
import torch
from fake_endpoint import served
from transformers import AutoModelForCausalLM

import gradalign
from gradalign.builtin import builtin_path
from gradalign.engines import Engine, HFEngine, student_engine
from gradalign.engines.server import ServerEngine, connect_student
from gradalign.models import LoadedModel, LoadOptions, load_model
from gradalign.seeds import seed_of
from gradalign.types import CompletionRequest, GradalignError


@pytest.fixture
def requests(small):
    texts = ("Start at 3: +5 -2 (modulo 10). What is the total?", "Hello")
    return [
        CompletionRequest(small.codec.prompt(t), tuple(seed_of(t, i) for i in range(5)), 5 + 10 * n)
        for n, t in enumerate(texts)
    ]


@pytest.fixture(scope="module")
def hot() -> LoadedModel:
    return load_model("builtin:small", LoadOptions(device="cpu", temperature=0.7))


def by_place(engine: Engine, requests) -> dict:
    return {(c.request, c.replicate): c for c in engine.complete(requests)}


@pytest.mark.parametrize("lacks", [(), ("token_ids",), ("as_ids", "tokenize")])
def test_completions_are_those_of_the_served_model(small, requests, lacks):
    fitted = [CompletionRequest(r.prefix, tuple(seed & (2**63 - 1) for seed in r.seeds), r.max_tokens) for r in requests]
    own = by_place(HFEngine(small.language_model, small.codec.stop_ids), fitted)
    with served(small, lacks=frozenset(lacks)) as fake:
        engine = student_engine(fake.name, small, 3)
        assert isinstance(engine, Engine)
        assert engine.kind == "server"
        fake.asked.clear()
        found = by_place(engine, requests)
        engine.rest()
    assert found.keys() == own.keys()
    for key, completion in own.items():
        assert found[key].tokens.tolist() == completion.tokens.tolist()
        np.testing.assert_allclose(found[key].logprobs, completion.logprobs, atol=1e-5)
        assert found[key].stop == completion.stop
    asked = fake.asked[0]
    whole = {
        "top_p": 1.0,
        "top_k": -1,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
    }
    stops = {"stop_token_ids": sorted(small.codec.stop_ids), "ignore_eos": True, "skip_special_tokens": False}
    assert asked.items() >= (whole | stops | {"temperature": 1.0, "model": "tiny", "logprobs": 1}).items()
    assert "logit_bias" not in asked
    assert {len(r["prompt"]) for r in fake.asked[:3]} == {max(len(r.prefix) for r in requests)}
    assert len({r["seed"] for r in fake.asked}) == 10
    assert all(0 <= r["seed"] < 2**63 for r in fake.asked)


def test_the_temperature_is_the_students(hot, requests):
    with served(hot) as fake:
        engine = connect_student(fake.name, hot, 3)
        found = by_place(engine, requests)
    states = hot.language_model.hidden_states(requests[0].prefix, [found[0, i].tokens for i in range(5)])
    for i, state in enumerate(states):
        own = hot.language_model.logprobs(state).gather(1, torch.from_numpy(found[0, i].tokens)[:, None])[:, 0]
        np.testing.assert_allclose(found[0, i].logprobs, own, atol=1e-5)


def test_log_probabilities_at_another_temperature_are_refused_with_the_switch(hot, small):
    with served(small, raw=True) as fake, pytest.raises(GradalignError, match="--logprobs-mode processed_logprobs"):
        connect_student(fake.name, hot, 3)


def test_another_model_is_refused(small):
    medium = load_model("builtin:medium", LoadOptions(device="cpu"))
    with served(medium) as fake, pytest.raises(GradalignError, match=r"does not serve student 'builtin:small'.*nats from the"):
        connect_student(fake.name, small, 3)
    with served(small, shift=-0.2) as fake, pytest.raises(GradalignError, match=r"are 0\.2 nats"):
        connect_student(fake.name, small, 3)
    with served(small, shift=0.02) as fake:  # as coarse as bfloat16
        connect_student(fake.name, small, 3)


@pytest.fixture(scope="module")
def padded(tmp_path_factory) -> LoadedModel:
    """`builtin:small` with 28 more logits than tokens."""
    folder = tmp_path_factory.mktemp("padded")
    source = builtin_path("students") / "small"
    for file in source.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    model = AutoModelForCausalLM.from_pretrained(source)
    model.resize_token_embeddings(384, mean_resizing=False)
    model.save_pretrained(folder)
    return load_model(str(folder), LoadOptions(device="cpu"))


def test_padding_is_forbidden(padded, requests):
    with served(padded) as fake:
        engine = connect_student(fake.name, padded, 3)
        list(engine.complete(requests[:1]))
    assert fake.asked[-1]["logit_bias"] == {str(token): -100.0 for token in range(356, 384)}


@pytest.mark.parametrize(
    ("behaviour", "says"),
    [
        ({"stray": 356}, "sampled id 356, which the tokenizer of 356 tokens does not have"),
        ({"lacks": frozenset({"stops"})}, "does not stop where it is asked to"),
        ({"lacks": frozenset({"logprobs"})}, "without the ids and log-probabilities"),
    ],
)
def test_what_would_change_the_distribution_is_refused(small, requests, behaviour, says):
    with served(small) as fake:
        engine = connect_student(fake.name, small, 3)
        for name, value in behaviour.items():
            setattr(fake, name, value)
        with pytest.raises(GradalignError, match=says):
            list(engine.complete(requests))


def test_a_window_that_is_too_small_is_named(small, requests):
    with served(small, window=150) as fake:
        engine = connect_student(fake.name, small, 3)
        with pytest.raises(GradalignError, match=r"window of 150 tokens.*--max-model-len"):
            list(engine.complete([CompletionRequest(requests[0].prefix, (1,), 140)]))


def test_a_served_model_is_no_student():
    with pytest.raises(GradalignError, match="whole distribution"):
        load_model("server:http://127.0.0.1:1#m", LoadOptions(device="cpu"))


def test_a_run_with_a_served_student(small, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADALIGN_API_KEY", "key-of-the-test")
    with served(small, key="key-of-the-test") as fake:
        run = gradalign.score(
            student="builtin:small",
            teachers=["ctx:correct_demo"], out=tmp_path / "run", limit=2, rollouts=8, demonstrations=4, budget=8, engine=fake.name,
            batch_size=4,
        )  # fmt: skip
    assert run.identity["engine"] == "server"
    assert len(run.alignment) > 0
    assert run.teachers["tail"].isna().all()
    for file in (tmp_path / "run").rglob("*"):
        assert file.is_dir() or b"key-of-the-test" not in file.read_bytes()


def test_an_engine_needs_no_student(small, requests):
    with served(small) as fake:
        engine = ServerEngine(connect_student(fake.name, small, 2).endpoint, small.codec.stop_ids, 356, 356)
        assert len(list(engine.complete(requests[:1]))) == 5
