"""An objective at the policy that a step of another one would give."""

from dataclasses import dataclass, replace

import torch

from gradalign.objectives.objective import Objective
from gradalign.objectives.signals import NV, NodeSignals


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
