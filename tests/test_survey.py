"""The streamed pass over the vocabulary against whole arrays computed the obvious way, on the built-in student."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from gradalign.contexts import Material, render_context, render_question
from gradalign.engines import HFEngine
from gradalign.models import CausalLanguageModel
from gradalign.objectives import NodeSignals, parse_objective
from gradalign.pipeline import native
from gradalign.pipeline import survey as module
from gradalign.pipeline.survey import SurveyRequest, survey_nodes
from gradalign.pipeline.vocabulary import DIVERGENCES, Stepping, Taken, chunk_numbers
from gradalign.questions import load_questions
from gradalign.sketch import OuterSketch
from gradalign.tree import build_tree
from gradalign.types import CompletionRequest, GradalignError

OBJECTIVES = [parse_objective(spec) for spec in ("reverse_kl", "forward_kl", "jsd:0.3", "sampled_kl")]


@pytest.fixture(scope="module")
def request_(small) -> SurveyRequest:
    question = load_questions("builtin:arithmetic", 1)[0]
    prompt = small.codec.prompt(render_question(question))
    engine = HFEngine(small.language_model, small.codec.stop_ids)
    rollouts = sorted(engine.complete([CompletionRequest(prompt, tuple(range(10)), 30)]), key=lambda c: c.replicate)
    contexts = {
        "reference": Material(solution=question.solution),
        "answer": Material(answer=question.answer),
    }
    teachers = {
        name: (small.language_model, small.codec.prompt(render_context(name, question, material).user))
        for name, material in contexts.items()
    }
    sequences = [rollout.tokens for rollout in rollouts]
    return SurveyRequest(
        build_tree(sequences), sequences, np.linspace(-1, 1, len(sequences)), (small.language_model, prompt), teachers
    )


def whole(model, prompt, prefix) -> torch.Tensor:
    """Log-probabilities after prompt and prefix by one plain forward pass."""
    with torch.no_grad():
        logits = model.model(input_ids=torch.tensor([[*prompt, *prefix]])).logits[0, -1, : model.vocabulary_size]
    return torch.log_softmax(logits.double(), -1)


def test_survey_equals_whole_arrays(request_):
    found = survey_nodes(request_, OBJECTIVES, 4)
    tree = request_.tree
    assert found.nodes.tolist() == np.flatnonzero(tree.visits() > 0).tolist()
    for n in range(0, len(found.nodes), 7):
        prefix = tree.prefix(int(found.nodes[n]))
        student = whole(*request_.student, prefix)
        passing = [s for s in request_.sequences if tuple(s[: len(prefix)]) == prefix and len(s) > len(prefix)]
        taken = np.bincount([s[len(prefix)] for s in passing], minlength=len(student))
        frequency = torch.tensor(taken / len(passing))
        kept = found.kept_NK[n]
        real = kept >= 0
        np.testing.assert_allclose(found.student_probs_NK[n][real], student.exp()[kept[real]], atol=1e-5)
        for c, teacher in enumerate(request_.teachers.values()):
            tau = whole(*teacher, prefix)
            np.testing.assert_allclose(np.exp(found.teacher_logprobs_CNK[c, n][real]), tau.exp()[kept[real]], atol=1e-5)
            for o, objective in enumerate(OBJECTIVES):
                d = objective.direction(NodeSignals(student[None], tau[None], frequency[None]))[0]
                np.testing.assert_allclose(found.direction_CONK[c, o, n][real], d[kept[real]], atol=2e-4)
                assert found.direction_norm2_CON[c, o, n] == pytest.approx(float(d @ d), rel=2e-2, abs=1e-5)
            pi, t = student.exp(), tau.exp()
            m = ((pi + t) / 2).log()
            expected = {
                "reverse_kl": pi @ (student - tau),
                "forward_kl": t @ (tau - student),
                "jsd": (pi @ (student - m) + t @ (tau - m)) / 2,
                "l2": (pi - t).norm(),
                "similarity": pi @ t / pi.norm() / t.norm(),
                "teacher_entropy": -(t @ tau),
            }
            for name, value in expected.items():
                assert found.divergence_CND[c, n, DIVERGENCES.index(name)] == pytest.approx(float(value), abs=1e-3, rel=1e-3), (
                    name
                )


def test_kept_tokens_hold_what_was_taken_and_what_is_largest(request_):
    found = survey_nodes(request_, OBJECTIVES, 4)
    tree = request_.tree
    for n, node in enumerate(found.nodes):
        taken = {int(t) for t in tree.token[tree.parent == node]}
        assert taken <= {*found.kept_NK[n].tolist()}
        pi = whole(*request_.student, tree.prefix(int(node))) if n % 11 == 0 else None
        if pi is not None:
            assert int(pi.argmax()) in found.kept_NK[n]


def test_chunks_change_nothing(request_, monkeypatch):
    one = survey_nodes(request_, OBJECTIVES, 4)
    monkeypatch.setattr(module, "_CELLS", 1)
    other = survey_nodes(request_, OBJECTIVES, 4)
    np.testing.assert_allclose(one.direction_norm2_CON, other.direction_norm2_CON, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(one.divergence_CND, other.divergence_CND, rtol=1e-3, atol=1e-5)
    np.testing.assert_array_equal(one.kept_NK[:, :2], other.kept_NK[:, :2])


WIDE = 20_000  # tokens: so many that steps are sketched by rows, and a kernel makes the numbers
PROMPT = (5, 6, 7)


def wide_model(seed: int) -> CausalLanguageModel:
    config = LlamaConfig(
        vocab_size=WIDE,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        tie_word_embeddings=True,
    )
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).eval()
    model.get_output_embeddings().weight.data.mul_(8)
    return CausalLanguageModel(model, f"wide {seed}", WIDE, temperature=0.7)


class Telling:
    """What a server tells of a model: its likeliest tokens."""

    def __init__(self, model: CausalLanguageModel):
        self.model, self.name = model, model.name
        self.vocabulary_size, self.context_window = model.vocabulary_size, model.context_window

    def hidden_states(self, prompt, continuations):
        return self.model.hidden_states(prompt, continuations)

    def logprobs(self, hidden_NH):
        found = self.model.logprobs(hidden_NH)
        return torch.where(found >= found.topk(20).values[:, -1:], found, torch.nan)


def wide_request(*teachers) -> SurveyRequest:
    rng = np.random.default_rng(0)
    sequences = [np.concatenate([[i % 3], rng.integers(0, WIDE, 50)]) for i in range(5)]
    named = {f"teacher {i}": (teacher, PROMPT) for i, teacher in enumerate(teachers)}
    return SurveyRequest(build_tree(sequences), sequences, np.linspace(0, 1, 5), (wide_model(0), PROMPT), named)


@pytest.mark.skipif(native.compiled() is None, reason="no C++ compiler")
@pytest.mark.parametrize("telling", [False, True])
def test_the_kernel_changes_nothing_but_how_long_it_takes(monkeypatch, telling):
    teachers = [wide_model(1), Telling(wide_model(2)) if telling else wide_model(2)]
    specs = ("reverse_kl", "forward_kl", "jsd:0.3", "sampled_kl", "jsd:0.5", "dr_grpo", "pbsd:0.1")
    request, objectives = wide_request(*teachers), [parse_objective(spec) for spec in specs]
    asked = []
    monkeypatch.setattr(module, "chunk_numbers", lambda *given: asked.append(1) or chunk_numbers(*given))
    found = survey_nodes(request, objectives, 4)
    assert not asked
    monkeypatch.setattr(module, "can_fuse", lambda *_: False)
    expected = survey_nodes(request, objectives, 4)
    assert asked
    same = (found.kept_NK == expected.kept_NK).all(1)  # of tokens that are equally strong any may be kept
    assert same.mean() > 0.8
    for name, value in vars(expected).items():
        if isinstance(value, np.ndarray):
            nodes = same if "NK" in name else np.full(len(same), True)
            axes = [i for i, size in enumerate(value.shape) if size == len(same)]
            ours, plain = (array.compress(nodes, axes[0]) if axes else array for array in (vars(found)[name], value))
            close = {"rtol": 1e-3, "atol": 2e-5 * max(1, np.nan_to_num(np.abs(plain)).max())}
            np.testing.assert_allclose(ours, plain, **close, err_msg=name)


def test_scores_of_a_teacher_elsewhere_are_brought_here_first(monkeypatch):
    """The kernel reads memory of the CPU alone."""
    monkeypatch.setattr(module, "can_fuse", lambda *_: True)
    here, there = torch.empty(1, 64), torch.empty(1, 64, device="meta")
    taken = Taken(np.zeros((1, 1), int), np.ones((1, 1)), np.zeros((1, 1)))
    stepping = Stepping(OuterSketch(WIDE, 64), OuterSketch(WIDE, 1), here, torch.ones(1, 1))
    for states, raw in ((here, True), (there, False)):
        source = module._Source([wide_model(0), wide_model(1)], [here, states], taken, OBJECTIVES, 4, stepping, 1, [])
        assert source._raw == raw


@pytest.mark.parametrize("which", [0, 1])
def test_logits_that_are_not_numbers_are_the_models_fault(which):
    models = [wide_model(0), wide_model(1)]
    models[which].model.get_output_embeddings().weight.data[15_000] = torch.nan
    request = wide_request(models[1])
    with pytest.raises(GradalignError, match=f"model 'wide {which}' gave logits that are not numbers"):
        survey_nodes(
            SurveyRequest(request.tree, request.sequences, request.reward_R, (models[0], PROMPT), request.teachers),
            OBJECTIVES,
            4,
        )


def test_without_a_compiler_the_plain_form_does_it(monkeypatch, caplog):
    monkeypatch.setenv("CXX", "no-such-compiler")
    caplog.set_level("INFO")
    native.compiled.cache_clear()
    try:
        assert native.compiled() is None
        assert "no-such-compiler" in caplog.text
        found = survey_nodes(wide_request(wide_model(1)), OBJECTIVES, 4)
    finally:
        native.compiled.cache_clear()
    assert found.divergence_CND.shape == (1, len(found.nodes), len(DIVERGENCES))
