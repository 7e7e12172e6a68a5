"""The executor over the cores of this machine: forks of this process, each with the loaded models, score parts and write them themselves.

It is for small models on a CPU. A forward pass of theirs gains little from a second thread, and what surrounds it is Python, which keeps
to one core; a process for each core has them all at work. Forks share the memory of what was loaded, and nothing is loaded again.
"""

import gc
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from gradalign.engines import HFEngine
from gradalign.pipeline.cast import Cast
from gradalign.pipeline.config import RunConfig
from gradalign.pipeline.faults import described
from gradalign.pipeline.local import LocalExecutor, attempted
from gradalign.pipeline.progress import Progress
from gradalign.pipeline.work import SMALL, Done, Failed, Meter, Task
from gradalign.store import Place, RunFolder
from gradalign.types import GradalignError

_TELLING = 0.1  # seconds between two words of a process on how far it is
_TOKENIZERS = "TOKENIZERS_PARALLELISM"


def processes(cast: Cast, asked: int | None, place: Place) -> int:
    """How many processes score parts of a run at `place` at once: those that are asked for, else as many as torch would use threads, where
    models are small and the place is a folder.

    One where that is not so; raises where more are asked for.
    """
    here = len(_engines(cast)) == 1 + len(cast.others)
    able = here and cast.parameters < SMALL and _may_fork() and isinstance(place, Path)
    if not able and (asked or 1) > 1:
        raise GradalignError(
            f"workers is {asked}, but only models of under {SMALL // 10**6} million parameters on the CPU of a system that forks are "
            "scored, into a folder, by several processes of one machine; leave it out, or give --executor ray"
        )
    return (asked or torch.get_num_threads()) if able else 1


def _may_fork() -> bool:
    """Can this process be forked and do so safely? macOS has it, but not for what its own libraries begin."""
    able = "fork" in multiprocessing.get_all_start_methods() and sys.platform != "darwin"
    return able and not multiprocessing.current_process().daemon


def _engines(cast: Cast) -> list[HFEngine]:
    """The engines of models on the CPU of this machine."""
    engines = [member.engine for member in (cast.student, *cast.others.values())]
    return [engine for engine in engines if isinstance(engine, HFEngine) and engine.model.device.type == "cpu"]


class _Telling:
    """Progress of a process, told through its pipe now and then."""

    def __init__(self, pipe: Connection):
        self.pipe, self.units, self.told = pipe, 0, time.monotonic()

    def begin(self, units: int, done: int) -> None: ...

    def stage(self, what: str) -> None: ...

    def advance(self, units: int) -> None:
        self.units += units
        if time.monotonic() - self.told > _TELLING:
            self.pipe.send(self.units)
            self.units, self.told = 0, time.monotonic()

    def standing(self, standing: Any, spent: tuple[int, int]) -> None: ...


class _Forward(logging.Handler):
    """Sends what a process logs to the one that it was forked from, whose handlers show and keep it."""

    def __init__(self, pipe: Connection):
        super().__init__()
        self.pipe = pipe

    def emit(self, record: logging.LogRecord) -> None:
        record.msg, record.args, record.exc_info = record.getMessage(), None, None
        self.pipe.send(record)


@dataclass(eq=False)
class _Hand:
    """A process, the end of its pipe that is here, the task that it is at, and what is counted of that."""

    process: BaseProcess
    pipe: Connection
    name: str
    task: Task | None = None
    meter: Meter | None = None


