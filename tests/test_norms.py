"""Norms by the kernel against the architectures' own: Triton's, on a GPU if there is one, else by its interpreter."""

import importlib.util
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig, Olmo2Config, Qwen3Config

from gradalign.models import norms
from gradalign.models.attention import forward

SHAPE = {
    "vocab_size": 50, "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 12, "pad_token_id": 0,
}  # fmt: skip
FORMS = {
    LlamaConfig: norms.Form(True, 0.0),
    Qwen3Config: norms.Form(True, 0.0),
    Olmo2Config: norms.Form(False, 0.0),
    Gemma3TextConfig: norms.Form(False, 1.0),
}


@pytest.fixture
def device(monkeypatch) -> str:
    """The kernel is read anew: the hook that checks types in tests wraps functions, and Triton wants them bare."""
    pytest.importorskip("triton")
    spec = importlib.util.spec_from_file_location("bare_norm_kernel", Path(norms.__file__).with_name("norm_kernel.py"))
    kernel = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(kernel)
    monkeypatch.setattr(norms, "norm_kernel", kernel.norm_kernel)
    monkeypatch.setattr(norms, "_has_kernels", lambda _: True)
    return "cuda" if torch.cuda.is_available() else "cpu"


def random_model(config: type, device: str, dtype: torch.dtype) -> torch.nn.Module:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config(**SHAPE), dtype=dtype).eval().to(device)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data += torch.randn_like(parameter) / 3
    return model


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("config", FORMS)
def test_norms_are_found_and_are_what_they_were(device, config, dtype):
    model, ids = random_model(config, device, dtype), torch.arange(20, device=device)[None] + 3
    own = {name: module for name, module in model.base_model.named_modules() if name.endswith("norm") or "layernorm" in name}
    seen = {}
    hooks = [
        module.register_forward_hook(lambda m, x, y, name=name: seen.update({name: (x[0], y)})) for name, module in own.items()
    ]
    with torch.inference_mode():
        forward(model, input_ids=ids)
        assert own
        for name, (values, ours) in seen.items():
            kind = type(own[name])
            torch.testing.assert_close(ours, kind.forward(own[name], values), rtol=2 * torch.finfo(dtype).eps, atol=1e-6)
    for hook in hooks:
        hook.remove()
    found = norms._norms_of(model)
    assert {id(norm) for norm, _ in found} == {id(norm) for norm in own.values()}
    if dtype == torch.float16:
        assert {form for _, form in found} == {FORMS[config]}


@pytest.mark.slow
def test_a_pass_is_what_it_was_and_leaves_the_model_as_it_was(device):
    model, ids = random_model(Qwen3Config, device, torch.float32), torch.arange(20, device=device)[None] + 3
    with torch.no_grad():
        plain = model.base_model(input_ids=ids).last_hidden_state
        torch.testing.assert_close(forward(model, input_ids=ids).last_hidden_state, plain, rtol=1e-4, atol=1e-5)
    assert not any("forward" in module.__dict__ for module in model.modules())


@pytest.mark.slow
def test_gradients_flow_through_the_models_own_norms(device, monkeypatch):
    model, ids = random_model(Qwen3Config, device, torch.float32), torch.arange(20, device=device)[None] + 3
    monkeypatch.setattr(norms, "normed", None)
    forward(model, input_ids=ids).last_hidden_state.sum().backward()
    assert model.base_model.norm.weight.grad is not None


@pytest.mark.slow
def test_a_hook_that_came_later_stays(device):
    model, ids = random_model(Qwen3Config, device, torch.float32), torch.arange(20, device=device)[None] + 3
    norm, called = model.base_model.norm, []
    with torch.no_grad():
        forward(model, input_ids=ids)
        norm.forward = lambda values: called.append(1) or type(norm).forward(norm, values)
        forward(model, input_ids=ids)
    assert called
    assert "forward" in norm.__dict__


@pytest.mark.slow
def test_other_norms_are_left_alone(device):
    class CentredRMSNorm(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.eps = torch.nn.Parameter(torch.randn(16, device=device)), 1e-6

        def forward(self, values):
            return torch.nn.functional.layer_norm(values, (16,), self.weight)

    class GatedRMSNorm(CentredRMSNorm):
        def forward(self, values, gate):
            return values * gate

    assert norms.form_of(CentredRMSNorm()) is None
    assert norms.form_of(GatedRMSNorm()) is None


@pytest.mark.slow
@pytest.mark.parametrize("width", [1, 7, 128, 5000])
def test_the_kernel_takes_any_number_of_rows_and_columns(device, width):
    values, weight = torch.randn(3, 11, width, device=device), torch.randn(width, device=device)
    expected = torch.nn.functional.rms_norm(values, (width,), weight, 1e-5)
    found = norms.normed(values.transpose(0, 1), weight, 1e-5, norms.Form(False, 0.0))
    torch.testing.assert_close(found, expected.transpose(0, 1))


def test_where_no_kernel_can_be_made_a_warning_is_told_and_the_models_own_norms_go_on(monkeypatch, caplog):
    class Broken:
        def __getitem__(self, grid):
            raise RuntimeError("Failed to find C compiler.")

    device = torch.device("cpu")
    monkeypatch.setattr(norms, "norm_kernel", Broken())
    monkeypatch.setattr(norms, "_has_kernels", norms.kernels_run)
    norms.kernels_run.cache_clear()
    try:
        model, ids = random_model(Qwen3Config, "cpu", torch.float32), torch.arange(20)[None] + 3
        with torch.no_grad():
            plain = model.base_model(input_ids=ids).last_hidden_state
            assert torch.equal(forward(model, input_ids=ids).last_hidden_state, plain)
            forward(model, input_ids=ids)
        assert not norms.kernels_run(device)
        assert [record.getMessage() for record in caplog.records if "C compiler" in record.getMessage()] == [
            "Triton makes no kernels for cpu (RuntimeError: Failed to find C compiler.); going on without, which takes longer"
        ]
    finally:
        norms.kernels_run.cache_clear()
