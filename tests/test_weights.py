"""How weights are read: revisions, attention, remote code, pickles, shards, quantisation."""

import json
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

import gradalign
from gradalign.builtin import builtin_path
from gradalign.contexts import parse_teacher
from gradalign.engines import HFEngine, student_engine
from gradalign.engines.vllm_setup import engine_arguments
from gradalign.models import CausalLanguageModel, LoadOptions, Origin, load_model, resolve_model, weights
from gradalign.types import CompletionRequest, GradalignError

CPU = LoadOptions(device="cpu")
SHARDED = {
    "model.embed_tokens": "disk",
    "model.layers.0": "cpu",
    "model.layers.1": "disk",
    "model.norm": "cpu",
    "model.rotary_emb": "cpu",
}


@pytest.fixture
def copy(tmp_path) -> Path:
    """A folder with the files of `builtin:small`, to spoil."""
    return Path(shutil.copytree(builtin_path("students") / "small", tmp_path / "model"))


def refused(name: str | Path, says: str, options: LoadOptions = CPU) -> None:
    with pytest.raises(GradalignError, match=says) as caught:
        load_model(str(name), options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "location", "revision"),
    [
        ("owner/name@v1.0", "owner/name", "v1.0"),
        ("owner/name@refs/pr/3", "owner/name", "refs/pr/3"),
        ("Qwen3-0.6B@main", "Qwen/Qwen3-0.6B", "main"),
        ("owner/name", "owner/name", None),
    ],
)
def test_revisions_of_hub_ids(name, location, revision):
    found = resolve_model(name)
    assert (found.name, found.kind, found.location, found.revision) == (name, "hub", location, revision)


def test_revisions_where_there_are_none(copy, tmp_path):
    odd = copy.rename(tmp_path / "model@home")
    assert resolve_model(str(odd)).location == str(odd)
    assert resolve_model(str(odd)).revision is None
    odd.rename(copy)
    for name, says in [
        (f"{copy}@v1", "has no revisions"),
        ("builtin:small@v1", "has no revisions"),
        ("owner/name@", "no revision"),
    ]:
        with pytest.raises(GradalignError, match=says):
            resolve_model(name)


def test_teachers_with_a_revision():
    assert parse_teacher("model:owner/name@v2").model == "owner/name@v2"
    assert parse_teacher("model:owner/name@v2+ctx:answer").model == "owner/name@v2"
    assert parse_teacher("ctx:correct_demo@model:owner/name@v2").source == "owner/name@v2"


def test_a_revision_reaches_the_hub_and_vllm(monkeypatch, small):
    asked = []

    def asked_for(location, **told):
        asked.append((location, told["revision"]))
        raise OSError("no network")

    monkeypatch.setattr(weights.PreTrainedConfig, "get_config_dict", asked_for)
    refused("owner/name@v2", "at revision 'v2' on the hub")
    assert asked == [("owner/name", "v2")]
    origin = Origin(resolve_model("owner/name@v2"), trust_remote_code=True)
    model = CausalLanguageModel(small.language_model.model, "owner/name@v2", 300, origin=origin)
    told = engine_arguments(model, 1, None)
    assert (told["model"], told["revision"], told["trust_remote_code"]) == ("owner/name", "v2", True)


def test_attention(copy, small):
    for attention in ("eager", "sdpa"):
        model = load_model(str(copy), LoadOptions(device="cpu", attention=attention)).language_model
        assert model.model.config._attn_implementation == attention
        prompt, tokens = (3, 4, 5), [np.array([6, 7, 8])]
        found, expected = (either.logprobs(either.hidden_states(prompt, tokens)[0]) for either in (model, small.language_model))
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    refused(copy, "cannot use --attention quick", LoadOptions(device="cpu", attention="quick"))
    refused(copy, "kernel downloaded from the hub", LoadOptions(device="cpu", attention="someone/kernel"))
    if find_spec("flash_attn") is None:
        refused(copy, "package that is missing.*[Ff]lash", LoadOptions(device="cpu", attention="flash_attention_2"))


@pytest.mark.parametrize(
    "asked",
    [
        {"attn_implementation": "kernels-community/flash-attn2@0123"},
        {"_attn_implementation": "someone/kernel"},
        {"experts_implementation": "someone/kernel"},
        {"text_config": {"_attn_implementation_internal": "someone/kernel"}},
        {"attn_implementation": {"": "sdpa", "text_config": "paged|someone/kernel"}},
        {"attn_implementation": "flash_attention_2"},
    ],
)
def test_kernels_of_the_hub_run_only_when_they_are_asked_for(copy, monkeypatch, asked):
    monkeypatch.setattr(weights, "find_spec", lambda name: name == "kernels" or None)
    file = copy / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | asked))
    refused(copy, r"asks by its config\.json for '.*', a kernel downloaded from the hub.*--trust-remote-code")
    assert weights.read_config(resolve_model("builtin:small"), CPU).model_type == "qwen3"
    with pytest.raises(GradalignError, match="would run a kernel"):
        load_model("builtin:small", LoadOptions(device="cpu", attention="flash_attention_2"))