class ProcessExecutor:
    """Scores parts with the models that it is given, `count` at once; a single part in this process."""

    def __init__(self, cast: Cast, count: int):
        self.cast, self.count = cast, count
        self.alone = LocalExecutor(cast)
        self.facts = self.alone.facts
        self.hands: list[_Hand] = []
        self.forks = 0

    def run(self, folder: RunFolder, config: RunConfig, tasks: Sequence[Task], progress: Progress) -> Iterator[Done | Failed]:
        """Hand out tasks as processes become free; what the user can mend ends it, anything else is told as a failure."""
        count = min(self.count, len(tasks))
        if count < 2 and not self.forks:  # what ended a fork must not end this process
            yield from self.alone.run(folder, config, tasks, progress)
            return
        waiting = deque(tasks)
        progress.stage(f"{count} processes")
        while waiting or any(hand.task for hand in self.hands):
            while len(self.hands) < min(count, len(waiting)):
                self.hands.append(self._forked())
            for hand in self.hands:
                if waiting and hand.task is None:
                    hand.task = waiting.popleft()
                    hand.meter = Meter(progress, hand.task.units)
                    with suppress(OSError):  # if it is no more, that is heard next
                        hand.pipe.send((hand.task, folder.path, config))
            ready = wait([hand.pipe for hand in self.hands])
            for hand in [hand for hand in self.hands if hand.pipe in ready]:
                yield from self._heard(hand)

    def _forked(self) -> _Hand:
        here, there = multiprocessing.Pipe()
        name = f"process {self.forks}"
        context = multiprocessing.get_context("fork")
        process = context.Process(target=_serve, args=(there, self.cast, name), name=f"gradalign {name}", daemon=True)
        try:
            with _fit_to_fork():
                process.start()
        except OSError as error:
            raise GradalignError(f"no process can be forked ({described(error)}); give --workers 1") from error
        self.forks += 1
        there.close()  # else its end would never be seen here
        return _Hand(process, here, name)

    def _heard(self, hand: _Hand) -> Iterator[Done | Failed]:
        """Take in one word of a process: units done, a line for the log, what came of its task, or nothing if it is no more."""
        try:
            word = hand.pipe.recv()
        except (EOFError, OSError):
            self.hands.remove(hand)
            _end(hand)
            if hand.task is not None:
                yield Failed(hand.task, f"its process was lost ({_how(hand.process.exitcode)})")
            return
        if isinstance(word, logging.LogRecord):
            logging.getLogger(word.name).handle(word)
        elif isinstance(word, GradalignError):
            raise word
        elif hand.meter is not None:
            if isinstance(word, int):
                hand.meter.advance(word)
                return
            hand.meter.complete()
            hand.task = hand.meter = None
            yield word

    def close(self) -> None:
        """End the processes; what one has not finished is not kept."""
        for hand in self.hands:
            _end(hand)
        self.hands.clear()


def _serve(pipe: Connection, cast: Cast, name: str) -> None:
    """What runs in a process: one task after the other until it is ended, by the process that it was forked from or with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_follow, daemon=True).start()
    torch.set_num_threads(1)  # also since OpenMP's threads do not outlive a fork: what wanted them would wait for ever
    for engine in _engines(cast):
        engine.threads = 1
    gc.freeze()  # what was there before the fork is not looked through for garbage, nor copied for that
    logging.getLogger("gradalign").handlers.clear()
    logging.getLogger().handlers[:] = [_Forward(pipe)]
    while True:
        task, place, config = pipe.recv()
        word: Done | Failed | GradalignError
        try:
            word = attempted(task, RunFolder(place), config, cast, _Telling(pipe), name)
        except GradalignError as error:
            word = error
        pipe.send(replace(word, error=None) if isinstance(word, Failed) else word)  # not every error can be sent


def _follow() -> None:
    """End this process when the one that it was forked from has ended, however that came."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@contextmanager
def _fit_to_fork() -> Iterator[None]:
    """Have tokenizers keep to one thread in what is forked, without their warning, and Python without its own: torch's threads rest."""
    before = os.environ.get(_TOKENIZERS)
    os.environ[_TOKENIZERS] = before or "false"
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
            yield
    finally:
        if before is None:
            del os.environ[_TOKENIZERS]


def _end(hand: _Hand) -> None:
    hand.process.kill()
    hand.process.join()
    hand.pipe.close()


def _how(code: int | None) -> str:
    return signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"
