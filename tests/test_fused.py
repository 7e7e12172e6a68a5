"""The kernels against the plain form they stand for: C++ on this CPU, and Triton's, on a GPU if there is one, else by its interpreter."""

import importlib.util
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from gradalign.objectives import Objective, parse_objective
from gradalign.pipeline import fused, kernel_look, native
from gradalign.pipeline.vocabulary import Stepping, Taken, chunk_numbers
from gradalign.sketch import OuterSketch

VOCABULARY = 20_000
FACTORS = (1.0, 1 / 0.7, 1.0)
TAKEN = Taken(
    np.array([[5, 6, -1], [7, -1, -1], [VOCABULARY - 1, 3, 4]]),
    np.array([[0.5, 0.5, 0], [1, 0, 0], [0.2, 0.3, 0.5]]),
    np.array([[0.1, -0.2, 0], [0.3, 0, 0], [0.1, 0.2, -0.3]]),
)


@pytest.fixture(
    params=[
        pytest.param("cpu", marks=pytest.mark.skipif(native.compiled() is None, reason="no C++ compiler")),
        pytest.param("triton", marks=pytest.mark.slow),
    ]
)
def device(request, monkeypatch) -> str:
    """Triton's kernels are read anew: the hook that checks types in tests wraps functions, and Triton wants them bare."""
    if request.param == "cpu":
        return "cpu"
    pytest.importorskip("triton")
    spec = importlib.util.spec_from_file_location("bare_kernels", Path(kernel_look.__file__).with_name("kernels.py"))
    kernels = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(kernels)
    for name in ("numbers_kernel", "top_kernel", "DEEP", "WIDE"):
        monkeypatch.setattr(kernel_look, name, getattr(kernels, name), raising=False)
    monkeypatch.setattr(kernel_look, "_natively", lambda _: False)
    return "cuda" if torch.cuda.is_available() else "cpu"


def scores(device: str) -> list[torch.Tensor]:
    """Of a student and two teachers; some tokens are nearly sure, the probability of some is 0 in single precision, and one teacher says
    what the student says."""
    rng = torch.Generator().manual_seed(0)
    found = [torch.randn(3, VOCABULARY, generator=rng) * 2 for _ in range(2)]
    found[0][1, 40] += 12
    found[1][2, 17] += 14
    found[0][:, 50:60] -= 200
    found[1][:, 55:65] -= 200
    return [score.to(device) for score in (*found, found[0])]


