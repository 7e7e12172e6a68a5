"""Objectives as token signals f, and the directions they move the student's logits in. Torch in, torch out.

Sign: every direction is the way the logits *move* (descent of a loss, ascent of success), so a positive inner product
with the ideal direction means that the teacher pushes the student toward success.

For every objective here the direction at a node is d_j = -dL/dz_j = pi_j (f_j - sum_k pi_k f_k), with z the student's logits; an
objective is its f. Losses of whole sequences have one too: per unit of student visitation, with what happens after the node taken in as
an expectation over rollouts (`NodeSignals`).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gradalign.plugins import imported, registered
from gradalign.types import GradalignError

NV = Float[Tensor, "N V"]


@dataclass(frozen=True, eq=False)
class NodeSignals:
    """What an objective may look at, for N nodes over V tokens (the whole vocabulary, or a renormalised support).

    `student_logprobs` log pi and `teacher_logprobs` log tau in nats, under the same temperature. `sample_frequency` is the
    share of the rollouts through the node that took each token (rows sum to 1). A token outside a support has log-probability
    -inf on both sides and direction 0.

    What an objective may want to know of the rollouts from the node on, for each token: `success`, the expected reward; `future_return`,
    F of `minillm`; `sample_advantage`, the mean over the group's rollouts through the node of advantage x (took the token);
    `student_pair_weight` and `teacher_pair_weight`, W- and W+ of `pbsd`, with `log_prefix_ratio` (N,) = log tau(prefix) - log pi(prefix).
    """

    student_logprobs: NV
    teacher_logprobs: NV
    sample_frequency: NV | None = None
    success: NV | None = None
    future_return: NV | None = None
    sample_advantage: NV | None = None
    student_pair_weight: NV | None = None
    teacher_pair_weight: NV | None = None
    log_prefix_ratio: Float[Tensor, " N"] | None = None

    @cached_property
    def student_probs(self) -> NV:
        """pi."""
        return self.student_logprobs.exp()

    @cached_property
    def teacher_probs(self) -> NV:
        """tau."""
        return self.teacher_logprobs.exp()

    @cached_property
    def log_ratio(self) -> NV:
        """log tau - log pi."""
        return self.teacher_logprobs - self.student_logprobs

    @cached_property
    def difference(self) -> NV:
        """tau - pi."""
        return self.teacher_probs - self.student_probs

    @cached_property
    def _directions(self) -> dict["Signal", NV]:
        return {}

    def direction_of(self, signal: "Signal") -> NV:
        """d_j = pi_j (f_j - sum_k pi_k f_k): made once, however many objectives have this signal."""
        if signal not in self._directions:
            self._directions[signal] = centred(self.student_probs, signal(self))
        return self._directions[signal]

    def wanted(self, name: str, objective: str) -> Tensor:
        """The signal of that name, or an error that says who wants it."""
        value = getattr(self, name)
        if value is None:
            raise GradalignError(f"objective {objective!r} needs the signal {name!r}")
        return value


Signal = Callable[[NodeSignals], NV]


@dataclass(frozen=True)
class Outcome:
    """The part of a signal that only rollouts tell: `scale` times the expected reward or the expected later log-ratios after a token, or
    the weights of pairs of rollouts, `scale` their beta.

    Where it is `sampled`, the direction at a node is that of the group's own rollouts, and only its expectation is told by this.
    """

    kind: Literal["success", "future_return", "pair_weight"]
    scale: float = 1.0
    sampled: bool = False
    gamma: float = 1.0
    normalised: bool = False


@dataclass(frozen=True)
class Objective:
    """A distillation objective: its name as the user writes it, and its token signal f (in nats).

    Where f depends on which tokens were sampled, `expected` is the signal of its mean over them; sums linear in success use it,
    since what was sampled at a node and how it ended belong together. Where a part of f comes from rollouts, `outcome` says which,
    and `known` is the rest. A `teacherless` objective looks at rewards alone. `function` is what a user brought.
    """

    name: str
    signal: Signal
    expected: Signal | None = None
    known: Signal | None = None
    outcome: Outcome | None = None
    teacherless: bool = False
    function: Signal | None = None

    def direction(self, signals: NodeSignals) -> NV:
        """d_j = pi_j (f_j - sum_k pi_k f_k), shape (N, V), the descent direction of the loss in the student's logits."""
        return signals.direction_of(self.signal)

    def known_direction(self, signals: NodeSignals) -> NV:
        """The part of `direction` that the two models tell, shape (N, V): all of it unless there is an `outcome`."""
        return self.direction(signals) if self.known is None else signals.direction_of(self.known)

    def expected_direction(self, signals: NodeSignals) -> NV:
        """The mean of `direction` over the sampled tokens, shape (N, V); the direction itself where it does not depend on them."""
        return self.known_direction(signals) if self.expected is None else signals.direction_of(self.expected)


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