def test_code_beside_a_model_runs_only_when_it_is_asked_to(copy, tmp_path):
    mark = tmp_path / "ran"
    (copy / "code.py").write_text(
        f"open({str(mark)!r}, 'w').close()\nfrom transformers import Qwen3Config, Qwen3ForCausalLM\n"
        "class OddConfig(Qwen3Config):\n    model_type = 'odd'\nclass OddForCausalLM(Qwen3ForCausalLM):\n    config_class = OddConfig\n"
    )
    file = copy / "config.json"
    settings = json.loads(file.read_text()) | {"model_type": "odd"}
    settings["auto_map"] = {"AutoConfig": "code.OddConfig", "AutoModelForCausalLM": "code.OddForCausalLM"}
    file.write_text(json.dumps(settings))
    refused(copy, "--trust-remote-code runs it on this machine")
    assert not mark.exists()
    trusting = load_model(str(copy), LoadOptions(device="cpu", trust_remote_code=True)).language_model
    assert mark.exists()
    assert trusting.origin.trust_remote_code


def test_pickled_weights_are_never_opened(copy, tmp_path):
    mark = tmp_path / "ran"

    class Trap:
        def __reduce__(self):
            return open, (str(mark), "w")

    (copy / "model.safetensors").unlink()
    torch.save({"model.norm.weight": Trap()}, copy / "pytorch_model.bin")
    refused(copy, r"no weights in safetensors files .*save it with save_pretrained")
    file = copy / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"transformers_weights": "adapter_model.bin"}))
    (copy / "pytorch_model.bin").rename(copy / "adapter_model.bin")
    refused(copy, r"names 'adapter_model\.bin' as its weights")
    assert not mark.exists()


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"model_type": "no such"}', '{"model_type": 3}', '{"model_type": "qwen3", "vocab_size": "x"}']
)
def test_damaged_configurations_are_one_line(copy, text):
    (copy / "config.json").write_text(text)
    refused(copy, "could not be loaded")


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "mpt", "n_layers": 10**9},
        {"model_type": "gpt_neo", "num_layers": 10**9},
        {"model_type": "gpt_neo", "attention_types": [[["global", "local"], 10**9]]},
        {"model_type": "opt", "ffn_dim": 10**9},
        {"model_type": "bloom", "n_head": 10**9},
        {"model_type": "gemma3", "text_config": {"hidden_size": 10**9}},
        {"model_type": "gpt2", "n_layer": 9_000, "n_embd": 10**6, "n_head": 1},  # each is a size, all together are none
    ],
    ids=lambda config: config["model_type"],
)
def test_sizes_that_no_model_has_are_refused(copy, config):
    (copy / "config.json").write_text(json.dumps(config))
    refused(copy, "by its config.json; check that its files are whole")


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF" + bytes(100), b"GGUF\x03\0\0\0" + b"\xff" * 200])
def test_damaged_gguf_files_are_one_line(tmp_path, content):
    file = tmp_path / "broken.gguf"
    file.write_bytes(content)
    refused(file, "could not be loaded|package that is missing")


@pytest.fixture
def sharded(monkeypatch):
    """A placement of `builtin:small` in two parts, one of them on disk."""
    monkeypatch.setattr(weights, "_spread", lambda: dict(SHARDED))
    return LoadOptions(device="shard")


