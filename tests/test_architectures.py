"""The families that users bring, as small random models: cached, batched and plain forward passes agree."""

import numpy as np
import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SiglipVisionConfig,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

from gradalign.engines import HFEngine
from gradalign.models import CausalLanguageModel
from gradalign.types import CompletionRequest

SHAPE = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip

GEMMA = {"head_dim": 16, "sliding_window": 8}


def composite_gemma() -> PreTrainedModel:
    """Text and vision together, as the 4b, 12b and 27b are: its text settings lie one level down."""
    vision = SiglipVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1, image_size=28, patch_size=14
    )
    tokens = {"image_token_index": 96, "boi_token_index": 95, "eoi_token_index": 94, "mm_tokens_per_image": 4}
    text = Gemma3TextConfig(**SHAPE, **GEMMA)
    return Gemma3ForConditionalGeneration(Gemma3Config(text_config=text, vision_config=vision, **tokens))


FAMILIES = {
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SHAPE, head_dim=16)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SHAPE)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE)),
    "smollm3": lambda: SmolLM3ForCausalLM(SmolLM3Config(**SHAPE)),
    "gemma3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**SHAPE, **GEMMA, final_logit_softcapping=3.0)),
    "gemma3 composite": composite_gemma,
    "gemma2": lambda: Gemma2ForCausalLM(
        Gemma2Config(**SHAPE, **GEMMA, attn_logit_softcapping=5.0, attn_implementation="eager")
    ),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=8)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=97, n_embd=32, n_layer=3, n_head=2, n_positions=256)),
}


@pytest.fixture(params=FAMILIES)
def model(request) -> PreTrainedModel:
    torch.manual_seed(0)
    found = FAMILIES[request.param]().eval()
    for parameter in found.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.4)
    return found


@torch.inference_mode()
def test_engine_and_forward_passes_agree_with_plain_ones(model):
    language_model = CausalLanguageModel(model, "random", 90)
    assert language_model.context_window == 256
    assert language_model.shares_prefixes
    requests = [CompletionRequest(tuple(range(3, 6 + 9 * i)), tuple(range(i * 10, i * 10 + 4)), 20) for i in range(3)]
    found = {(c.request, c.replicate): c for c in HFEngine(language_model, frozenset({2}), 256).complete(requests)}
    alone = {(c.request, c.replicate): c for c in HFEngine(language_model, frozenset({2}), 1).complete(requests)}
    for key, completion in found.items():
        assert completion.tokens.tolist() == alone[key].tokens.tolist()
        prefix = requests[key[0]].prefix
        logits = model(input_ids=torch.tensor([[*prefix, *completion.tokens.tolist()]])).logits[0, len(prefix) - 1 : -1, :90]
        plain = torch.log_softmax(logits.float(), -1)
        hidden = language_model.hidden_states(prefix, [completion.tokens])[0]
        torch.testing.assert_close(language_model.logprobs(hidden), plain, atol=1e-3, rtol=1e-3)
        taken = plain.gather(1, torch.tensor(completion.tokens)[:, None])[:, 0].numpy()
        np.testing.assert_allclose(completion.logprobs, taken, atol=1e-3)


@torch.inference_mode()
def test_several_continuations_share_the_prompt(model):
    language_model = CausalLanguageModel(model, "random", 90, batch_size=2)
    prompt, continuations = tuple(range(3, 20)), [np.array([5]), np.array([6, 7, 8]), np.array([9, 10]), np.arange(20, 40)]
    for states, tokens in zip(language_model.hidden_states(prompt, continuations), continuations, strict=True):
        logits = model(input_ids=torch.tensor([[*prompt, *tokens.tolist()]])).logits[0, len(prompt) - 1 : -1, :90].float()
        torch.testing.assert_close(language_model.logits(states), logits, atol=1e-3, rtol=1e-3)


@torch.inference_mode()
def test_a_model_with_attention_sinks_is_sampled_without_sharing():
    torch.manual_seed(0)
    model = GptOssForCausalLM(GptOssConfig(**SHAPE, head_dim=16, num_local_experts=2, num_experts_per_tok=1)).eval()
    engine = HFEngine(CausalLanguageModel(model, "random", 90), frozenset({2}), 3)
    assert not engine.model.shares_prefixes
    found = {c.replicate: c for c in engine.complete([CompletionRequest((3, 4, 5), tuple(range(5)), 6)])}
    for completion in found.values():
        logits = model(input_ids=torch.tensor([[3, 4, 5, *completion.tokens.tolist()]])).logits[0, 2:-1, :90]
        taken = torch.log_softmax(logits, -1).gather(1, torch.tensor(completion.tokens)[:, None])[:, 0].numpy()
        np.testing.assert_allclose(completion.logprobs, taken, atol=1e-3)
