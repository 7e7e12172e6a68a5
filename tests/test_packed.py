"""Packed forward passes: hidden states are those of plain passes, every token is computed once, and what is not covered falls back."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from test_architectures import FAMILIES, GEMMA, SHAPE
from torch import Tensor
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GemmaConfig,
    GemmaForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
)

from gradalign.models import Batches, CausalLanguageModel, causal, packed_attention
from gradalign.models.cached import CachedPrompt
from gradalign.models.packed import PackedPrompt, packs
from gradalign.models.packed_attention import ATTENTION
from gradalign.types import GradalignError

CPU = torch.device("cpu")
OLDER = {"vocab_size": 97, "hidden_size": 32, "n_layer": 2, "n_head": 2}
LINEAR = {
    "linear_num_value_heads": 2, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8, "num_experts": 2,
    "num_experts_per_tok": 1, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16,
}  # fmt: skip

PACKED = {
    **{name: make for name, make in FAMILIES.items() if name != "gemma2"},
    "smollm2": lambda: LlamaForCausalLM(LlamaConfig(**{**SHAPE, "num_attention_heads": 4}, tie_word_embeddings=True)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=None)),
    "mistral, windows": lambda: MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=6)),
    "gemma": lambda: GemmaForCausalLM(GemmaConfig(**SHAPE, head_dim=16)),
}
FALLEN_BACK = {
    "gemma2, a softcap": lambda: Gemma2ForCausalLM(Gemma2Config(**SHAPE, **GEMMA)),
    "bloom, ALiBi": lambda: BloomForCausalLM(BloomConfig(**OLDER)),
    "gpt-oss, sinks": lambda: GptOssForCausalLM(GptOssConfig(**SHAPE, head_dim=16, num_local_experts=4)),
    "qwen3-next, linear attention": lambda: Qwen3NextForCausalLM(Qwen3NextConfig(**SHAPE, **LINEAR, head_dim=16)),
    "mamba": lambda: MambaForCausalLM(MambaConfig(vocab_size=97, hidden_size=32, num_hidden_layers=1)),
}
PROMPT = tuple(range(3, 14))
RAGGED = [np.array([5]), np.array([6, 7, 8]), np.arange(20, 40), np.array([9, 10]), np.arange(50, 59), np.array([11])]


def build(make) -> PreTrainedModel:
    torch.manual_seed(0)
    model = make().eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.4)
    return model


@pytest.fixture
def llama() -> PreTrainedModel:
    return build(PACKED["llama"])


@torch.inference_mode()
def plain(model: PreTrainedModel, prompt: Sequence[int], continuations: Sequence[np.ndarray]) -> list[Tensor]:
    """A pass for each text."""
    rows = [torch.tensor([[*prompt, *tokens.tolist()]]) for tokens in continuations]
    return [model.base_model(input_ids=row).last_hidden_state[0, len(prompt) - 1 : -1] for row in rows]


def assert_plain(found: Sequence[Tensor], model: PreTrainedModel, prompt=PROMPT, continuations=RAGGED) -> None:
    for states, expected in zip(found, plain(model, prompt, continuations), strict=True):
        torch.testing.assert_close(states, expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("family", PACKED)
def test_states_are_those_of_plain_passes(family):
    model = build(PACKED[family])
    assert packs(model, CPU)
    for batch_size in (64, 2):
        language_model = CausalLanguageModel(model, "random", 90, batch_size=batch_size)
        assert_plain(language_model.hidden_states(PROMPT, RAGGED), model)
        assert isinstance(language_model._passes(PROMPT), PackedPrompt)
    for prompt, continuations in (((3,), RAGGED), (PROMPT, RAGGED[:1]), (PROMPT, RAGGED[2:3])):
        assert_plain(language_model.hidden_states(prompt, continuations), model, prompt, continuations)
    assert model.config.get_text_config()._attn_implementation == "sdpa"


@pytest.mark.parametrize("family", ["llama", "mistral, windows"])
def test_where_no_kernel_tells_its_denominators_masks_do(family, monkeypatch):
    monkeypatch.setattr(packed_attention, "_has_parted_kernel", lambda query, value: False)
    model = build(PACKED[family])
    language_model = CausalLanguageModel(model, "random", 90, batch_size=2)
    assert_plain(language_model.hidden_states(PROMPT, RAGGED), model)
    assert isinstance(language_model._passes(PROMPT), PackedPrompt)


@pytest.mark.parametrize("family", FALLEN_BACK)
def test_other_architectures_fall_back(family):
    model = build(FALLEN_BACK[family])
    before = model.config._attn_implementation
    assert not packs(model, CPU)
    assert model.config._attn_implementation == before
    if family in ("gemma2, a softcap", "bloom, ALiBi", "gpt-oss, sinks"):
        assert_plain(CausalLanguageModel(model, "random", 90, batch_size=2).hidden_states(PROMPT, RAGGED), model)


def test_another_attention_that_was_chosen_is_used(llama):
    llama.set_attn_implementation("eager")
    language_model = CausalLanguageModel(llama, "random", 90)
    assert isinstance(language_model._passes(PROMPT), CachedPrompt)
    assert_plain(language_model.hidden_states(PROMPT, RAGGED), llama)


def test_half_precision_is_as_near_as_it_rounds(llama):
    model = llama.to(torch.bfloat16)
    assert packs(model, CPU)
    found = torch.cat(CausalLanguageModel(model, "random", 90, batch_size=3).hidden_states(PROMPT, RAGGED))
    expected = torch.cat(plain(model, PROMPT, RAGGED))
    assert found.dtype == torch.bfloat16
    assert (found - expected).norm() < 0.02 * expected.norm()


def test_every_token_is_computed_once_whatever_a_pass_holds(llama, monkeypatch):
    fed: list[int] = []
    llama.model.layers[0].register_forward_pre_hook(lambda module, inputs: fed.append(inputs[0].shape[1]))
    for batch_size, most, passes in ((64, 1024, 1), (64, 16, 2), (1, 1024, 4)):
        monkeypatch.setitem(causal._TOKENS_AT_ONCE, "cpu", most)
        language_model = CausalLanguageModel(llama, "random", 90, batch_size=batch_size)
        language_model._passes(PROMPT)
        fed.clear()
        found = language_model.hidden_states(PROMPT, RAGGED)
        assert sum(fed) == len(PROMPT) + sum(len(tokens) - 1 for tokens in RAGGED)
        assert len(fed) == passes
        assert_plain(found, llama)


def test_out_of_memory_halves_the_passes(llama, caplog):
    def full(module, inputs):
        if inputs[0].shape[1] > 36:
            raise torch.OutOfMemoryError("CUDA out of memory")

    language_model = CausalLanguageModel(llama, "random", 90)
    language_model._passes(PROMPT)
    llama.model.layers[-1].register_forward_pre_hook(full)
    found = language_model.hidden_states(PROMPT, RAGGED)
    assert language_model.batches.size == 1
    assert "out of memory" in caplog.text
    assert_plain(found, llama)
    with pytest.raises(GradalignError, match="one at a time"):
        language_model.hidden_states(PROMPT * 4, RAGGED)


def test_the_models_own_attention_comes_back_after_an_error(llama):
    language_model = CausalLanguageModel(llama, "random", 90)
    language_model._passes(PROMPT)
    seen = []

    def broken(module, inputs):
        seen.append(llama.config._attn_implementation)
        raise ValueError("broken")

    llama.model.layers[1].register_forward_pre_hook(broken)
    with pytest.raises(ValueError, match="broken"):
        language_model.hidden_states(PROMPT, RAGGED)
    assert seen == [ATTENTION]
    assert llama.config._attn_implementation == "sdpa"
    assert not packs(llama, CPU)
    assert llama.config._attn_implementation == "sdpa"


def test_batches_weigh_about_as_much():
    def bounds(size: int, weights: list[int], most: int) -> list[tuple[int, int]]:
        return list(Batches(size, "test").over(len(weights), lambda start, stop: (start, stop), weights, most))

    assert bounds(99, [5] * 64, 160) == [(0, 33), (33, 64)]
    assert bounds(99, [5] * 64, 156) == [(0, 22), (22, 44), (44, 64)]
    assert bounds(20, [5] * 44, 156) == [(0, 20), (20, 40), (40, 44)]
    assert bounds(99, [30, 20, 1, 1, 1], 9) == [(0, 1), (1, 5)]
    assert bounds(99, [9, 9], 1) == [(0, 1), (1, 2)]
    assert bounds(99, [], 9) == []
