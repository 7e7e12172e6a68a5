"""Names, loading, vocabularies: what is found, what is refused, and in which words."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from gradalign.builtin import builtin_path
from gradalign.models import KNOWN_NAMES, LoadOptions, load_model, require_same_vocabulary, resolve_model
from gradalign.types import GradalignError

CPU = LoadOptions(device="cpu")


@pytest.fixture
def copy(tmp_path) -> Path:
    """A folder with the files of `builtin:small`, to spoil."""
    return Path(shutil.copytree(builtin_path("students") / "small", tmp_path / "model"))


@pytest.mark.parametrize(
    ("name", "location"),
    [
        ("Qwen3-0.6B", "Qwen/Qwen3-0.6B"),
        ("qwen3-1.7b", "Qwen/Qwen3-1.7B"),
        ("Qwen2.5-0.5B-Instruct", "Qwen/Qwen2.5-0.5B-Instruct"),
        ("Llama-3.2-1B-Instruct", "meta-llama/Llama-3.2-1B-Instruct"),
        ("SmolLM2-135M-Instruct", "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ("SmolLM3-3B", "HuggingFaceTB/SmolLM3-3B"),
        ("gemma-3-1b-it", "google/gemma-3-1b-it"),
        ("someone/something", "someone/something"),
    ],
)
def test_well_known_names_and_hub_ids(name, location):
    found = resolve_model(name)
    assert (found.kind, found.location) == ("hub", location)


def test_folders_files_and_builtins(copy, tmp_path):
    assert resolve_model(str(copy)).kind == "folder"
    assert Path(resolve_model("builtin:small").location, "config.json").is_file()
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(b"GGUF")
    found = resolve_model(str(gguf))
    assert (found.kind, found.location, found.gguf_file) == ("gguf", str(tmp_path), "model.gguf")
    assert len(KNOWN_NAMES) > 50


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("Qwen3-0.6", "Qwen3-0.6B"),
        ("SmolLM2-135M-Instuct", "SmolLM2-135M-Instruct"),
        ("builtin:smal", "builtin:small"),
        ("zzz", "hub"),
        ("missing.gguf", "no such GGUF file"),
    ],
)
def test_unknown_names_fail_with_the_nearest(name, says):
    with pytest.raises(GradalignError, match=says):
        resolve_model(name)


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(GradalignError, match=r"config\.json"):
        resolve_model(str(tmp_path))


def test_no_network_is_one_line():
    with pytest.raises(GradalignError, match="no network") as caught:
        load_model("nobody/no-such-model", CPU)
    assert "\n" not in str(caught.value)


def test_damaged_files_are_one_line(copy, tmp_path):
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(GradalignError, match="could not be loaded") as caught:
        load_model(str(copy), CPU)
    assert "\n" not in str(caught.value)
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF nothing")
    with pytest.raises(GradalignError, match="could not be loaded"):
        load_model(str(broken), CPU)


def test_no_chat_template_is_refused_unless_one_is_given(copy):
    template = copy / "chat_template.jinja"
    text = template.read_text()
    template.unlink()
    with pytest.raises(GradalignError, match="no chat template"):
        load_model(str(copy), CPU)
    other = copy / "other.jinja"
    other.write_text(text)
    assert load_model(str(copy), LoadOptions(device="cpu", chat_template=str(other))).codec.prompt("x")


@pytest.mark.parametrize(
    ("file", "spoil"),
    [
        ("config.json", lambda d: d["rope_parameters"].update(rope_theta=20000.0)),
        ("config.json", lambda d: d.update(rms_norm_eps=1e-5)),
        ("generation_config.json", lambda d: d.update(eos_token_id=[353, 355])),
        ("tokenizer.json", lambda d: d["model"].update(ignore_merges=False)),
        ("tokenizer.json", lambda d: d.update(normalizer={"type": "Lowercase"})),
    ],
    ids=["positions", "norm", "stop tokens", "merges", "normalizer"],
)
def test_what_is_computed_otherwise_has_another_fingerprint(copy, small, file, spoil):
    assert load_model(str(copy), CPU).fingerprint.partition(":")[2] == small.fingerprint.partition(":")[2]
    described = json.loads((copy / file).read_text())
    spoil(described)
    (copy / file).write_text(json.dumps(described))
    assert load_model(str(copy), CPU).fingerprint.partition(":")[2] != small.fingerprint.partition(":")[2]


def test_padded_logits_are_trimmed_on_every_side_and_it_is_said(copy, small):
    model = AutoModelForCausalLM.from_pretrained(copy)
    width = model.get_output_embeddings().weight.shape[0]
    model.resize_token_embeddings(width + 64, mean_resizing=False)
    model.save_pretrained(copy)
    padded = load_model(str(copy), CPU)
    assert padded.language_model.vocabulary_size == small.language_model.vocabulary_size
    assert "trimmed" in padded.notices[0]
    require_same_vocabulary(small.codec, padded.codec)


def test_another_tokenizer_is_refused_with_the_first_token_that_differs(copy, small):
    file = copy / "tokenizer.json"
    settings = json.loads(file.read_text())
    vocabulary = settings["model"]["vocab"]
    first, second = sorted((token for token in vocabulary if vocabulary[token] in (70, 71)), key=vocabulary.get)
    vocabulary[first], vocabulary[second] = 71, 70
    file.write_text(json.dumps(settings))
    with pytest.raises(GradalignError, match=r"2 tokens differ, first .* \(id 70\); .*--cross-tokenizer"):
        require_same_vocabulary(small.codec, load_model(str(copy), CPU).codec)


def test_logits_that_are_no_numbers_are_refused(copy):
    model = AutoModelForCausalLM.from_pretrained(copy)
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    model.save_pretrained(copy)
    broken = load_model(str(copy), CPU).language_model
    with pytest.raises(GradalignError, match="not numbers"):
        broken.logprobs(broken.hidden_states([1, 2, 3], [torch.tensor([4, 5]).numpy()])[0])


def test_weights_are_told_apart(copy, small):
    assert load_model(str(copy), CPU).fingerprint == small.fingerprint
    model = AutoModelForCausalLM.from_pretrained(copy)
    with torch.no_grad():
        model.model.norm.weight += 0.1
    model.save_pretrained(copy)
    assert load_model(str(copy), CPU).fingerprint != small.fingerprint


def test_prompts_end_where_the_assistant_begins(small):
    tokens = small.codec.prompt("Hello there")
    assert small.codec.tokenizer.decode(tokens).endswith("<|im_start|>assistant\n")
    assert small.codec.text(small.codec.tokenizer("any text — at all")["input_ids"]) == "any text — at all"
