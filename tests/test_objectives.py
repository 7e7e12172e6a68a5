"""Every closed form against automatic differentiation of its loss, in float64 at 1e-10, and the identities between them."""

import sys
from importlib.metadata import EntryPoint

import pytest
import torch
from torch import Tensor

from gradalign.objectives import NodeSignals, ideal_direction, parse_objective
from gradalign.plugins import fingerprints
from gradalign.types import GradalignError

N, V = 7, 11


@pytest.fixture(params=range(3))
def logits(request) -> tuple[Tensor, Tensor, Tensor]:
    """Student logits, teacher log-probabilities and success, random."""
    generator = torch.Generator().manual_seed(request.param)
    z = 2 * torch.randn(N, V, generator=generator, dtype=torch.float64)
    tau = torch.log_softmax(2 * torch.randn(N, V, generator=generator, dtype=torch.float64), -1)
    return z, tau, torch.rand(N, V, generator=generator, dtype=torch.float64)


def descent(loss_of_logits, z: Tensor) -> Tensor:
    z = z.clone().requires_grad_()
    loss_of_logits(torch.log_softmax(z, -1)).sum().backward()
    assert z.grad is not None
    return -z.grad


def kl(p: Tensor, q: Tensor) -> Tensor:
    return (p.exp() * (p - q)).sum(-1)


def jsd(beta: float):
    def loss(pi: Tensor, tau: Tensor) -> Tensor:
        mixture = (beta * tau.exp() + (1 - beta) * pi.exp()).log()
        return beta * kl(tau, mixture) + (1 - beta) * kl(pi, mixture)

    return loss


LOSSES = {
    "reverse_kl": kl,
    "gkd": kl,
    "forward_kl": lambda pi, tau: kl(tau, pi),
    "jsd:0.5": jsd(0.5),
    "jsd:0.1": jsd(0.1),
    "jsd:0.9": jsd(0.9),
}


@pytest.mark.parametrize("spec", LOSSES)
def test_direction_is_descent_of_the_loss(spec, logits):
    z, tau, _ = logits
    found = parse_objective(spec).direction(NodeSignals(torch.log_softmax(z, -1), tau))
    torch.testing.assert_close(found, descent(lambda pi: LOSSES[spec](pi, tau), z), atol=1e-10, rtol=0)


def test_forward_kl_override_equals_its_signal(logits):
    z, tau, _ = logits
    objective = parse_objective("forward_kl")
    signals = NodeSignals(torch.log_softmax(z, -1), tau)
    pi, f = signals.student_logprobs.exp(), objective.signal(signals)
    torch.testing.assert_close(objective.direction(signals), pi * (f - (pi * f).sum(-1, keepdim=True)), atol=1e-10, rtol=0)


def sampled(z: Tensor, tau: Tensor, token: int) -> Tensor:
    frequency = torch.zeros(N, V, dtype=torch.float64)
    frequency[:, token] = 1
    return parse_objective("sampled_kl").direction(NodeSignals(torch.log_softmax(z, -1), tau, frequency))


def test_sampled_kl_is_the_score_function_estimate(logits):
    z, tau, _ = logits
    pi = torch.log_softmax(z, -1)
    for token in range(V):
        ratio = (tau - pi)[:, token].detach()
        expected = descent(lambda lp, token=token, ratio=ratio: -ratio * lp[:, token], z)
        torch.testing.assert_close(sampled(z, tau, token), expected, atol=1e-10, rtol=0)


def test_sampled_kl_has_the_gradient_of_the_half_squared_log_ratio(logits):
    z, tau, _ = logits
    for token in range(V):
        expected = descent(lambda pi, token=token: 0.5 * (pi - tau)[:, token] ** 2, z)
        torch.testing.assert_close(sampled(z, tau, token), expected, atol=1e-10, rtol=0)


def test_mean_of_sampled_kl_is_reverse_kl_and_of_k3_is_forward_kl(logits):
    z, tau, _ = logits
    pi = torch.log_softmax(z, -1)
    mean = sum(pi.exp()[:, [token]] * sampled(z, tau, token) for token in range(V))
    torch.testing.assert_close(mean, parse_objective("reverse_kl").direction(NodeSignals(pi, tau)), atol=1e-10, rtol=0)
    k3 = sum(
        pi.exp()[:, [token]] * descent(lambda lp, t=token: (tau - lp)[:, t].exp() - 1 - (tau - lp)[:, t], z)
        for token in range(V)
    )
    torch.testing.assert_close(k3, parse_objective("forward_kl").direction(NodeSignals(pi, tau)), atol=1e-10, rtol=0)