@dataclass(frozen=True)
class After(Objective):
    """An objective at the policy that a step of another one would give: pi' = softmax(log pi + eta d_first), at every node.

    Written `SECOND@FIRST*ETA`. Directions are those of the second objective in the logits of pi'. Success after a token, and how
    often nodes are visited, are those of pi: the step is small.
    """

    first: Objective | None = None
    second: Objective | None = None
    eta: float = 1.0

    def moved(self, signals: NodeSignals) -> NodeSignals:
        """The same signals for the student after the first objective's step."""
        assert self.first is not None
        step = self.eta * self.first.direction(signals)
        return replace(signals, student_logprobs=torch.log_softmax(signals.student_logprobs + step, dim=-1))

    def direction(self, signals: NodeSignals) -> NV:
        assert self.second is not None
        return self.second.direction(self.moved(signals))

    def lift(self, signals: NodeSignals) -> NV:
        """What makes sum_k pi_k lift_k S_k the product <g', d>, with g' the ideal direction at pi': (N, V)."""
        assert self.second is not None
        moved = self.moved(signals)
        probs, d = moved.student_probs, self.second.direction(moved)
        ratio = (moved.student_logprobs - signals.student_logprobs).exp()
        return torch.where(probs > 0, ratio * (d - (probs * d).sum(-1, keepdim=True)), 0.0)


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
    signal = torch.where(probs > 0, signal, 0.0)
    return probs * (signal - torch.linalg.vecdot(probs, signal)[..., None])


def parse_objective(spec: str) -> Objective:
    """The objective that `spec` names: one of `OBJECTIVES`, with its parameter after a colon."""
    if "@" in spec:
        return _after(spec)
    name, _, parameter = spec.partition(":")
    name = {"gkd": "reverse_kl"}.get(name, name)
    if name in _PLAIN and not parameter:
        return _PLAIN[name]
    if name in _WITH_PARAMETER:
        return _WITH_PARAMETER[name](spec, parameter)
    signal = registered("gradalign.objectives", spec) or imported(spec)
    if signal is None:
        known = ", ".join(OBJECTIVES)
        raise GradalignError(
            f"unknown objective {spec!r}; choose from {known}, or give a function of your own as MODULE:FUNCTION"
        )
    return Objective(spec, _checked(spec, signal), function=signal)


def brought(spec: str) -> bool:
    """Is the objective a function of the user's own? Asked without importing it."""
    return "@" not in spec and {"gkd": "reverse_kl"}.get(name := spec.partition(":")[0], name) not in {
        *_PLAIN,
        *_WITH_PARAMETER,
    }


def _checked(spec: str, signal: Signal) -> Signal:
    """The signal of a user's function, or an error that names it where it is not one number for each node and token."""

    def checked(signals: NodeSignals) -> NV:
        found, wanted = signal(signals), signals.student_logprobs.shape
        if not isinstance(found, Tensor) or found.shape != wanted:
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise GradalignError(f"objective {spec!r} gave {shape}, not a tensor of shape {tuple(wanted)} (nodes, vocabulary)")
        if not bool(torch.isfinite(torch.where(signals.student_logprobs > -math.inf, found, 0.0)).all()):
            raise GradalignError(f"objective {spec!r} gave numbers that are not finite")
        return found

    return checked


