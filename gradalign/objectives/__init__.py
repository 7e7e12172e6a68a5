"""Objectives as token signals f, and the directions they move the student's logits in. Torch in, torch out.

Sign: every direction is the way the logits *move* (descent of a loss, ascent of success), so a positive inner product
with the ideal direction means that the teacher pushes the student toward success.

For every objective here the direction at a node is d_j = -dL/dz_j = pi_j (f_j - sum_k pi_k f_k), with z the student's logits; an
objective is its f. Losses of whole sequences have one too: per unit of student visitation, with what happens after the node taken in as
an expectation over rollouts (`NodeSignals`).
"""

from gradalign.objectives.after import After
from gradalign.objectives.objective import Objective, Outcome
from gradalign.objectives.signals import NodeSignals, Signal, centred, ideal_direction
from gradalign.objectives.spelling import OBJECTIVES, brought, parse_objective

__all__ = [
    "OBJECTIVES",
    "After",
    "NodeSignals",
    "Objective",
    "Outcome",
    "Signal",
    "brought",
    "centred",
    "ideal_direction",
    "parse_objective",
]