def test_sampled_kl_at_frequencies_is_the_mean_over_rollouts(logits):
    z, tau, _ = logits
    frequency = torch.zeros(N, V, dtype=torch.float64)
    frequency[:, 2], frequency[:, 5] = 0.25, 0.75
    found = parse_objective("sampled_kl").direction(NodeSignals(torch.log_softmax(z, -1), tau, frequency))
    torch.testing.assert_close(found, 0.25 * sampled(z, tau, 2) + 0.75 * sampled(z, tau, 5), atol=1e-10, rtol=0)


def test_ideal_direction_is_ascent_of_success(logits):
    z, _, success = logits
    found = ideal_direction(torch.log_softmax(z, -1), success)
    torch.testing.assert_close(found, descent(lambda pi: -(pi.exp() * success).sum(-1), z), atol=1e-10, rtol=0)


def test_ideal_direction_on_a_support_imputes_the_mean(logits):
    z, _, success = logits
    pi = torch.log_softmax(z, -1)
    support = torch.arange(V).expand(N, V) < 4
    tried = torch.where(support, pi.exp(), 0.0)
    mean = (tried * success).sum(-1, keepdim=True) / tried.sum(-1, keepdim=True)
    expected = ideal_direction(pi, torch.where(support, success, mean))
    torch.testing.assert_close(ideal_direction(pi, success, support), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("spec", [*LOSSES, "sampled_kl"])
def test_equal_teacher_gives_no_direction_and_directions_sum_to_zero(spec, logits):
    z, tau, _ = logits
    pi = torch.log_softmax(z, -1)
    frequency = pi.exp()
    objective = parse_objective(spec)
    assert objective.direction(NodeSignals(pi, pi, frequency)).abs().max() < 1e-12
    assert objective.direction(NodeSignals(pi, tau, frequency)).sum(-1).abs().max() < 1e-12


def test_equal_success_gives_no_ideal_direction_and_it_sums_to_zero(logits):
    z, _, success = logits
    pi = torch.log_softmax(z, -1)
    assert ideal_direction(pi, torch.full((N, V), 0.3, dtype=torch.float64)).abs().max() < 1e-12
    assert ideal_direction(pi, success).sum(-1).abs().max() < 1e-12


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return torch.nn.functional.cosine_similarity(a, b, dim=-1)


def test_teacher_tilted_by_success_aligns_exactly(logits):
    z, _, success = logits
    pi = torch.log_softmax(z, -1)
    g = ideal_direction(pi, success)
    for epsilon in (2.0, 0.1, -0.5):
        signals = NodeSignals(pi, torch.log_softmax(pi + epsilon * success, -1))
        sign = torch.full((N,), 1.0 if epsilon > 0 else -1.0, dtype=torch.float64)
        torch.testing.assert_close(cosine(parse_objective("reverse_kl").direction(signals), g), sign, atol=1e-10, rtol=0)
    tiny = NodeSignals(pi, torch.log_softmax(pi + 1e-6 * success, -1))
    torch.testing.assert_close(
        cosine(parse_objective("forward_kl").direction(tiny), g), torch.ones(N).double(), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("spec", LOSSES)
def test_sign_teacher_on_the_only_successful_token_is_positive(spec):
    pi = torch.log_softmax(torch.zeros(1, 5, dtype=torch.float64), -1)
    success = torch.tensor([[0.0, 0.0, 1.0, 0.0, 0.0]], dtype=torch.float64)
    tau = torch.log_softmax(8 * success, -1)
    d, g = parse_objective(spec).direction(NodeSignals(pi, tau)), ideal_direction(pi, success)
    assert d[0, 2] > 0
    assert (d * g).sum() > 0


def test_off_support_tokens_receive_nothing():
    pi = torch.tensor([[0.5, 0.5, 0.0]], dtype=torch.float64).log()
    tau = torch.tensor([[0.9, 0.1, 0.0]], dtype=torch.float64).log()
    for spec in ("reverse_kl", "forward_kl", "jsd:0.5", "sampled_kl"):
        d = parse_objective(spec).direction(NodeSignals(pi, tau, pi.exp()))
        assert torch.isfinite(d).all()
        assert d[0, 2] == 0


@pytest.mark.parametrize(("spec", "first", "second", "eta"), [
    ("reverse_kl@forward_kl*0.5", "forward_kl", "reverse_kl", 0.5), ("jsd:0.3@gkd", "reverse_kl", "jsd:0.3", 1.0),
])  # fmt: skip
def test_a_second_stage_stands_at_the_policy_after_the_first_ones_step(spec, first, second, eta, logits):
    """Its direction is descent of the second loss at the moved logits; its lift gives <g', d> from success under the old policy."""
    z, tau, success = logits
    pi = torch.log_softmax(z, -1)
    moved = z + eta * parse_objective(first).direction(NodeSignals(pi, tau))
    objective = parse_objective(spec)
    expected = descent(lambda lp: {**LOSSES, "jsd:0.3": jsd(0.3)}[second](lp, tau), moved)
    torch.testing.assert_close(objective.direction(NodeSignals(pi, tau)), expected, atol=1e-10, rtol=0)
    g = ideal_direction(torch.log_softmax(moved, -1), success)
    found = (pi.exp() * objective.lift(NodeSignals(pi, tau)) * success).sum(-1)
    torch.testing.assert_close(found, (g * expected).sum(-1), atol=1e-10, rtol=0)


@pytest.mark.parametrize(
    "spec",
    [
        "nonsense",
        "reverse_kl@dr_grpo",
        "reverse_kl@forward_kl*0",
        "minillm:1@forward_kl",
        "minillm:2",
        "jsd:0",
        "jsd:1",
        "jsd:x",
        "jsd:nan",
        "reverse_kl:2",
        "",
    ],
)
def test_unknown_objectives_are_refused_in_one_line(spec):
    with pytest.raises(GradalignError) as caught:
        parse_objective(spec)
    assert "\n" not in str(caught.value)


MINE = """
import torch

def softened(signals):
    return torch.log_softmax(signals.teacher_logprobs / 2, dim=-1) - signals.student_logprobs

def flat(signals):
    return signals.student_logprobs.sum(-1)

def broken(signals):
    return signals.student_logprobs / 0

number = 3
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    (tmp_path / "my_signals.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    yield tmp_path / "my_signals.py"
    sys.modules.pop("my_signals", None)


def test_a_function_of_ones_own_is_an_objective(mine, logits):
    z, tau, _ = logits
    pi, soft = torch.log_softmax(z, -1), torch.log_softmax(tau / 2, -1)
    found = parse_objective("my_signals:softened").direction(NodeSignals(pi, tau))
    torch.testing.assert_close(found, parse_objective("reverse_kl").direction(NodeSignals(pi, soft)), atol=1e-12, rtol=0)
    function = parse_objective("my_signals:softened").function
    before = fingerprints([function])
    assert [*before] == ["my_signals:softened"]
    assert parse_objective("jsd:0.5").function is None
    mine.write_text(MINE + "# edited\n")
    assert fingerprints([function]) != before


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("my_signals:absent", "has no function absent"),
        ("my_signals:number", "has no function number"),
        ("no_such_module:f", "no_such_module"),
        ("my_signals:flat", "not a tensor of shape"),
        ("my_signals:broken", "not finite"),
    ],
)
def test_a_function_that_is_no_objective_is_named(mine, logits, spec, says):
    z, tau, _ = logits
    with pytest.raises(GradalignError, match=says):
        parse_objective(spec).direction(NodeSignals(torch.log_softmax(z, -1), tau))


def test_an_installed_package_offers_objectives(monkeypatch, logits):
    z, tau, _ = logits
    entry = EntryPoint("theirs", "gradalign.objectives.losses:_log_ratio", "gradalign.objectives")
    monkeypatch.setattr("gradalign.plugins.entry_points", lambda group, name: [entry] if name == entry.name else [])
    signals = NodeSignals(torch.log_softmax(z, -1), tau)
    torch.testing.assert_close(parse_objective("theirs").direction(signals), parse_objective("reverse_kl").direction(signals))
