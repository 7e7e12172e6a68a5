"""An objective: its token signal, and which part of it only rollouts tell."""

from dataclasses import dataclass
from typing import Literal

from gradalign.objectives.signals import NV, NodeSignals, Signal


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
