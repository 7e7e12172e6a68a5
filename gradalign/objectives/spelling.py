"""From the name of an objective, as users write it, to the objective: one of those known here, one after another, or a function."""

import math

import torch
from torch import Tensor

from gradalign.objectives.after import After
from gradalign.objectives.losses import PLAIN, WITH_PARAMETER, number
from gradalign.objectives.objective import Objective
from gradalign.objectives.signals import NV, NodeSignals, Signal
from gradalign.plugins import imported, registered
from gradalign.types import GradalignError

OBJECTIVES = (
    *PLAIN,
    "gkd",
    "jsd:BETA",
    "minillm:GAMMA",
    "minillm:GAMMA:normalised",
    "pbsd_target:BETA",
    "pbsd:BETA",
    "SECOND@FIRST*ETA",
)


def parse_objective(spec: str) -> Objective:
    """The objective that `spec` names: one of `OBJECTIVES`, with its parameter after a colon."""
    if "@" in spec:
        return _after(spec)
    name, _, parameter = spec.partition(":")
    name = {"gkd": "reverse_kl"}.get(name, name)
    if name in PLAIN and not parameter:
        return PLAIN[name]
    if name in WITH_PARAMETER:
        return WITH_PARAMETER[name](spec, parameter)
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
        *PLAIN,
        *WITH_PARAMETER,
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
    value = number(spec, eta or "1", 0.0, math.inf, "reverse_kl@forward_kl*1")
    name = f"{parts[1].name}@{parts[0].name}*{value:g}"
    return After(name, parts[1].signal, first=parts[0], second=parts[1], eta=value)