@pytest.mark.filterwarnings("ignore")  # of accelerate, of parts that are not in memory
@pytest.mark.parametrize("head", ["cpu", "disk"])
@torch.inference_mode()
def test_a_model_in_parts_is_the_whole_model(copy, small, monkeypatch, head):
    whole = AutoModelForCausalLM.from_pretrained(copy)
    whole.lm_head.weight = torch.nn.Parameter(whole.lm_head.weight.clone() * 1.5)
    whole.config.tie_word_embeddings = False
    whole.save_pretrained(copy)
    plain = load_model(str(copy), CPU)
    monkeypatch.setattr(weights, "_spread", lambda: SHARDED | {"lm_head": head})
    parts = load_model(str(copy), LoadOptions(device="shard"))
    assert parts.fingerprint == plain.fingerprint
    assert any(parameter.is_meta for parameter in parts.language_model.model.parameters())
    assert parts.language_model.device.type == "cpu"
    requests = [CompletionRequest((3, 4, 5), (1, 2, 3), 8), CompletionRequest((3, 4, 5, 6, 7), (4, 5), 8)]
    found, expected = (
        {(c.request, c.replicate): c for c in HFEngine(m.language_model, frozenset({2})).complete(requests)}
        for m in (parts, plain)
    )
    for key, completion in expected.items():
        assert found[key].tokens.tolist() == completion.tokens.tolist()
        np.testing.assert_allclose(found[key].logprobs, completion.logprobs, atol=1e-4)
    states = [
        m.language_model.logprobs(m.language_model.hidden_states((3, 4), [np.array([9, 8, 7])])[0]) for m in (parts, plain)
    ]
    torch.testing.assert_close(*states, atol=1e-4, rtol=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_a_run_with_a_model_in_parts(tmp_path):
    settings = {"teachers": ["model:builtin:medium"], "limit": 4, "rollouts": 8, "budget": 8, "device": "cpu"}
    whole = gradalign.score("builtin:arithmetic", out=tmp_path / "whole", **settings)
    parts = gradalign.score("builtin:arithmetic", out=tmp_path / "parts", place=("builtin:medium=shard",), **settings)
    np.testing.assert_allclose(parts.scores["dot"], whole.scores["dot"], atol=1e-5)
    assert parts.identity == whole.identity


def test_without_accelerate(copy, monkeypatch):
    monkeypatch.setattr("transformers.modeling_utils.is_accelerate_available", lambda *_: False)
    monkeypatch.setattr("transformers.integrations.accelerate.is_accelerate_available", lambda *_: False)
    refused(copy, r"pip install 'gradalign\[sharded\]'", LoadOptions(device="shard"))


def close_but_not_equal(name: str, options: LoadOptions, small) -> None:
    """Log-probabilities near the unquantised ones, by plain passes too, and another fingerprint."""
    loaded = load_model(name, options)
    model, prompt, tokens = loaded.language_model, (3, 4, 5), np.arange(10, 40)
    found = model.logprobs(model.hidden_states(prompt, [tokens])[0])
    with torch.inference_mode():
        plain = model.model(input_ids=torch.tensor([[*prompt, *tokens]])).logits[0, 2:-1, : model.vocabulary_size].float()
    torch.testing.assert_close(found, torch.log_softmax(plain, -1), atol=1e-3, rtol=1e-3)
    exact = small.language_model.logprobs(small.language_model.hidden_states(prompt, [tokens])[0])
    divergence = (exact.exp() * (exact - found)).sum(-1).mean()
    assert 1e-6 < divergence < 0.2
    assert loaded.fingerprint != small.fingerprint
    with pytest.raises(GradalignError, match="without --quantize"):
        engine_arguments(model, 1, None)
    assert student_engine("auto", loaded, 4).kind == "hf"


def adapted_over(base: str, folder: Path) -> None:
    """An adapter over a quantised base computes what peft computes."""
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base, device_map={"": "cpu"}, dtype=torch.float32),
        LoraConfig(r=2, task_type="CAUSAL_LM", target_modules=["q_proj"], init_lora_weights=False),
    ).eval()
    model.save_pretrained(folder)
    loaded = load_model(str(folder), CPU).language_model
    expected = model(input_ids=torch.tensor([[3, 4, 5, 6]])).logits[0, :-1, : loaded.vocabulary_size]
    found = loaded.logits(loaded.hidden_states((3,), [np.array([4, 5, 6])])[0])
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("bits", "package"), [("8bit", "torchao"), ("4bit", "bitsandbytes")])
@torch.inference_mode()
def test_quantised_models(bits, package, small, tmp_path):
    pytest.importorskip(package)
    options = LoadOptions(device="cpu", quantize=bits)
    close_but_not_equal("builtin:small", options, small)
    saved = str(tmp_path / "saved")
    quantised = load_model("builtin:small", options)
    weights.read_weights(resolve_model("builtin:small"), options).save_pretrained(saved)
    quantised.codec.tokenizer.save_pretrained(saved)
    again = load_model(saved, options)
    assert again.language_model.origin.changed is None
    assert again.fingerprint == quantised.fingerprint
    tokens = [np.arange(10, 20)]
    found, expected = (m.language_model.logits(m.language_model.hidden_states((3,), tokens)[0]) for m in (again, quantised))
    torch.testing.assert_close(found, expected)
    adapted_over(saved, tmp_path / "adapter")
    run = gradalign.score(
        "builtin:arithmetic", student=saved, teachers=["ctx:answer", "model:builtin:small"], limit=2, rollouts=4, budget=4, max_tokens=16,
        out=tmp_path / "run", device="cpu",
    )  # fmt: skip
    assert np.isfinite(run.scores["dot"]).all()


@pytest.mark.parametrize(("bits", "package"), [("8bit", "torchao"), ("4bit", "bitsandbytes")])
def test_a_package_that_is_missing_is_named(bits, package, copy, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(sys.modules, f"{package}.quantization", None)
    if bits == "4bit":
        monkeypatch.setattr("transformers.quantizers.quantizer_bnb_4bit.is_accelerate_available", lambda *_: False)
    refused(
        copy,
        r"package that is missing.*pip install 'gradalign\[(quantized|sharded)\]'",
        LoadOptions(device="cpu", quantize=bits),
    )


@torch.inference_mode()
def test_an_output_layer_of_another_kind_is_called_whole(small):
    class Doubled(torch.nn.Module):
        """A layer that holds its weight in a form of its own."""

        def __init__(self, linear):
            super().__init__()
            self.inner = linear

        def forward(self, states):
            return 2 * self.inner(states)

    model = load_model("builtin:small", CPU).language_model.model
    model.lm_head = Doubled(model.lm_head)
    doubled = CausalLanguageModel(model, "doubled", 300)
    states = doubled.hidden_states((3, 4), [np.array([5, 6])])[0]
    torch.testing.assert_close(doubled.logits(states), 2 * small.language_model.logits(states)[:, :300])
    assert (doubled.width, doubled.vocabulary_size) == (356, 300)
