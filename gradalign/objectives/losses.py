"""The losses that are known here: the token signal of each, with its source."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from gradalign.objectives.objective import Objective, Outcome
from gradalign.objectives.signals import NV, NodeSignals
from gradalign.types import GradalignError


@dataclass(frozen=True)
class _ForwardKL(Objective):
    def direction(self, signals: NodeSignals) -> NV:
        """d = tau - pi, the same as from f = tau/pi, without the overflow of the quotient where pi is tiny."""
        return signals.difference


@dataclass(frozen=True)
class _Preference(Objective):
    def known_direction(self, signals: NodeSignals) -> NV:
        """beta / 2 (tau - pi): the direction where every pair is even and the prefix is as likely under teacher and student."""
        assert self.outcome is not None
        return 0.5 * self.outcome.scale * signals.difference


def _log_ratio(signals: NodeSignals) -> NV:
    """log tau - log pi: the signal of KL(pi || tau). GKD (arXiv 2306.13649) with reverse KL on student samples."""
    return signals.log_ratio


def _probability_ratio(signals: NodeSignals) -> NV:
    """tau / pi: the signal of KL(tau || pi)."""
    return _log_ratio(signals).exp()


def _sampled_log_ratio(signals: NodeSignals) -> NV:
    """One-sample reverse KL at the sampled tokens (Thinking Machines, On-policy distillation, 2025).

    For one sampled token k, d = (log tau_k - log pi_k)(e_k - pi); the mean over the rollouts through the node is the
    direction of f_k = (share of rollouts that took k / pi_k)(log tau_k - log pi_k). Its mean over k ~ pi is `reverse_kl`.
    """
    frequency = signals.wanted("sample_frequency", "sampled_kl")
    return torch.where(frequency > 0, frequency / signals.student_probs * _log_ratio(signals), 0.0)


def _expected_reward(signals: NodeSignals) -> NV:
    """S: the signal of expected success itself, whose direction is the ideal one."""
    return signals.wanted("success", "success")


def _nothing(signals: NodeSignals) -> NV:
    return torch.zeros_like(signals.student_logprobs)


def _group_advantage(signals: NodeSignals) -> NV:
    """Dr. GRPO (arXiv 2503.20783): -E[A log pi] with A = R - mean R of the group, without length or deviation normalisation.

    d is the mean over the group's rollouts i through the node of A_i (e_{k_i} - pi), so f_k = (mean of A_i over those that took k) / pi_k.
    Its expectation is the ideal direction, less the share 1 / group that the group's mean takes.
    """
    advantage = signals.wanted("sample_advantage", "dr_grpo")
    return torch.where(advantage != 0, advantage / signals.student_probs, 0.0)


def _minillm(spec: str, parameter: str) -> Objective:
    """MiniLLM (arXiv 2306.08543): KL(pi || tau) of whole sequences on student samples, f = log tau - log pi + F.

    F_k = E[sum over later steps of gamma^(steps ahead) (log tau - log pi)] over the student's continuations after k; with `:normalised`
    each rollout's sum is divided by the number of its later steps (the paper's length normalisation).
    """
    gamma, _, kind = parameter.partition(":")
    value = number(spec, gamma or "1", 0.0, 1.0, "minillm:1 or minillm:0.9:normalised", closed=True)
    if kind not in ("", "normalised"):
        raise GradalignError(f"objective {spec!r} is not understood; write minillm:{value:g} or minillm:{value:g}:normalised")
    name = f"minillm:{value:g}" + (":normalised" if kind else "")
    return Objective(
        name,
        lambda signals: _log_ratio(signals) + signals.wanted("future_return", name),
        known=_log_ratio,
        outcome=Outcome("future_return", gamma=value, normalised=bool(kind)),
    )


def _pbsd_target(spec: str, parameter: str) -> Objective:
    """KL(pi || pi*) to the reward-reweighted teacher (PBSD, arXiv 2605.05040), pi*_k proportional to tau_k exp(S_k / beta).

    f = log tau + S / beta - log pi.
    """
    beta = number(spec, parameter, 0.0, math.inf, "pbsd_target:0.1")
    name = f"pbsd_target:{beta:g}"
    return Objective(
        name,
        lambda signals: _log_ratio(signals) + signals.wanted("success", name) / beta,
        known=_log_ratio,
        outcome=Outcome("success", 1 / beta),
    )


def _pbsd(spec: str, parameter: str) -> Objective:
    """PBSD (arXiv 2605.05040): -log sigma(beta [rho(y+) - rho(y-)]), rho = log pi - log tau, y+ from the teacher, y- from the student.

    With w = sigma(-beta [rho(y+) - rho(y-)]), W-_k = E[w | y- passes (u, k)], W+_k = E[w | y+ passes (u, k)] and r = tau(u) / pi(u), the
    ratio of the two probabilities of the prefix, f_k = beta (r W+_k tau_k / pi_k - W-_k). This form of the sequence loss per node is
    this project's own derivation.
    """
    beta = number(spec, parameter, 0.0, math.inf, "pbsd:0.1")
    name = f"pbsd:{beta:g}"

    def signal(signals: NodeSignals) -> NV:
        ratio = (_log_ratio(signals) + signals.wanted("log_prefix_ratio", name)[:, None]).exp()
        return beta * (ratio * signals.wanted("teacher_pair_weight", name) - signals.wanted("student_pair_weight", name))

    return _Preference(name, signal, outcome=Outcome("pair_weight", beta))


def _jsd(spec: str, parameter: str) -> Objective:
    """Generalised JSD beta KL(tau||m) + (1-beta) KL(pi||m), m = beta tau + (1-beta) pi (GKD, arXiv 2306.13649, eq. 1)."""
    beta = number(spec, parameter or "0.5", 0.0, 1.0, "jsd:0.5")

    def signal(signals: NodeSignals) -> NV:
        mixture = beta * signals.teacher_probs + (1 - beta) * signals.student_probs
        return (1 - beta) * (mixture.log() - signals.student_logprobs)

    return Objective(f"jsd:{beta:g}", signal)


def number(spec: str, text: str, low: float, high: float, example: str, closed: bool = False) -> float:
    """The parameter of an objective, between two bounds; with `closed` they belong to it."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (low < value < high or (closed and value in (low, high))):
        reach = f"between {low:g} and {high:g}" if math.isfinite(high) else f"above {low:g}"
        raise GradalignError(f"objective {spec!r} needs a number {reach} after the colon, as in {example}")
    return value


PLAIN = {
    "reverse_kl": Objective("reverse_kl", _log_ratio),
    "forward_kl": _ForwardKL("forward_kl", _probability_ratio),
    "sampled_kl": Objective("sampled_kl", _sampled_log_ratio, _log_ratio),
    "success": Objective("success", _expected_reward, known=_nothing, outcome=Outcome("success"), teacherless=True),
    "dr_grpo": Objective(
        "dr_grpo", _group_advantage, expected=_nothing, outcome=Outcome("success", sampled=True), teacherless=True
    ),
}
WITH_PARAMETER: dict[str, Callable[[str, str], Objective]] = {
    "jsd": _jsd,
    "minillm": _minillm,
    "pbsd_target": _pbsd_target,
    "pbsd": _pbsd,
}
