"""Student and teachers whose vocabularies or logits end at different places: all are held to what they share."""

import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import gradalign
from gradalign.builtin import builtin_path
from gradalign.engines import HFEngine
from gradalign.engines.vllm_setup import SPAN, engine_arguments
from gradalign.models import LoadOptions, load_model, settle_span
from gradalign.models import span as span_module
from gradalign.models.span import shared_span
from gradalign.pipeline import Execution, RunConfig, load_cast
from gradalign.types import CompletionRequest, GradalignError

CPU = LoadOptions(device="cpu")
SETTINGS = {"limit": 3, "rollouts": 8, "budget": 8, "max_tokens": 24, "device": "cpu", "part_size": 3}

LIKED = 289  # a token that the student samples at the prompt below


def grown(folder: Path, tokens: list[str], padding: int = 0, template: str | None = None) -> str:
    """`builtin:small` with tokens added at its end that it likes to sample, and logits beyond them."""
    source = builtin_path("students") / "small"
    shutil.copytree(source, folder)
    tokenizer, model = AutoTokenizer.from_pretrained(source), AutoModelForCausalLM.from_pretrained(source)
    tokenizer.add_tokens(tokens)
    if template is not None:
        tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    old = model.get_output_embeddings().weight.shape[0]
    model.resize_token_embeddings(len(tokenizer) + padding, mean_resizing=False)
    with torch.no_grad():
        weight = model.get_output_embeddings().weight
        weight[old:] = weight[LIKED]
    model.save_pretrained(folder)
    return str(folder)


def narrowed(folder: Path, rows: int) -> str:
    """`builtin:small` with the same tokenizer, and logits for its first tokens alone."""
    source = builtin_path("students") / "small"
    shutil.copytree(source, folder)
    model = AutoModelForCausalLM.from_pretrained(source)
    model.config.pad_token_id = None  # the padding token is beyond
    model.resize_token_embeddings(rows, mean_resizing=False)
    model.save_pretrained(folder)
    return str(folder)


def test_a_template_that_never_ends_with_a_finished_turn_is_stopped(monkeypatch):
    loaded = load_model("builtin:small", CPU)
    loop = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    own = loaded.codec.tokenizer.chat_template
    loaded.codec.tokenizer.chat_template = f"{own}{{% if messages[-1].role == 'assistant' %}}{loop}{{% endif %}}"
    monkeypatch.setattr(span_module, "templates_end", partial(span_module.templates_end, 0.05))
    assert shared_span(loaded, loaded) == loaded.language_model.vocabulary_size


def cast_of(student: str, *teachers: str):
    config = RunConfig(student, "builtin:arithmetic", tuple(f"model:{name}" for name in teachers), max_tokens=24)
    return load_cast(config, Execution(device="cpu", engine="hf"))


@pytest.fixture
def newer(tmp_path) -> str:
    return grown(tmp_path / "newer", ["<|tool|>", "<think>", "</think>"], padding=5)


def test_a_student_with_more_tokens_than_its_teacher_is_held_to_the_teachers(newer, small):
    cast = cast_of(newer, "builtin:small", "builtin:medium")
    span = small.language_model.vocabulary_size
    models = [m.model.language_model for m in (cast.student, *cast.others.values())]
    assert [model.vocabulary_size for model in models] == [span] * 3
    (said,) = cast.remarks
    assert f"{span:,} tokens in common" in said
    assert f"3 of {newer} (first '<|tool|>', id {span})" in said
    assert said in cast.notices


