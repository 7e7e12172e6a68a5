"""Which engine samples, and the parts of the vllm engine that need no vLLM: a stand-in takes its place."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

from gradalign.engines import HFEngine, VLLMEngine, choose, student_engine, suited_engine, vllm, vllm_setup
from gradalign.models import CausalLanguageModel
from gradalign.types import CompletionRequest, GradalignError


@pytest.fixture
def no_vllm(monkeypatch):
    for module in (choose, vllm_setup):
        monkeypatch.setattr(module, "find_spec", lambda name: None)


@pytest.fixture
def broken_vllm(monkeypatch):
    """Installed, but not to be imported."""
    for module in (choose, vllm_setup):
        monkeypatch.setattr(module, "find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "vllm", None)


def test_an_unknown_engine_names_those_there_are(small):
    with pytest.raises(GradalignError, match=r"unknown engine 'vlm'; choose from auto, hf, vllm, server:URL#MODEL"):
        student_engine("vlm", small, 8)


def test_auto_is_transformers_on_the_cpu_and_where_vllm_is_missing(small, no_vllm):
    assert isinstance(student_engine("auto", small, 8), HFEngine)
    assert suited_engine("cuda") == "hf"


def test_auto_is_vllm_on_a_gpu_where_it_can_be_imported(monkeypatch):
    monkeypatch.setattr(choose, "find_spec", lambda name: object())
    monkeypatch.setattr(choose, "require_vllm", lambda: None)
    assert [suited_engine("cuda"), suited_engine("cpu"), suited_engine("cuda", "gguf")] == ["vllm", "hf", "hf"]


def test_auto_goes_on_without_a_vllm_that_cannot_be_imported_and_says_so(broken_vllm, caplog):
    assert suited_engine("cuda") == "hf"
    assert "vLLM is installed but cannot be imported" in caplog.text
    assert "going on with transformers" in caplog.text


def test_a_missing_vllm_is_one_line(small, no_vllm):
    with pytest.raises(GradalignError, match=r"vLLM is not installed; pip install 'gradalign\[vllm\]', or use --engine hf"):
        student_engine("vllm", small, 8)


def test_a_broken_vllm_is_one_line(small, broken_vllm):
    with pytest.raises(GradalignError, match=r"cannot be imported \(.*\); pip install 'gradalign\[vllm\]'"):
        student_engine("vllm", small, 8)


def test_temperatures_that_vllm_would_change_are_refused(small):
    hot = CausalLanguageModel(small.language_model.model, "hot", small.language_model.vocabulary_size, temperature=2.5)
    with pytest.raises(GradalignError, match=r"temperatures from 0\.01 to 2\.0, not 2\.5"):
        VLLMEngine(hot, small.codec.stop_ids)


def test_versions_are_known_by_their_release():
    assert vllm_setup.is_known("0.32.0")
    assert vllm_setup.is_known("0.32.1+cpu")
    assert not vllm_setup.is_known("0.33.0")
    assert not vllm_setup.is_known("1.0")


def test_memory_is_shared_by_what_is_free():
    gib = 1 << 30
    assert vllm_setup.memory_share([(80 * gib, 80 * gib)]) == pytest.approx(0.9)
    assert vllm_setup.memory_share([(80 * gib, 80 * gib), (20 * gib, 80 * gib)]) == pytest.approx(0.225)


def test_vllm_is_told_what_the_model_is_and_to_sleep_on_gpus_alone(small):
    model = small.language_model
    cpu, gpu = vllm_setup.engine_arguments(model, 1, None), vllm_setup.engine_arguments(model, 2, [(5, 10), (8, 10)])
    assert cpu["model"].endswith("small")
    assert cpu["dtype"] == "float32"
    assert cpu["enforce_eager"]
    assert "enable_sleep_mode" not in cpu
    assert gpu["enable_sleep_mode"]
    assert gpu["tensor_parallel_size"] == 2
    assert gpu["gpu_memory_utilization"] == pytest.approx(0.45)
    assert "logits_processors" not in cpu
    narrow = CausalLanguageModel(model.model, model.name, model.vocabulary_size - 3)
    assert vllm_setup.engine_arguments(narrow, 1, None)["additional_config"] == {vllm_setup.SPAN: narrow.vocabulary_size}


def test_a_gguf_file_is_refused(small, tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    model = CausalLanguageModel(small.language_model.model, str(tmp_path / "model.gguf"), small.language_model.vocabulary_size)
    with pytest.raises(GradalignError, match=r"does not read \.gguf files"):
        vllm_setup.engine_arguments(model, 1, None)


class StandIn:
    """An engine that ends every request with its second token, and writes down what it is asked."""

    def __init__(self):
        self.asked: list[str] = []
        self.waiting: dict[str, SimpleNamespace] = {}
        self.vllm_config = SimpleNamespace(model_config=SimpleNamespace(enable_sleep_mode=True, max_model_len=100))
        self.engine_core = self

    def add_request(self, name, prompt, parameters):
        self.waiting[name] = parameters

    def step(self):
        name = next(iter(self.waiting))
        self.waiting.pop(name)
        logprobs = [{5: SimpleNamespace(logprob=-1.0)}, {6: SimpleNamespace(logprob=-2.0)}]
        output = SimpleNamespace(token_ids=[5, 6], logprobs=logprobs, finish_reason="length")
        return [SimpleNamespace(request_id=name, finished=True, outputs=[output])]

    def abort_request(self, names):
        for name in names:
            self.waiting.pop(name)

    def __getattr__(self, name):
        if name not in ("sleep", "wake_up", "reset_prefix_cache", "shutdown"):
            raise AttributeError(name)
        return lambda **_: self.asked.append(name)


@pytest.fixture
def stand_in(small, monkeypatch):
    package, parameters = ModuleType("vllm"), ModuleType("vllm.sampling_params")
    package.SamplingParams = SimpleNamespace
    parameters.RequestOutputKind = SimpleNamespace(FINAL_ONLY=2)
    monkeypatch.setitem(sys.modules, "vllm", package)
    monkeypatch.setitem(sys.modules, "vllm.sampling_params", parameters)
    monkeypatch.setattr(vllm, "start_engine", lambda model, tensor_parallel: StandIn())
    monkeypatch.setattr(vllm.torch.cuda, "empty_cache", lambda: None)
    return VLLMEngine(small.language_model, frozenset({6}))


ASKED = [CompletionRequest((1, 2), (1 << 63, (1 << 63) + 1), 3)]


def test_the_engine_sleeps_while_it_rests_and_wakes_when_it_is_asked(stand_in):
    held = stand_in._engine
    assert [c.stop for c in stand_in.complete(ASKED)] == ["stop", "stop"]
    stand_in.rest()
    stand_in.rest()
    assert held.asked == ["reset_prefix_cache", "sleep"]
    list(stand_in.complete(ASKED))
    list(stand_in.complete(ASKED))
    assert held.asked == ["reset_prefix_cache", "sleep", "wake_up"]


def test_seeds_fit_into_what_vllm_keeps(stand_in):
    completions = stand_in.complete(ASKED)
    next(completions)
    assert [parameters.seed for parameters in stand_in._engine.waiting.values()] == [1]
    completions.close()
    assert not stand_in._engine.waiting


def test_one_vllm_runs_at_a_time(stand_in, small):
    held = stand_in._engine
    other = VLLMEngine(small.language_model, frozenset())
    assert held.asked == ["shutdown"]
    assert len(list(stand_in.complete(ASKED))) == 2
    assert other._engine is None
    stand_in.close()
    stand_in.close()
