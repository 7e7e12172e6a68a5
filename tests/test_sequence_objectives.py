"""Losses of whole sequences on an enumerated model: automatic differentiation against the form per node times visitation, at 1e-10."""

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from gradalign.objectives import NodeSignals, ideal_direction, parse_objective
from gradalign.testbed import TabularModel

V, LENGTH = 3, 3
SEQUENCES = list(itertools.product(range(V), repeat=LENGTH))


@pytest.fixture(scope="module", params=range(2))
def models(request) -> tuple[TabularModel, TabularModel]:
    student = TabularModel.random(V, LENGTH, request.param)
    other = TabularModel.random(V, LENGTH, 100 + request.param)
    return student, TabularModel({p: other.logits_NV[r].numpy() for p, r in other.prefixes.items()}, student.rewards, LENGTH)


def sequence_logprobs(model: TabularModel, logits: Tensor) -> Tensor:
    """log probability of every sequence, in the order of SEQUENCES."""
    logprobs = torch.log_softmax(logits, -1)
    return torch.stack([sum(logprobs[model.prefixes[s[:t]], s[t]] for t in range(LENGTH)) for s in SEQUENCES])


def descent(model: TabularModel, loss) -> Tensor:
    """Minus the gradient of a loss of sequence log-probabilities, for every node: (N, V)."""
    logits = model.logits_NV.clone().requires_grad_()
    loss(sequence_logprobs(model, logits)).backward()
    assert logits.grad is not None
    return -logits.grad


def visited(model: TabularModel) -> Tensor:
    return torch.tensor([model.visitation(prefix) for prefix in model.prefixes], dtype=torch.float64)[:, None]


def node_logprobs(model: TabularModel) -> Tensor:
    return torch.log_softmax(model.logits_NV, -1)


def conditional(model: TabularModel, per_sequence: Tensor) -> Tensor:
    """E[x | a rollout of `model` passes (u, k)] for every node and token: (N, V)."""
    weight = sequence_logprobs(model, model.logits_NV).exp()
    found = torch.zeros(len(model.prefixes), V, dtype=torch.float64)
    for prefix, row in model.prefixes.items():
        for k in range(V):
            through = torch.tensor([s[: len(prefix) + 1] == (*prefix, k) for s in SEQUENCES])
            found[row, k] = (weight * per_sequence)[through].sum() / weight[through].sum()
    return found


def future_returns(student: TabularModel, teacher: TabularModel, gamma: float, normalised: bool = False) -> Tensor:
    """F of every node and token, by enumeration of what follows."""
    ratio = node_logprobs(teacher) - node_logprobs(student)
    weight = sequence_logprobs(student, student.logits_NV).exp()
    found = torch.zeros(len(student.prefixes), V, dtype=torch.float64)
    for prefix, row in student.prefixes.items():
        for k in range(V):
            through = [i for i, s in enumerate(SEQUENCES) if s[: len(prefix) + 1] == (*prefix, k)]
            for i in through:
                s = SEQUENCES[i]
                later = range(len(prefix) + 1, LENGTH)
                total = sum(gamma ** (t - len(prefix)) * ratio[student.prefixes[s[:t]], s[t]] for t in later)
                found[row, k] += weight[i] / weight[through].sum() * total / (max(len(later), 1) if normalised else 1)
    return found


def test_minillm_is_descent_of_the_kl_of_sequences(models):
    student, teacher = models
    log_tau = sequence_logprobs(teacher, teacher.logits_NV)
    expected = descent(student, lambda lp: (lp.exp() * (lp - log_tau)).sum())
    signals = NodeSignals(node_logprobs(student), node_logprobs(teacher), future_return=future_returns(student, teacher, 1.0))
    found = visited(student) * parse_objective("minillm:1").direction(signals)
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize(("spec", "gamma", "normalised"), [("minillm:0.7", 0.7, False), ("minillm:1:normalised", 1.0, True)])
def test_discounted_and_normalised_minillm_are_policy_gradients_of_their_returns(models, spec, gamma, normalised):
    """Neither is the gradient of a loss of its own: each weighs log pi of a token by the return from there on, held fixed."""
    student, teacher = models
    ratio = (node_logprobs(teacher) - node_logprobs(student)).detach()
    weight = sequence_logprobs(student, student.logits_NV).exp().detach()
    logits = student.logits_NV.clone().requires_grad_()
    logprobs = torch.log_softmax(logits, -1)
    loss = torch.zeros((), dtype=torch.float64)
    for i, s in enumerate(SEQUENCES):
        steps = [ratio[student.prefixes[s[:t]], s[t]] for t in range(LENGTH)]
        for t in range(LENGTH):
            later = sum(gamma ** (j - t) * steps[j] for j in range(t + 1, LENGTH))
            target = steps[t] + later / (max(LENGTH - t - 1, 1) if normalised else 1)
            loss = loss - weight[i] * target * logprobs[student.prefixes[s[:t]], s[t]]
    loss.backward()
    signals = NodeSignals(
        node_logprobs(student), node_logprobs(teacher), future_return=future_returns(student, teacher, gamma, normalised)
    )
    found = visited(student) * parse_objective(spec).direction(signals)
    torch.testing.assert_close(found, -logits.grad, atol=1e-10, rtol=0)


