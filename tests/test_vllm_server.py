"""vLLM's own server as engine and as teacher: started here, asked over HTTP, killed at the end. Run by `make test-vllm`."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from transformers import AutoModelForCausalLM

import gradalign
from gradalign.builtin import builtin_path
from gradalign.engines.server import connect_student
from gradalign.models import LoadedModel, LoadOptions, load_model
from gradalign.models.served import load_served
from gradalign.seeds import seed_of
from gradalign.types import CompletionRequest, GradalignError

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]
_STARTS_WITHIN = 240
_SAMPLES = 20_000
SETTINGS = {
    "student": "builtin:small", "limit": 2, "rollouts": 8, "demonstrations": 4, "budget": 8, "batch_size": 32, "device": "cpu",
}  # fmt: skip


@contextmanager
def running(log: Path, model: Path, name: str, **options: object) -> Iterator[str]:
    """A server of the model until the block ends: its address. Where it fails, the end of its log is shown."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options |= {"model": model, "served_model_name": name, "host": "127.0.0.1", "port": port, "dtype": "float32"}
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--enforce-eager", "--no-enable-chunked-prefill"]
    command += [part for key, value in options.items() for part in (f"--{key.replace('_', '-')}", str(value))]
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=environment, start_new_session=True)
    try:
        _wait(process, port, log)
        yield f"server:http://127.0.0.1:{port}#{name}"
        if process.poll() is not None:
            pytest.fail(f"the server died:\n{_end(log)}")
    finally:
        _kill(process)


def _kill(process: subprocess.Popen) -> None:
    for number, patience in ((signal.SIGTERM, 20), (signal.SIGKILL, 10)):
        try:
            os.killpg(process.pid, number)
            process.wait(patience)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue


def _wait(process: subprocess.Popen, port: int, log: Path) -> None:
    until = time.monotonic() + _STARTS_WITHIN
    while time.monotonic() < until and process.poll() is None:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(1)
    pytest.fail(f"the server did not start:\n{_end(log)}")


def _end(log: Path) -> str:
    return log.read_text(errors="replace")[-4000:]


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[str]:
    """The built-in student, and as many tokens told as it has."""
    with running(
        tmp_path_factory.mktemp("server") / "log", builtin_path("students") / "small", "small", max_logprobs=1000
    ) as name:
        yield name


@pytest.fixture(scope="module")
def engine(server, small):
    return connect_student(server, small, 64)


@pytest.fixture(scope="module")
def prefix(small) -> tuple[int, ...]:
    return small.codec.prompt("Start at 3: +5 -2 (modulo 10). What is the total?") + small.codec.ids("Start 3 +5")


def test_what_is_sampled_follows_the_exact_distribution(engine, small):
    prefix = (1, 2, 3)  # after which dozens of tokens are likely
    seeds = tuple(seed_of("distribution", i) for i in range(_SAMPLES))
    drawn = np.array([c.tokens[0] for c in engine.complete([CompletionRequest(prefix, seeds, 1)])])
    model = small.language_model
    probs = model.logprobs(model.hidden_states(prefix, [np.array([0])])[0]).exp()[0].double().numpy()
    counts = np.bincount(drawn, minlength=len(probs))
    common = probs * _SAMPLES >= 5
    observed = np.append(counts[common], counts[~common].sum())
    expected = np.append(probs[common], probs[~common].sum()) * _SAMPLES
    assert observed.sum() == _SAMPLES
    assert len(expected) > 20
    assert chisquare(observed, expected * observed.sum() / expected.sum()).pvalue > 1e-3


def test_equal_seeds_give_equal_tokens_however_many_are_under_way(engine, prefix):
    request = CompletionRequest(prefix, tuple(seed_of("again", i) for i in range(64)), 40)
    first = {c.replicate: c for c in engine.complete([request])}
    engine.endpoint.concurrency = 7
    second = {c.replicate: c for c in engine.complete([request])}
    engine.endpoint.concurrency = 64
    assert all(first[i].tokens.tolist() == second[i].tokens.tolist() for i in range(64))
    assert len({tuple(c.tokens) for c in first.values()}) > 10


def test_log_probabilities_and_stops_are_the_students(engine, small, prefix):
    found = list(engine.complete([CompletionRequest(prefix, tuple(seed_of("log", i) for i in range(32)), 60)]))
    states = small.language_model.hidden_states(prefix, [c.tokens for c in found])
    stops = sorted(small.codec.stop_ids)
    assert {c.stop for c in found} == {"stop"}
    for state, completion in zip(states, found, strict=True):
        own = small.language_model.logprobs(state).gather(1, torch.from_numpy(completion.tokens)[:, None])[:, 0]
        np.testing.assert_allclose(completion.logprobs, own, atol=1e-4)
        assert np.isin(completion.tokens, stops).tolist() == [False] * (len(completion.tokens) - 1) + [True]


def test_unfit_servers_are_told_apart(server, small):
    hot = load_model("builtin:small", LoadOptions(device="cpu", temperature=0.6))
    with pytest.raises(GradalignError, match="--logprobs-mode processed_logprobs"):
        connect_student(server, hot, 8)
    medium = load_model("builtin:medium", LoadOptions(device="cpu"))
    with pytest.raises(GradalignError, match="does not serve student 'builtin:medium'"):
        connect_student(server, medium, 8)
    with pytest.raises(GradalignError, match="does not serve 'other' but small"):
        connect_student(f"{server.partition('#')[0]}#other", small, 8)


