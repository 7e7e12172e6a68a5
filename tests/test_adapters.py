"""PEFT adapters as models: forward passes see them, whatever they are on, and what does not fit is one line."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, PrefixTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from gradalign.builtin import builtin_path
from gradalign.engines import HFEngine, student_engine
from gradalign.engines.vllm_setup import engine_arguments
from gradalign.models import LoadOptions, load_model
from gradalign.types import CompletionRequest, GradalignError

CPU = LoadOptions(device="cpu")
SMALL = str(builtin_path("students") / "small")
KINDS = {
    "layers": {"target_modules": ["q_proj", "down_proj"]},
    "output layer, tied": {"target_modules": ["v_proj", "lm_head"]},
    "embeddings": {"target_modules": ["embed_tokens", "o_proj"]},
    "whole output layer": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "dora": {"target_modules": ["k_proj"], "use_dora": True},
    "rows of embeddings": {"target_modules": ["q_proj"], "trainable_token_indices": [5, 6, 7]},
}


def save_adapter(folder: Path, base: str = SMALL, seed: int = 0, **settings) -> str:
    """An adapter with random weights over a base, as peft saves it."""
    torch.manual_seed(seed)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=4, task_type="CAUSAL_LM", **settings))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "magnitude" not in name:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    return str(folder)


@pytest.mark.filterwarnings("ignore")  # of peft, of layers that are tied
@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_forward_passes_and_sampling_see_the_adapter(kind, tmp_path, small):
    folder = save_adapter(tmp_path / "adapter", **KINDS[kind])
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(SMALL), folder).eval()
    model = load_model(folder, CPU).language_model
    prompt, tokens = (3, 4, 5, 6), np.array([7, 8, 9, 10, 11])
    expected = torch.log_softmax(plain(input_ids=torch.tensor([[*prompt, *tokens]])).logits[0, 3:-1].float(), -1)
    found = model.logprobs(model.hidden_states(prompt, [tokens])[0])
    torch.testing.assert_close(found, expected[:, : model.vocabulary_size], atol=1e-4, rtol=1e-4)
    without = small.language_model.logprobs(small.language_model.hidden_states(prompt, [tokens])[0])
    assert (found - without).abs().max() > 0.05
    (sampled,) = HFEngine(model, frozenset({2}), 4).complete([CompletionRequest(prompt, (1,), 12)])
    again = plain(input_ids=torch.tensor([[*prompt, *sampled.tokens.tolist()]])).logits[0, 3:-1].float()
    taken = torch.log_softmax(again, -1).gather(1, torch.from_numpy(sampled.tokens)[:, None])[:, 0]
    np.testing.assert_allclose(sampled.logprobs, taken.numpy(), atol=1e-4)


def test_tokens_that_were_added_in_training_have_their_rows(tmp_path):
    tokenizer, model = AutoTokenizer.from_pretrained(SMALL), AutoModelForCausalLM.from_pretrained(SMALL)
    tokenizer.add_tokens(["<|aside|>"])
    model.resize_token_embeddings(len(tokenizer) + 3, mean_resizing=False)
    model = get_peft_model(model, LoraConfig(r=2, task_type="CAUSAL_LM", target_modules=["q_proj"]))
    model.save_pretrained(tmp_path, save_embedding_layers=True)
    tokenizer.save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path), CPU)
    assert loaded.language_model.vocabulary_size == len(tokenizer)
    assert loaded.codec.tokenizer.convert_tokens_to_ids("<|aside|>") == len(tokenizer) - 1
    theirs = model.base_model.model.get_input_embeddings().weight
    torch.testing.assert_close(loaded.language_model.model.get_input_embeddings().weight, theirs)


def test_adapters_are_told_apart(tmp_path, small):
    one, other = (save_adapter(tmp_path / str(seed), seed=seed, target_modules=["q_proj"]) for seed in (1, 2))
    copy = str(shutil.copytree(one, tmp_path / "copy"))
    found = [load_model(name, CPU).fingerprint for name in (one, other, copy)]
    assert found[0] == found[2]
    assert len({*found, small.fingerprint}) == 3


@pytest.fixture
def adapter(tmp_path) -> Path:
    return Path(save_adapter(tmp_path / "adapter", target_modules=["q_proj"]))


def say(adapter: Path, **settings) -> None:
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


def refused(adapter: Path, says: str) -> None:
    with pytest.raises(GradalignError, match=says) as caught:
        load_model(str(adapter), CPU)
    assert "\n" not in str(caught.value)


def test_without_peft(adapter, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    refused(adapter, r"pip install 'gradalign\[peft\]'")


def test_a_base_that_is_not_here(adapter):
    say(adapter, base_model_name_or_path="/nowhere/base")
    refused(adapter, r"needs its base model '/nowhere/base', which is not here")
    say(adapter, base_model_name_or_path="nobody/no-such-model", revision="v2")
    refused(adapter, r"needs its base model: .*'nobody/no-such-model@v2'.* at revision 'v2'.*no network")
    say(adapter, base_model_name_or_path=None)
    refused(adapter, "needs its base model 'None@v2'")
    say(adapter, base_model_name_or_path=str(adapter))
    refused(adapter, "no whole model")


def test_an_adapter_of_another_architecture(adapter, tmp_path):
    wide = builtin_path("students") / "medium"
    say(adapter, base_model_name_or_path=str(wide))
    refused(adapter, "does not fit its base model")
    say(adapter, base_model_name_or_path=SMALL, target_modules=["c_attn"])
    refused(adapter, "does not fit its base model")
    say(adapter, target_modules=["k_proj"])
    refused(adapter, r"does not fit its base model .*weights have no counterpart")


@pytest.mark.parametrize("text", ["", "[]", "{}", "{nothing"])
def test_damaged_settings(adapter, text):
    (adapter / "adapter_config.json").write_text(text)
    refused(adapter, "names no base model")


def test_damaged_and_pickled_weights(adapter):
    weights = adapter / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:100])
    refused(adapter, "cannot be read")
    weights.unlink()
    torch.save({}, adapter / "adapter_model.bin")
    refused(adapter, r"no adapter_model\.safetensors; other files can run code")


def test_modules_that_an_adapter_names_are_not_imported(adapter):
    say(adapter, megatron_config={"a": 1}, megatron_core="antigravity")
    refused(adapter, "is for Megatron")
    assert "antigravity" not in sys.modules


def test_an_adapter_that_waits_for_its_tokens_is_refused(adapter):
    say(adapter, alora_invocation_tokens=[3, 4])
    refused(adapter, "aLoRA")


def test_an_adapter_of_a_hub_id_is_fetched_with_its_revision(adapter, monkeypatch):
    asked = []

    def fetched(location, name, revision, **_):
        asked.append((location, name, revision))
        return str(adapter / name) if (adapter / name).is_file() else None

    monkeypatch.setattr("gradalign.models.adapters.cached_file", fetched)
    found = load_model("owner/name@v3", CPU)
    files = ("adapter_config.json", "adapter_model.safetensors", "tokenizer_config.json")
    assert asked[:3] == [("owner/name", file, "v3") for file in files]
    assert found.fingerprint.split(":")[1] == load_model(str(adapter), CPU).fingerprint.split(":")[1]


def test_adapters_on_prompts_and_folders_with_both(adapter, tmp_path):
    prefix = get_peft_model(
        AutoModelForCausalLM.from_pretrained(SMALL), PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    )
    prefix.save_pretrained(tmp_path / "prefix")
    refused(tmp_path / "prefix", "works on prompts")
    shutil.copy(Path(SMALL) / "config.json", adapter)
    refused(adapter, "both a model and an adapter")


def test_vllm_is_not_asked_for_files_that_lack_the_adapter(adapter, monkeypatch):
    loaded = load_model(str(adapter), CPU)
    with pytest.raises(GradalignError, match="without its adapter; save the model with it in its weights"):
        engine_arguments(loaded.language_model, 1, None)
    monkeypatch.setattr("gradalign.engines.choose.suited_engine", lambda *_: "vllm")
    assert student_engine("auto", loaded, 4).kind == "hf"