def test_success_is_ascent_of_expected_reward(models):
    student, _ = models
    rewards = torch.tensor([student.rewards[s] for s in SEQUENCES], dtype=torch.float64)
    expected = descent(student, lambda lp: -(lp.exp() * rewards).sum())
    success = torch.tensor(np.stack([student.success(prefix) for prefix in student.prefixes]))
    pi = node_logprobs(student)
    torch.testing.assert_close(visited(student) * ideal_direction(pi, success), expected, atol=1e-10, rtol=0)
    named = parse_objective("success").direction(NodeSignals(pi, pi, success=success))
    torch.testing.assert_close(visited(student) * named, expected, atol=1e-10, rtol=0)


def test_dr_grpo_in_expectation_is_the_ideal_direction_less_the_share_of_the_groups_mean(models):
    """Every group of two, by enumeration: the sequence loss by autodiff, and A (e - pi) at the nodes of each rollout."""
    student, _ = models
    rewards = torch.tensor([student.rewards[s] for s in SEQUENCES], dtype=torch.float64)
    weight = sequence_logprobs(student, student.logits_NV).exp().detach()
    advantage = (rewards[:, None] - rewards[None, :]) / 2  # of the first of a pair
    by_first = (weight[None, :] * advantage).sum(1)
    expected = descent(student, lambda lp: -(weight * by_first * lp).sum())
    mean_advantage = conditional(student, by_first) * node_logprobs(student).exp()
    pi = node_logprobs(student)
    found = visited(student) * parse_objective("dr_grpo").direction(NodeSignals(pi, pi, sample_advantage=mean_advantage))
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)
    success = torch.tensor(np.stack([student.success(prefix) for prefix in student.prefixes]))
    torch.testing.assert_close(found, 0.5 * visited(student) * ideal_direction(pi, success), atol=1e-10, rtol=0)


@pytest.mark.parametrize("beta", [0.3, 2.0])
def test_pbsd_is_descent_of_its_loss_over_pairs(models, beta):
    student, teacher = models
    log_pi, log_tau = sequence_logprobs(student, student.logits_NV), sequence_logprobs(teacher, teacher.logits_NV)
    pairs = log_tau.exp()[:, None] * log_pi.exp()[None, :]  # y+ from the teacher, y- from the student, both held fixed

    def loss(lp: Tensor) -> Tensor:
        rho = lp - log_tau
        return -(pairs * torch.nn.functional.logsigmoid(beta * (rho[:, None] - rho[None, :]))).sum()

    expected = descent(student, loss)
    rho = log_pi - log_tau
    weight = torch.sigmoid(-beta * (rho[:, None] - rho[None, :]))
    prefix_ratio = torch.tensor(
        [np.log(teacher.visitation(p) / student.visitation(p)) for p in student.prefixes], dtype=torch.float64
    )
    signals = NodeSignals(
        node_logprobs(student),
        node_logprobs(teacher),
        student_pair_weight=conditional(student, (log_tau.exp()[:, None] * weight).sum(0)),
        teacher_pair_weight=conditional(teacher, (log_pi.exp()[None, :] * weight).sum(1)),
        log_prefix_ratio=prefix_ratio,
    )
    found = visited(student) * parse_objective(f"pbsd:{beta}").direction(signals)
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)


def test_pbsd_target_is_descent_of_the_kl_to_the_reweighted_teacher(models):
    student, teacher = models
    success = torch.tensor(np.stack([student.success(prefix) for prefix in student.prefixes]))
    target = torch.log_softmax(node_logprobs(teacher) + success / 0.4, -1)
    logits = student.logits_NV.clone().requires_grad_()
    pi = torch.log_softmax(logits, -1)
    (pi.exp() * (pi - target)).sum().backward()
    found = parse_objective("pbsd_target:0.4").direction(
        NodeSignals(node_logprobs(student), node_logprobs(teacher), success=success)
    )
    torch.testing.assert_close(found, -logits.grad, atol=1e-10, rtol=0)


def test_pbsd_target_of_the_student_itself_is_aligned_with_success(models):
    student, _ = models
    pi = node_logprobs(student)
    success = torch.tensor(np.stack([student.success(prefix) for prefix in student.prefixes]))
    d, g = parse_objective("pbsd_target:0.4").direction(NodeSignals(pi, pi, success=success)), ideal_direction(pi, success)
    cosine = torch.nn.functional.cosine_similarity(d, g, dim=-1)
    torch.testing.assert_close(cosine[g.norm(dim=-1) > 1e-12], torch.ones(int((g.norm(dim=-1) > 1e-12).sum())).double())