@pytest.mark.parametrize(
    "specs",
    [
        ("reverse_kl", "forward_kl"),
        ("jsd:0.3", "sampled_kl", "minillm:1", "forward_kl"),
        ("jsd:0.5", "jsd:0.9"),
        ("success", "dr_grpo", "pbsd:0.1", "pbsd_target:0.2"),
    ],
)
def test_kernels_give_the_numbers_of_the_plain_form(device, specs):
    objectives, raw = [parse_objective(spec) for spec in specs], scores(device)
    logprobs = [torch.log_softmax(score.float() * factor, -1) for score, factor in zip(raw, FACTORS, strict=True)]
    expected, directions = chunk_numbers(logprobs[0], logprobs[1:], TAKEN, objectives, 4)
    sketch = OuterSketch(VOCABULARY, 100)
    found, rows = fused.fused_numbers(raw, FACTORS, TAKEN, objectives, 4, sketch)
    for name, value in expected.items():
        if name not in ("kept_NK", "ratio2_CN"):
            torch.testing.assert_close(found[name].double(), value.double(), rtol=1e-4, atol=2e-5, msg=name)
    torch.testing.assert_close(found["ratio2_CN"], expected["ratio2_CN"], rtol=1e-4, atol=1e-3)
    assert (found["kept_NK"] == expected["kept_NK"]).all()
    for of_teacher, ours in zip(directions, rows, strict=True):
        for direction, row in zip(of_teacher, ours, strict=True):
            torch.testing.assert_close(row, sketch.rows([direction])[0], rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")  # which is what is then seen
@pytest.mark.parametrize("impossible", [False, True])
@pytest.mark.parametrize("which", [0, 1])
def test_a_token_far_above_all_that_come_before_it(device, which, impossible):
    """Sums of exponentials around scores of the first tokens would overflow, most of all where these are impossible."""
    raw, objectives = scores(device), [parse_objective("reverse_kl"), parse_objective("forward_kl")]
    raw[which][0, 15_000] = 150
    if impossible:
        raw[0][2, :2500] = raw[1][2, :2500] = -1e9
    logprobs = [torch.log_softmax(score, -1) for score in raw[:2]]
    expected, _ = chunk_numbers(logprobs[0], logprobs[1:], TAKEN, objectives, 4)
    found, _ = fused.fused_numbers(raw[:2], FACTORS[:1] * 2, TAKEN, objectives, 4, OuterSketch(VOCABULARY, 100))
    torch.testing.assert_close(found["student_lse_N"], raw[0].logsumexp(-1))
    for numbers in (found, expected):
        numbers["divergences"] = numbers["divergence_CND"][
            ..., :7
        ]  # those beyond ask which of many impossible tokens is the best
    for name in ("divergences", "direction_norm2_CON", "student_entropy_N"):
        torch.testing.assert_close(found[name].double(), expected[name].double(), rtol=1e-4, atol=2e-5, msg=name)


def test_a_teacher_that_says_what_the_student_says_moves_nothing(device):
    raw = scores(device)
    found, rows = fused.fused_numbers(
        [raw[0], raw[2]],
        (1.0, 1.0),
        TAKEN,
        [parse_objective("reverse_kl"), parse_objective("forward_kl")],
        4,
        OuterSketch(VOCABULARY, 100),
    )
    assert found["direction_norm2_CON"].abs().max() == 0
    assert max(float(row.abs().max()) for row in rows[0]) == 0
    assert found["divergence_CND"][0, :, :2].abs().max() == 0


def test_what_kernels_do_not_know_is_left_to_the_plain_form(monkeypatch):
    wide, narrow = (
        Stepping(OuterSketch(v, 64), OuterSketch(v, 1), torch.ones(1, 64), torch.ones(1, 1)) for v in (VOCABULARY, 90)
    )
    monkeypatch.setattr(kernel_look, "numbers_kernel", object())
    monkeypatch.setattr(kernel_look, "kernels_run", lambda _: True)
    monkeypatch.setattr(kernel_look, "compiled", object)
    plain = [parse_objective("reverse_kl")]
    for device in (torch.device("cuda"), torch.device("cpu")):
        assert fused.can_fuse(plain, wide, device)
        assert fused.can_fuse([parse_objective("jsd:0.1"), parse_objective("jsd:0.5")], wide, device)
        assert not fused.can_fuse(plain, narrow, device)
        for objective in (
            parse_objective("reverse_kl@forward_kl*1"),
            Objective("mine", lambda s: s.log_ratio, function=lambda s: s.log_ratio),
        ):
            assert not fused.can_fuse([*plain, objective], wide, device)
    assert not fused.can_fuse(plain, wide, torch.device("mps"))
    monkeypatch.setattr(kernel_look, "numbers_kernel", None)
    monkeypatch.setattr(kernel_look, "compiled", lambda: None)
    assert not any(fused.can_fuse(plain, wide, torch.device(device)) for device in ("cpu", "cuda"))


@pytest.mark.skipif(native.compiled() is None, reason="no C++ compiler")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_may_lie_apart_and_be_short_and_threads_change_nothing(dtype):
    """A vocabulary that is no whole number of lanes, within rows that are longer; one teacher's lies token by token."""
    raw = [torch.cat([score, torch.full((3, 77), 900.0)], 1).to(dtype)[:, : VOCABULARY - 3] for score in scores("cpu")]
    raw[1] = raw[1].T.contiguous().T
    taken = Taken(np.array([[5], [7], [3]]), np.ones((3, 1)), np.zeros((3, 1)))
    objectives, sketch = [parse_objective("reverse_kl"), parse_objective("jsd:0.5")], OuterSketch(VOCABULARY - 3, 100)
    logprobs = [torch.log_softmax(score.float() * factor, -1) for score, factor in zip(raw, FACTORS, strict=True)]
    expected, _ = chunk_numbers(logprobs[0], logprobs[1:], taken, objectives, 4)
    found = []
    for threads in (1, 2):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        found.append(fused.fused_numbers(raw, FACTORS, taken, objectives, 4, sketch))
        torch.set_num_threads(before)
    for name, value in found[0][0].items():
        assert torch.equal(value, found[1][0][name])
    for one, other in zip(itertools.chain(*found[0][1]), itertools.chain(*found[1][1]), strict=True):
        assert torch.equal(one, other)
    for name in ("direction_norm2_CON", "lift2_CON", "pull_CON", "student_entropy_N", "divergence_CND"):
        torch.testing.assert_close(found[0][0][name].double(), expected[name].double(), rtol=1e-4, atol=2e-5, msg=name)
