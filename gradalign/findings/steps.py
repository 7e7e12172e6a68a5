"""The stored steps of a run: inner products between questions, and what of them is only the sketch's error."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from gradalign.store import Run
from gradalign.transfer import Transfer, transfer


@dataclass(frozen=True, eq=False)
class Steps:
    """Inner products of the steps of M pairs of teacher and objective with the ideal steps of Q questions, and among themselves.

    `cross_MQQ` = <D_q, G_q'>, `among_MQQ` = <D_q, D_q'>, `ideal_QQ` = <G_q, G_q'>. `length` is the number of buckets of a sketch,
    None where steps were kept whole.
    """

    cross_MQQ: Float[np.ndarray, "M Q Q"]
    among_MQQ: Float[np.ndarray, "M Q Q"]
    ideal_QQ: Float[np.ndarray, "Q Q"]
    length: int | None

    def part(self, at: Sequence[int]) -> "Steps":
        """The same of some of the pairs, by their places."""
        return Steps(self.cross_MQQ[list(at)], self.among_MQQ[list(at)], self.ideal_QQ, self.length)

    def transfer(self, weight_MQ: Float[np.ndarray, "M Q"] | None = None) -> Transfer:
        """Transfer of each pair, with questions weighted in training."""
        return transfer(self.cross_MQQ, np.einsum("mqq->mq", self.among_MQQ), weight_MQ)

    def sketch_error(self) -> Float[np.ndarray, " M"]:
        """Standard error that the sketch adds to `drive_M`; 0 where steps were kept whole."""
        if self.length is None:
            return np.zeros(len(self.cross_MQQ))
        pairs = self.ideal_QQ.shape[0] * (self.ideal_QQ.shape[0] - 1)
        off = self.cross_MQQ.sum((1, 2)) - np.einsum("mqq->m", self.cross_MQQ)
        norms = np.maximum(self.among_MQQ.sum((1, 2)), 0) * max(float(self.ideal_QQ.sum()), 0.0)
        return np.sqrt((norms + off**2) / self.length) / max(pairs, 1)


def steps_of(
    run: Run,
    keys: Sequence[tuple[str, str]],
    questions: Sequence[str],
    space: Literal["head", "logits"] = "head",
    tokens: Sequence[str] | None = None,
) -> Steps | None:
    """Read the steps of these pairs on these questions, in the output layer or summed in the logits.

    `tokens` is how each pair weighs tokens, all alike unless given. None where the run kept none (its nodes were taken outright); NaN
    for a pair whose steps it did not keep so.
    """
    step, exact = ("step", "exact") if space == "head" else ("step_logits", "exact_logits")
    table = run.table("steps", ["question", "teacher", "objective", "tokens", exact, step])
    if not table.num_rows:
        return None
    flat = table[step].combine_chunks().flatten().to_numpy()
    steps = flat.reshape(table.num_rows, -1)
    columns = zip(*(table[name].to_pylist() for name in ("question", "teacher", "objective", "tokens")), strict=True)
    place = {row: i for i, row in enumerate(columns)}
    ideal = steps[[place[q, None, None, "all"] for q in questions]].astype(np.float64)
    shape = (len(keys), len(questions), len(questions))
    cross, among = np.empty(shape), np.empty(shape)
    for m, (key, kind) in enumerate(zip(keys, tokens or ["all"] * len(keys), strict=True)):
        if any((q, *key, kind) not in place for q in questions):
            cross[m] = among[m] = np.nan
            continue
        step = steps[[place[(q, *key, kind)] for q in questions]].astype(np.float64)
        cross[m], among[m] = step @ ideal.T, step @ step.T
    length = None if all(table[exact].to_pylist()) else steps.shape[1]
    return Steps(cross, among, ideal @ ideal.T, length)
