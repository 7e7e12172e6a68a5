"""Carry out a run in this process: unfinished parts in order, each a group of questions, each written when it is done."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict

import torch

from gradalign.pipeline.cast import Cast
from gradalign.pipeline.config import RunConfig
from gradalign.pipeline.group import planned_units, score_group, sources
from gradalign.pipeline.progress import Progress
from gradalign.store import RunFolder
from gradalign.types import Question

_SMALL = 20_000_000


def execute(folder: RunFolder, questions: Sequence[Question], cast: Cast, config: RunConfig, progress: Progress) -> None:
    """Score every question that the run folder does not hold yet."""
    parts = [
        range(start, min(start + config.part_size, len(questions))) for start in range(0, len(questions), config.part_size)
    ]
    finished = folder.finished()
    unit = planned_units(config, len(sources(cast)))
    progress.begin(unit * len(questions), unit * sum(len(orders) for part, orders in enumerate(parts) if part in finished))
    with _fitting_threads(cast):
        for part, orders in enumerate(parts):
            if part in finished:
                continue
            meter = _Meter(progress, unit * len(orders))
            rows = score_group(list(orders), [questions[i] for i in orders], cast, config, meter)
            folder.write(part, rows)
            meter.complete()


@contextmanager
def _fitting_threads(cast: Cast) -> Iterator[None]:
    """One CPU thread while every model is small: their matrices gain nothing from more, and threads that wait for each other lose much."""
    before = torch.get_num_threads()
    if cast.parameters < _SMALL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def data_fingerprint(questions: Sequence[Question]) -> str:
    """A hash of the questions as they were read."""
    text = json.dumps([asdict(question) for question in questions], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


class _Meter:
    """Keeps a part's units at what was planned for it, whatever it really took."""

    def __init__(self, progress: Progress, planned: int):
        self.progress = progress
        self.left = planned

    def begin(self, units: int, done: int) -> None:
        self.progress.begin(units, done)

    def stage(self, what: str) -> None:
        self.progress.stage(what)

    def advance(self, units: int) -> None:
        step = min(units, self.left)
        self.left -= step
        self.progress.advance(step)

    def complete(self) -> None:
        self.advance(self.left)
