"""From the first step to later ones: how far success may have come after some training. Pure numpy.

The first step tells where training sets out, the teacher's own success where it may end, and how much of its gradient lies along success
how much of that end the student can come to share. The one governs while little is learned, the other when much is:

    change(t) = early(t) start (1 - exp(-t)) + (1 - early(t)) end,    early(t) = exp(-t) (1 + t + t^2 / 2)

with t the training done, in units of the time that the best teacher needs to be learned, and start the slope times that. It is start t for
small t, where the end counts with t^3 only. M is the axis of configurations.
"""

import numpy as np
from jaxtyping import Float

DEFAULT_TIME = 1.0
_STEEP = 0.5  # of the steepest slope, from which a configuration is among those that tell the speed


def speed(slope_M: Float[np.ndarray, " M"], lift_M: Float[np.ndarray, " M"]) -> float:
    """t for one unit of learning rate times steps; NaN where no configuration both helps and has a teacher that is better.

    An optimiser that moves every parameter by its learning rate moves at about one speed for all configurations. It is that at which those
    that set out best, with at least half of the steepest slope, would reach their teachers: the median of slope over lift.
    """
    known = ~np.isnan(slope_M) & (lift_M > 0)
    if not known.any() or slope_M[known].max() <= 0:
        return np.nan
    steep = known & (slope_M >= _STEEP * slope_M[known].max())
    return float(np.median(slope_M[steep] / lift_M[steep]))


def ends(
    slope_M: Float[np.ndarray, "*B M"], lift_M: Float[np.ndarray, "*B M"], unit_M: Float[np.ndarray, "*B M"]
) -> Float[np.ndarray, "*B M"]:
    """The change of success that each configuration may end at, from its slope, its teacher's lift and its gain for a unit of step.

    A teacher that is better and whose step helps others: its lift, times the squared ratio of its gain for a unit of step to the
    best one's, the share of its gradient's square that lies along success as far as any does. What is particular to a question, such as a
    leaked answer, cancels in the success of others and leaves a small share. Else what the teacher has on the student is taken to be lost:
    a worse teacher teaches to be worse, and one that is better by what the student cannot know leads away.
    """
    end = np.where((slope_M > 0) & (lift_M > 0), lift_M * np.clip(shares(unit_M), 0, None) ** 2, -np.abs(lift_M))
    return np.where(slope_M == 0, 0.0, end)


def shares(unit_M: Float[np.ndarray, "*B M"]) -> Float[np.ndarray, "*B M"]:
    """Gain for a unit of step over the best one's: 1 for the best, below 0 where a step lowers success; NaN where none helps."""
    best = np.nanmax(unit_M, axis=-1, keepdims=True, initial=0.0)
    return np.divide(unit_M, best, out=np.full(unit_M.shape, np.nan), where=best > 0)


def change(
    slope_M: Float[np.ndarray, "*B M"], end_M: Float[np.ndarray, "*B M"], speed: float, time: float
) -> Float[np.ndarray, "*B M"]:
    """Change of success after training for `time` t."""
    early = np.exp(-time) * (1 + time + time**2 / 2)
    return early * slope_M / speed * -np.expm1(-time) + (1 - early) * end_M