def _after(spec: str) -> Objective:
    """`SECOND@FIRST*ETA`; both must be told by the two models alone."""
    second, _, rest = spec.partition("@")
    first, _, eta = rest.partition("*")
    parts = parse_objective(first), parse_objective(second)
    if any(part.expected or part.outcome or isinstance(part, After) for part in parts):
        raise GradalignError(f"objective {spec!r}: only objectives that need no rollouts can follow each other, as forward_kl")
    value = _number(spec, eta or "1", 0.0, math.inf, "reverse_kl@forward_kl*1")
    name = f"{parts[1].name}@{parts[0].name}*{value:g}"
    return After(name, parts[1].signal, first=parts[0], second=parts[1], eta=value)


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
    value = _number(spec, gamma or "1", 0.0, 1.0, "minillm:1 or minillm:0.9:normalised", closed=True)
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
    beta = _number(spec, parameter, 0.0, math.inf, "pbsd_target:0.1")
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
    beta = _number(spec, parameter, 0.0, math.inf, "pbsd:0.1")
    name = f"pbsd:{beta:g}"

    def signal(signals: NodeSignals) -> NV:
        ratio = (_log_ratio(signals) + signals.wanted("log_prefix_ratio", name)[:, None]).exp()
        return beta * (ratio * signals.wanted("teacher_pair_weight", name) - signals.wanted("student_pair_weight", name))

    return _Preference(name, signal, outcome=Outcome("pair_weight", beta))


def _jsd(spec: str, parameter: str) -> Objective:
    """Generalised JSD beta KL(tau||m) + (1-beta) KL(pi||m), m = beta tau + (1-beta) pi (GKD, arXiv 2306.13649, eq. 1)."""
    beta = _number(spec, parameter or "0.5", 0.0, 1.0, "jsd:0.5")

    def signal(signals: NodeSignals) -> NV:
        mixture = beta * signals.teacher_probs + (1 - beta) * signals.student_probs
        return (1 - beta) * (mixture.log() - signals.student_logprobs)

    return Objective(f"jsd:{beta:g}", signal)


def _number(spec: str, text: str, low: float, high: float, example: str, closed: bool = False) -> float:
    """The parameter of an objective, between two bounds; with `closed` they belong to it."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (low < value < high or (closed and value in (low, high))):
        reach = f"between {low:g} and {high:g}" if math.isfinite(high) else f"above {low:g}"
        raise GradalignError(f"objective {spec!r} needs a number {reach} after the colon, as in {example}")
    return value


_PLAIN = {
    "reverse_kl": Objective("reverse_kl", _log_ratio),
    "forward_kl": _ForwardKL("forward_kl", _probability_ratio),
    "sampled_kl": Objective("sampled_kl", _sampled_log_ratio, _log_ratio),
    "success": Objective("success", _expected_reward, known=_nothing, outcome=Outcome("success"), teacherless=True),
    "dr_grpo": Objective(
        "dr_grpo", _group_advantage, expected=_nothing, outcome=Outcome("success", sampled=True), teacherless=True
    ),
}
_WITH_PARAMETER: dict[str, Callable[[str, str], Objective]] = {
    "jsd": _jsd,
    "minillm": _minillm,
    "pbsd_target": _pbsd_target,
    "pbsd": _pbsd,
}
OBJECTIVES = (
    *_PLAIN,
    "gkd",
    "jsd:BETA",
    "minillm:GAMMA",
    "minillm:GAMMA:normalised",
    "pbsd_target:BETA",
    "pbsd:BETA",
    "SECOND@FIRST*ETA",
)