def test_prompts_are_those_of_the_chat_template(server, small):
    loaded = load_served(server, small, LoadOptions(device="cpu"), 20, teaches=True)
    assert loaded.codec.prompt("Hello there") == small.codec.prompt("Hello there")
    assert loaded.language_model.context_window == 511
    assert loaded.fingerprint == f"server: small, root {builtin_path('students') / 'small'}, window 512"


def test_all_of_the_vocabulary_is_told_if_it_is_asked_for(server, small, prefix):
    model = load_served(server, small, LoadOptions(device="cpu"), 1000, teaches=True).language_model
    continuations = [np.array([20, 30, 40]), np.array([20, 50])]
    told, own = (m.hidden_states(prefix, continuations) for m in (model, small.language_model))
    for theirs, ours in zip(told, own, strict=True):
        torch.testing.assert_close(model.logprobs(theirs), small.language_model.logprobs(ours), atol=1e-4, rtol=1e-4)


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """A run with the student's own weights, loaded here, as another model that teaches."""
    return gradalign.score(
        teachers=["model:builtin:small+ctx:answer"], out=tmp_path_factory.mktemp("runs") / "local", **SETTINGS
    )


def test_told_whole_a_served_teacher_scores_as_a_loaded_one(server, local, tmp_path):
    run = gradalign.score(teachers=[f"{server}+ctx:answer"], out=tmp_path / "run", teacher_top_k=1000, **SETTINGS)
    for table, columns in (("scores", ["dot", "d_norm2", "advantage"]), ("teachers", ["reverse_kl", "forward_kl", "jsd"])):
        theirs, ours = getattr(local, table), getattr(run, table)
        assert len(theirs) == len(ours) > 0
        np.testing.assert_allclose(ours[columns], theirs[columns], rtol=1e-3, atol=1e-5)
    assert run.teachers["tail"].isna().all()


def test_told_in_part_a_served_teacher_has_tails(server, local, tmp_path):
    run = gradalign.score(teachers=[f"{server}+ctx:answer"], out=tmp_path / "run", **SETTINGS)
    both = local.teachers.merge(run.teachers, on=["question", "node"], suffixes=("", "_told"))
    assert len(both) == len(local.teachers)
    assert (both["forward_kl_told"] <= both["forward_kl"] + 1e-5).all()
    assert run.teachers["tail"].between(0, 0.5).all()
    assert "the top 20 tokens are known" in run.description["provenance"]["notices"][0]


def test_a_run_with_a_served_student(server, tmp_path):
    run = gradalign.score(teachers=["ctx:correct_demo"], out=tmp_path / "run", engine=server, **SETTINGS)
    assert run.identity["engine"] == "server"
    assert len(run.alignment) > 0
    assert len(gradalign.rank(run, by="drive").frame) == 2


@pytest.fixture(scope="module")
def padded(tmp_path_factory) -> LoadedModel:
    """The built-in student at temperature 0.6, with 28 more logits than tokens, all of them likely."""
    folder = tmp_path_factory.mktemp("padded")
    source = builtin_path("students") / "small"
    for file in source.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    model = AutoModelForCausalLM.from_pretrained(source)
    model.resize_token_embeddings(384, mean_resizing=False)
    with torch.no_grad():
        model.get_output_embeddings().weight[356:] = model.get_output_embeddings().weight[280:308]
    model.save_pretrained(folder)
    return load_model(str(folder), LoadOptions(device="cpu", temperature=0.6))


@pytest.fixture(scope="module")
def guarded(padded, tmp_path_factory) -> Iterator[str]:
    """A server of it that wants a key, tells log-probabilities as sampled, and few of them."""
    log = tmp_path_factory.mktemp("guarded") / "log"
    options = {"max_logprobs": 5, "logprobs_mode": "processed_logprobs", "api_key": "key-of-the-test"}
    with running(log, Path(padded.language_model.name), "padded", **options) as name:
        yield name


def test_padding_is_never_sampled_and_temperatures_hold(guarded, padded, monkeypatch):
    monkeypatch.setenv("GRADALIGN_API_KEY", "key-of-the-test")
    engine, model = connect_student(guarded, padded, 64), padded.language_model
    prefix = (1, 2, 3)
    drawn = list(engine.complete([CompletionRequest(prefix, tuple(seed_of("padded", i) for i in range(2000)), 1)]))
    own = model.logprobs(model.hidden_states(prefix, [np.array([0])])[0])[0].double()
    tokens = np.array([c.tokens[0] for c in drawn])
    assert tokens.max() < 356
    np.testing.assert_allclose([c.logprobs[0] for c in drawn], own[tokens], atol=1e-4)
    probs = own.exp().numpy()
    common = probs * 2000 >= 5
    counts = np.bincount(tokens, minlength=356)
    observed = np.append(counts[common], counts[~common].sum())
    expected = np.append(probs[common], probs[~common].sum())
    assert chisquare(observed, expected * 2000 / expected.sum()).pvalue > 1e-3


def test_keys_and_limits_are_told(guarded, padded, monkeypatch):
    monkeypatch.setenv("GRADALIGN_API_KEY", "another-key")
    with pytest.raises(GradalignError, match="refuses the key in GRADALIGN_API_KEY") as caught:
        connect_student(guarded, padded, 4)
    assert "another-key" not in str(caught.value)
    monkeypatch.setenv("GRADALIGN_API_KEY", "key-of-the-test")
    with pytest.raises(GradalignError, match=r"tells fewer than 20 tokens.*--max-logprobs 20, or give a smaller"):
        load_served(guarded, padded, LoadOptions(device="cpu"), 20, teaches=True)
    load_served(guarded, padded, LoadOptions(device="cpu"), 5, teaches=True)
