"""The stored steps of a run: what transfer is told from, with the error of their sketch, and the steps of some questions as they are."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from gradalign.store import Run
from gradalign.transfer import Batch, PairSums, Transfer, pair_sums, transfer

_ROOM, _BYTES = 2**28, 2**15  # for steps that are kept at once; what one has at most
Space = Literal["head", "logits"]
Key = tuple[str, str, str]
_IDEAL = (None, None, "all")


@dataclass(frozen=True, eq=False)
class Steps:
    """What the steps of M pairs of teacher and objective say of pairs of questions; `exact` if they were kept whole and not sketched."""

    sums: PairSums
    exact: bool

    def transfer(self) -> Transfer:
        """Transfer of each pair."""
        return transfer(self.sums)

    def sketch_error(self) -> Float[np.ndarray, " M"]:
        """Standard error that the sketch adds to `drive_M`; 0 where steps were kept whole."""
        count, questions = self.sums.others_MQ.shape
        if self.exact:
            return np.zeros(count)
        off = self.sums.others_MQ.sum(1)
        return np.sqrt((self.sums.taught2_M * self.sums.ideal2 + off**2) / self.sums.length) / max(
            questions * (questions - 1), 1
        )


def steps_of(
    run: Run, keys: Sequence[Key], questions: Sequence[str], weight_MQ: Float[np.ndarray, "M Q"] | None = None
) -> Steps | None:
    """What the steps in the output layer say of these keys (teacher, objective, weighting of tokens) on these questions.

    `weight_MQ` weighs questions in training, all alike unless given. None where the run kept no steps (its nodes were taken outright);
    NaN for a key whose steps it did not keep.
    """
    kept = run.table("steps", ["exact"])
    if not kept.num_rows:
        return None
    distinct = list(dict.fromkeys(keys))
    weights = np.ones((len(keys), len(questions))) if weight_MQ is None else weight_MQ
    stored = _Stored(run, distinct, questions, "step")
    return Steps(pair_sums(stored, [distinct.index(key) for key in keys], weights), all(kept["exact"].to_pylist()))


def steps_themselves(
    run: Run, keys: Sequence[Key], questions: Sequence[str], space: Space
) -> Iterator[Float[np.ndarray, "Q L"]]:
    """The steps of one key after the other on these questions, in the output layer or summed in the logits; NaN where there are none.

    No more are read at once than there is room for.
    """
    at_once = max(1, _ROOM // (_BYTES * len(questions)))
    for start in range(0, len(keys), at_once):
        some = keys[start : start + at_once]
        batches = list(_Stored(run, some, questions, "step" if space == "head" else "step_logits"))
        for k in range(len(some)):
            found = np.full((len(questions), batches[0].ideal.shape[1]), np.nan, dtype=np.float32)
            for batch in batches:
                step = batch.step[k]
                if step is not None:
                    found[batch.at] = step
            yield found


class _Stored:
    """Steps of a run in batches, some parts at a time. Can be gone over more than once; as many as there is room for are read once."""

    def __init__(self, run: Run, keys: Sequence[Key], questions: Sequence[str], column: str):
        self.keys, self.column = keys, column
        self.place = {question: q for q, question in enumerate(questions)}
        self.pieces = run.pieces()
        self.kept: dict[int, Batch] = {}
        self.room = _ROOM

    def __iter__(self) -> Iterator[Batch]:
        for number, piece in enumerate(self.pieces):
            batch = self.kept.get(number) or self._read(piece)
            if batch is None:
                continue
            if number not in self.kept and batch.nbytes <= self.room:
                self.kept[number] = batch
                self.room -= batch.nbytes
            yield batch

    def _read(self, piece: Run) -> Batch | None:
        """The steps of a piece of the run; None if it has none of the questions."""
        table = piece.table("steps", ["question", "teacher", "objective", "tokens", self.column])
        names = zip(*(table[name].to_pylist() for name in ("question", "teacher", "objective", "tokens")), strict=True)
        row = {(question, *key): i for i, (question, *key) in enumerate(names)}
        here = [question for question, *key in row if question in self.place and tuple(key) == _IDEAL]
        if not here:
            return None
        steps = table[self.column].combine_chunks().flatten().to_numpy().reshape(table.num_rows, -1)

        def of(key: tuple[str | None, ...]) -> np.ndarray | None:
            rows = [row.get((question, *key)) for question in here]
            return None if None in rows else steps[rows]

        ideal = of(_IDEAL)
        assert ideal is not None
        return Batch(np.array([self.place[question] for question in here]), [of(key) for key in self.keys], ideal)
