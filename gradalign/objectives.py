"""Objectives as token signals f, and the directions they move the student's logits in. Torch in, torch out; nothing else.

Sign: every direction is the way the logits *move* (descent of a loss, ascent of success), so a positive inner product
with the ideal direction means that the teacher pushes the student toward success.

For every distillation objective here the direction at a node is d_j = -dL/dz_j = pi_j (f_j - sum_k pi_k f_k), with z the
student's logits; an objective is its f.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gradalign.types import GradalignError

NV = Float[Tensor, "N V"]


@dataclass(frozen=True, eq=False)
class NodeSignals:
    """What an objective may look at, for N nodes over V tokens (the whole vocabulary, or a renormalised support).

    `student_logprobs` log pi and `teacher_logprobs` log tau in nats, under the same temperature. `sample_frequency` is the
    share of the rollouts through the node that took each token (rows sum to 1). A token outside a support has log-probability
    -inf on both sides and direction 0.
    """

    student_logprobs: NV
    teacher_logprobs: NV
    sample_frequency: NV | None = None


Signal = Callable[[NodeSignals], NV]


@dataclass(frozen=True)
class Objective:
    """A distillation objective: its name as the user writes it, and its token signal f (in nats).

    Where f depends on which tokens were sampled, `expected` is the signal of its mean over them; sums linear in success use it,
    since what was sampled at a node and how it ended belong together.
    """

    name: str
    signal: Signal
    expected: Signal | None = None

    def direction(self, signals: NodeSignals) -> NV:
        """d_j = pi_j (f_j - sum_k pi_k f_k), shape (N, V), the descent direction of the loss in the student's logits."""
        return centred(signals.student_logprobs.exp(), self.signal(signals))

    def expected_direction(self, signals: NodeSignals) -> NV:
        """The mean of `direction` over the sampled tokens, shape (N, V); the direction itself where it does not depend on them."""
        return (
            self.direction(signals)
            if self.expected is None
            else centred(signals.student_logprobs.exp(), self.expected(signals))
        )


@dataclass(frozen=True)
class _ForwardKL(Objective):
    def direction(self, signals: NodeSignals) -> NV:
        """d = tau - pi, the same as from f = tau/pi, without the overflow of the quotient where pi is tiny."""
        return signals.teacher_logprobs.exp() - signals.student_logprobs.exp()


def ideal_direction(student_logprobs: NV, success: NV, support: Bool[Tensor, "N V"] | None = None) -> NV:
    """Ascent direction of J = sum_k pi_k S_k in the logits: g_j = pi_j (S_j - mean S) (policy gradient of a softmax).

    `success` (N, V) in [0, 1]. With a `support`, untried tokens take the pi-weighted mean of the tried ones, so g is
    pi_j (S_j - S_K) on the support and 0 elsewhere, with pi the distribution over the whole vocabulary.
    """
    probs = student_logprobs.exp()
    if support is None:
        return centred(probs, success)
    tried = torch.where(support, probs, torch.zeros_like(probs))
    known = torch.where(support, success, torch.zeros_like(success))
    mean = (tried * known).sum(-1, keepdim=True) / tried.sum(-1, keepdim=True).clamp_min(torch.finfo(probs.dtype).tiny)
    return tried * (known - mean)


def centred(probs: NV, signal: NV) -> NV:
    """pi_j (f_j - sum_k pi_k f_k); tokens of probability 0 contribute and receive nothing."""
    finite = torch.where(probs > 0, signal, torch.zeros_like(signal))
    return probs * (finite - (probs * finite).sum(-1, keepdim=True))


def parse_objective(spec: str) -> Objective:
    """The objective that `spec` names: `reverse_kl` (alias `gkd`), `forward_kl`, `jsd:BETA`, `sampled_kl`."""
    name, _, parameter = spec.partition(":")
    name = {"gkd": "reverse_kl"}.get(name, name)
    if name == "jsd":
        return _jsd(_unit_parameter(spec, parameter or "0.5"))
    if name not in _PLAIN or parameter:
        known = ", ".join([*_PLAIN, "gkd", "jsd:BETA"])
        raise GradalignError(f"unknown objective {spec!r}; choose from {known}")
    return _PLAIN[name]


def _log_ratio(signals: NodeSignals) -> NV:
    """log tau - log pi: the signal of KL(pi || tau). GKD (arXiv 2306.13649) with reverse KL on student samples."""
    return signals.teacher_logprobs - signals.student_logprobs


def _probability_ratio(signals: NodeSignals) -> NV:
    """tau / pi: the signal of KL(tau || pi)."""
    return _log_ratio(signals).exp()


def _sampled_log_ratio(signals: NodeSignals) -> NV:
    """One-sample reverse KL at the sampled tokens (Thinking Machines, On-policy distillation, 2025).

    For one sampled token k, d = (log tau_k - log pi_k)(e_k - pi); the mean over the rollouts through the node is the
    direction of f_k = (share of rollouts that took k / pi_k)(log tau_k - log pi_k). Its mean over k ~ pi is `reverse_kl`.
    """
    if signals.sample_frequency is None:
        raise GradalignError("objective 'sampled_kl' needs the sampled tokens of a node")
    weight = signals.sample_frequency / signals.student_logprobs.exp()
    return torch.where(signals.sample_frequency > 0, weight * _log_ratio(signals), 0.0)


def _jsd(beta: float) -> Objective:
    """Generalised JSD beta KL(tau||m) + (1-beta) KL(pi||m), m = beta tau + (1-beta) pi (GKD, arXiv 2306.13649, eq. 1)."""
    log_beta, log_rest = math.log(beta), math.log1p(-beta)

    def signal(signals: NodeSignals) -> NV:
        pi, tau = signals.student_logprobs, signals.teacher_logprobs
        mixture = torch.logaddexp(tau + log_beta, pi + log_rest)
        return (1 - beta) * (mixture - pi)

    return Objective(f"jsd:{beta:g}", signal)


def _unit_parameter(spec: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 < value < 1:
        raise GradalignError(f"objective {spec!r} needs a number between 0 and 1 after the colon, as in jsd:0.5")
    return value


_PLAIN = {
    "reverse_kl": Objective("reverse_kl", _log_ratio),
    "forward_kl": _ForwardKL("forward_kl", _probability_ratio),
    "sampled_kl": Objective("sampled_kl", _sampled_log_ratio, _log_ratio),
}
