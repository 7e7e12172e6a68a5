"""The GPU's kernels against the plain form they stand for: on a GPU if there is one, else by Triton's interpreter."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from gradalign.objectives import parse_objective
from gradalign.pipeline import fused
from gradalign.pipeline.vocabulary import Stepping, Taken, chunk_numbers
from gradalign.sketch import OuterSketch

pytest.importorskip("triton")
VOCABULARY = 20_000
FACTORS = (1.0, 1 / 0.7, 1.0)
TAKEN = Taken(
    np.array([[5, 6, -1], [7, -1, -1], [VOCABULARY - 1, 3, 4]]),
    np.array([[0.5, 0.5, 0], [1, 0, 0], [0.2, 0.3, 0.5]]),
    np.zeros((3, 3)),
)


@pytest.fixture
def device(monkeypatch) -> str:
    """Kernels are read anew: the hook that checks types in tests wraps functions, and Triton wants them bare."""
    spec = importlib.util.spec_from_file_location("bare_kernels", Path(fused.__file__).with_name("kernels.py"))
    kernels = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(kernels)
    for name in ("numbers_kernel", "top_kernel"):
        monkeypatch.setattr(fused, name, getattr(kernels, name))
    return "cuda" if torch.cuda.is_available() else "cpu"


def scores(device: str) -> list[torch.Tensor]:
    """Of a student and two teachers; some tokens are nearly sure, and one teacher says what the student says."""
    rng = torch.Generator().manual_seed(0)
    found = [torch.randn(3, VOCABULARY, generator=rng) * 2 for _ in range(2)]
    found[0][1, 40] += 12
    found[1][2, 17] += 14
    return [score.to(device) for score in (*found, found[0])]


@pytest.mark.slow
@pytest.mark.parametrize(
    "specs", [("reverse_kl", "forward_kl"), ("jsd:0.3", "sampled_kl", "minillm:1", "forward_kl"), ("jsd:0.9",)]
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


@pytest.mark.slow
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


@pytest.mark.slow
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


def test_what_kernels_do_not_know_is_left_to_the_plain_form():
    wide, narrow = (
        Stepping(OuterSketch(v, 64), OuterSketch(v, 1), torch.ones(1, 64), torch.ones(1, 1)) for v in (VOCABULARY, 90)
    )
    gpu, plain = torch.device("cuda"), [parse_objective("reverse_kl")]
    assert fused.can_fuse(plain, wide, gpu)
    assert not fused.can_fuse(plain, narrow, gpu)
    assert not fused.can_fuse(plain, wide, torch.device("cpu"))
    for spec in ("reverse_kl@forward_kl*1", "dr_grpo", "pbsd:0.1"):
        assert not fused.can_fuse([*plain, parse_objective(spec)], wide, gpu)
    assert not fused.can_fuse([parse_objective("jsd:0.1"), parse_objective("jsd:0.5")], wide, gpu)
