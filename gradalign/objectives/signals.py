"""What an objective may look at, and the direction that a token signal moves the student's logits in."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

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
