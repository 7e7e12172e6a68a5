"""Models with tokenizers of their own, written into folders: the built-in student with its vocabulary permuted, and random networks."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from gradalign.builtin import builtin_path

TEMPLATE = "{% for message in messages %}<user>{{ message['content'] }}<end>{% endfor %}{% if add_generation_prompt %}<answer>{% endif %}"


def permuted_student(folder: Path, seed: int = 0) -> Path:
    """`builtin:small` with another id for every token, and its rows of weights moved along: the same network."""
    shutil.copytree(builtin_path("students") / "small", folder)
    described = json.loads((folder / "tokenizer.json").read_text())
    size = max(len(described["model"]["vocab"]), 1 + max(token["id"] for token in described["added_tokens"]))
    moved = np.random.default_rng(seed).permutation(size).tolist()
    described["model"]["vocab"] = {token: moved[index] for token, index in described["model"]["vocab"].items()}
    for token in described["added_tokens"]:
        token["id"] = moved[token["id"]]
        described["model"]["vocab"][token["content"]] = token["id"]  # else ids of added tokens are given anew
    (folder / "tokenizer.json").write_text(json.dumps(described))
    for name in ("config.json", "generation_config.json"):
        (folder / name).write_text(json.dumps(_moved(json.loads((folder / name).read_text()), moved)))
    model = AutoModelForCausalLM.from_pretrained(folder)
    weights = {id(layer.weight): layer.weight for layer in (model.get_input_embeddings(), model.get_output_embeddings())}
    for weight in weights.values():  # one, where they are tied
        weight.data[torch.tensor(moved)] = weight.data[:size].clone()
    model.save_pretrained(folder)
    return folder


def _moved(settings: Mapping[str, Any], moved: Sequence[int]) -> dict[str, Any]:
    ids = {name: value for name, value in settings.items() if name.endswith("_token_id") and value is not None}
    return {**settings, **{k: [moved[i] for i in v] if isinstance(v, list) else moved[v] for k, v in ids.items()}}


def trained_tokenizer(texts: Sequence[str], size: int, end: str = "<end>") -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of that many tokens, trained on the texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = [end, "<user>", "<answer>"]
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=specials, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end, additional_special_tokens=specials[1:])
    wrapped.chat_template = TEMPLATE.replace("<end>", end)
    return wrapped


def byte_fallback_tokenizer(words: Sequence[str], added: Sequence[str] = (), end: str = "<end>") -> PreTrainedTokenizerFast:
    """One as SentencePiece makes them: spaces are ▁, and bytes of what is no token have tokens of their own, before all others.

    Words of several characters are merged of their beginning and their last character. Those in `added` are added tokens, not special.
    """
    tokens = [end, *(f"<0x{byte:02X}>" for byte in range(256)), *dict.fromkeys(char for word in words for char in word)]
    tokens += [word for word in words if len(word) > 1]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    merges = [(word[:-1], word[-1]) for word in words if len(word) > 1]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True, unk_token=end))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_tokens([AddedToken(word, normalized=False, special=False) for word in added])
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end)
    wrapped.chat_template = TEMPLATE.replace("<end>", end)
    return wrapped


def random_model(folder: Path, tokenizer: PreTrainedTokenizerFast, seed: int) -> Path:
    """A small network with random weights over that tokenizer."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=512, eos_token_id=tokenizer.eos_token_id, initializer_range=0.3,
        bos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    AutoTokenizer.from_pretrained(folder)
    return folder