@torch.inference_mode()
def test_what_is_left_out_is_never_sampled_and_has_no_share(newer, small):
    span = small.language_model.vocabulary_size
    prompt = small.codec.prompt("Start at 3: +5 -2 (modulo 10). What is the total?")
    requests = [CompletionRequest(prompt, tuple(range(200)), 4)]

    def sampled(engine) -> np.ndarray:
        return np.concatenate([completion.tokens for completion in engine.complete(requests)])

    alone = load_model(newer, CPU)
    assert (sampled(HFEngine(alone.language_model, frozenset())) >= span).any()
    student = cast_of(newer, "builtin:small").student
    assert sampled(student.engine).max() < span
    states = student.model.language_model.hidden_states(prompt, [np.array([5, 6])])[0]
    logprobs = student.model.language_model.logprobs(states)
    torch.testing.assert_close(logprobs.exp().sum(-1), torch.ones(2))
    torch.testing.assert_close(logprobs, torch.log_softmax(alone.language_model.logits(states)[:, :span], -1))
    assert engine_arguments(student.model.language_model, 1, None)["additional_config"] == {SPAN: span}


def test_a_teacher_with_more_tokens_is_cut_and_its_span_said(newer, small):
    cast = cast_of("builtin:small", newer)
    assert cast.others[newer].model.language_model.vocabulary_size == small.language_model.vocabulary_size
    assert "first '<|tool|>'" in cast.remarks[0]
    assert cast_of("builtin:small", "builtin:medium").remarks == ()


def test_rows_of_a_held_student_are_those_of_a_student_without_the_tokens(newer, tmp_path):
    teachers = ["model:builtin:medium", "ctx:answer"]
    held = gradalign.score("builtin:arithmetic", student=newer, teachers=teachers, out=tmp_path / "held", **SETTINGS)
    plain = gradalign.score(
        "builtin:arithmetic", student="builtin:small", teachers=teachers, out=tmp_path / "plain", **SETTINGS
    )
    np.testing.assert_allclose(held.scores["dot"], plain.scores["dot"], atol=1e-6)
    assert any("tokens in common" in notice for notice in held.description["provenance"]["notices"])


def test_narrower_logits_over_the_same_tokenizer(tmp_path, small):
    with pytest.raises(GradalignError, match=r"share the first 300 tokens alone, and .* cannot end a turn without '<\|im_"):
        cast_of("builtin:small", narrowed(tmp_path / "narrow", 300))


def test_narrower_logits_that_hold_what_ends_a_turn(tmp_path, newer):
    span = 357
    model = AutoModelForCausalLM.from_pretrained(newer)
    model.resize_token_embeddings(span, mean_resizing=False)
    folder = Path(shutil.copytree(newer, tmp_path / "narrow"))
    model.save_pretrained(folder)
    cast = cast_of(newer, str(folder))
    assert cast.student.model.language_model.vocabulary_size == span
    assert f"2 of {newer} (first '<think>', id {span})" in cast.remarks[0]


THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}<think>\n</think>\n{% endif %}{{ m.content }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\nPREFIX{% endif %}"
)


@pytest.mark.parametrize(
    ("prefix", "fits"),
    [("<think>\n</think>\n", True), ("", False), ("<think>\n", False)],
    ids=["closed", "to open", "to close"],
)
def test_a_student_that_has_to_think_needs_the_tokens_for_it(tmp_path, small, prefix, fits):
    template = THINKING.replace("PREFIX", prefix)
    student = load_model(grown(tmp_path / "thinking", ["<think>", "</think>"], template=template), CPU)
    if fits:
        assert shared_span(student, small) == small.language_model.vocabulary_size
        return
    with pytest.raises(GradalignError, match=r"cannot end a turn without '</?think>'"):
        shared_span(student, small)


def test_a_stop_token_of_either_that_would_be_left_out_is_refused(newer, small):
    file = Path(newer) / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token_id": [355, 356]}))
    loaded = load_model(newer, CPU)
    for student, teacher in ((loaded, small), (small, loaded)):
        with pytest.raises(GradalignError, match=r"without '<\|tool\|>' \(id 356\); choose a teacher that has it"):
            shared_span(student, teacher)


def test_members_are_never_widened(small, newer):
    wide = load_model(newer, CPU)
    assert settle_span([wide], 1000) == []
    assert wide.language_model.vocabulary_size == 359
