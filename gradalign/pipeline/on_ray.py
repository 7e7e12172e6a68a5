"""The executor over a Ray cluster: workers with models of their own score parts and write them to the run folder themselves.

A part belongs to one worker at a time and is written by it, so what comes back to the driver is a few numbers. A worker that dies, or whose
node is lost, costs the part it was at; Ray starts it again where there is room.
"""

import contextlib
import logging
import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from gradalign.pipeline.cast import Cast, load_cast
from gradalign.pipeline.config import Execution, RunConfig
from gradalign.pipeline.faults import QuestionFault, described
from gradalign.pipeline.progress import Progress
from gradalign.pipeline.work import Done, Facts, Failed, Meter, Task, carry_out
from gradalign.store import Place, RunFolder
from gradalign.types import GradalignError

log = logging.getLogger(__name__)
_QUEUED = 2  # tasks a worker has at most: the one it is at, and one to go on with
_TICK = 0.5
_QUESTIONS = 16.0  # that the driver asks all workers together in a second
_PATIENCE = 600.0
_CREATION = "creation task"  # how Ray words it that a worker's class could not be made there


class _Counting:
    """Progress of a worker, as numbers that the driver asks for."""

    def __init__(self) -> None:
        self.units = 0

    def begin(self, units: int, done: int) -> None: ...

    def stage(self, what: str) -> None: ...

    def advance(self, units: int) -> None:
        self.units += units

    def standing(self, standing: Any, spent: tuple[int, int]) -> None: ...


class _NotBegun(Exception):
    """A worker that was started again and has no models yet."""


class _Worker:
    """What runs in a worker's process: the models, and one part after the other."""

    def __init__(self, config: RunConfig, execution: Execution):
        self.config, self.execution = config, execution
        self.counting = _Counting()
        self.cast: Cast | None = None

    def begin(self, cast: Cast | None) -> Facts:
        """Load the models, or take those that are brought."""
        self.cast = cast or load_cast(self.config, self.execution)
        return Facts.of(self.cast)

    def told(self) -> int:
        """Units done since the worker began."""
        return self.counting.units

    def score(self, task: Task, place: Place, config: RunConfig, name: str) -> Done:
        if self.cast is None:
            raise _NotBegun
        meter = Meter(self.counting, task.units)
        done = carry_out(task, RunFolder(place), config, self.cast, meter, name)
        meter.complete()
        return done


@dataclass(eq=False)
class _Hand:
    """A worker as the driver sees it: its name, the calls it has to answer in order, and what it was last heard to have done."""

    actor: Any
    name: str
    calls: deque[tuple[Any, Task]] = field(default_factory=deque)
    hello: Any = None
    hello_at: float = 0.0
    telling: Any = None
    asked: float = 0.0
    units: int = 0
    ready: bool = False


class RayExecutor:
    """Workers over a Ray cluster: the one at `execution.address`, else one of this machine's own that ends with the run."""

    def __init__(self, config: RunConfig, execution: Execution, cast: Cast | None = None):
        self.ray = _imported()
        self.own = not self.ray.is_initialized()
        if self.own:
            _connect(self.ray, execution.address)
        self.seen: Facts | None = None
        self.hands: list[_Hand] = []
        try:
            self._begin(config, execution, cast)
        except BaseException:
            self.close()
            raise
        assert self.seen is not None
        self.facts: Facts = self.seen

    def _begin(self, config: RunConfig, execution: Execution, cast: Cast | None) -> None:
        """Start the workers, and wait until one has loaded its models."""
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        count, shape = _shape(nodes, execution)
        worker = self.ray.remote(**shape, max_restarts=-1, concurrency_groups={"telling": 1})(_Worker)
        self.brought = None if cast is None else self.ray.put(cast)
        self.hands = [_Hand(worker.remote(config, execution), f"worker {i}") for i in range(count)]
        for hand in self.hands:
            self._greet(hand)
        while self.seen is None:
            self._hear(_TICK, [])

    def run(self, folder: RunFolder, config: RunConfig, tasks: Sequence[Task], progress: Progress) -> Iterator[Done | Failed]:
        """Hand out tasks as workers become free, at most two to each."""
        waiting, place = deque(tasks), folder.path.absolute()  # workers are in other working directories
        progress.stage(f"{len(self.hands)} workers")
        while waiting or any(hand.calls for hand in self.hands):
            for queued in range(_QUEUED):  # those with least to do first
                for hand in self.hands:
                    if waiting and hand.ready and len(hand.calls) == queued:
                        task = waiting.popleft()
                        hand.calls.append((hand.actor.score.remote(task, place, config, hand.name), task))
            for hand, ref in self._hear(_TICK, [hand.calls[0][0] for hand in self.hands if hand.calls]):
                yield from self._returned(hand, ref, waiting)
            self._listen(progress)

    def _hear(self, patience: float, refs: list[Any]) -> list[tuple[_Hand, Any]]:
        """Wait for what comes first: calls that ended, each with its worker, or workers that are ready."""
        hellos = {hand.hello: hand for hand in self.hands if hand.hello is not None}
        if not refs and not hellos:
            time.sleep(_TICK)
        ended = self.ray.wait([*refs, *hellos], num_returns=1, timeout=patience)[0] if refs or hellos else []
        for ref in ended:
            if ref in hellos:
                self._met(hellos[ref])
        self._check_patience()
        owners = {hand.calls[0][0]: hand for hand in self.hands if hand.calls}
        return [(owners[ref], ref) for ref in ended if ref in owners]

    def _greet(self, hand: _Hand) -> None:
        """Ask a worker, which may have yet to start, what it has loaded."""
        hand.ready = False
        hand.hello_at = hand.hello_at or time.monotonic()
        hand.hello = hand.actor.begin.remote(self.brought)

    def _met(self, hand: _Hand) -> None:
        """A worker answered, or could not be started yet."""
        ref, hand.hello = hand.hello, None
        try:
            facts = self.ray.get(ref)
        except self.ray.exceptions.RayTaskError as error:
            cause = error.cause
            mendable = (
                cause if isinstance(cause, GradalignError) else GradalignError(f"a worker could not begin: {described(cause)}")
            )
            raise mendable from error
        except self.ray.exceptions.RayError as error:
            if _CREATION in str(error):
                last = next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), "")
                raise GradalignError(f"a worker could not begin: {last}; see to it that every node has gradalign") from error
            time.sleep(_TICK)
            self._greet(hand)
            return
        if self.seen is not None and dict(facts.fingerprints) != dict(self.seen.fingerprints):
            raise GradalignError(
                f"{hand.name} loaded other weights than the others; see to it that every node has the same files"
            )
        if self.seen is not None and facts.engine != self.seen.engine:
            raise GradalignError(
                f"{hand.name} samples with {facts.engine}, others with {self.seen.engine}; name one with --engine"
            )
        self.seen = self.seen or facts
        hand.ready, hand.hello_at, hand.units = True, 0.0, 0

    def _check_patience(self) -> None:
        late = [hand for hand in self.hands if not hand.ready and time.monotonic() - hand.hello_at > _PATIENCE]
        if len(late) == len(self.hands):
            raise GradalignError(
                f"no worker could be started within {_PATIENCE / 60:g} minutes; see what the cluster has free (ray status), or ask for "
                "less with --workers, --worker-cpus and --worker-gpus"
            )

    def _returned(self, hand: _Hand, ref: Any, waiting: deque[Task]) -> Iterator[Done | Failed]:
        """What the first call of a worker brought. If the worker died, its other calls go back to those that wait."""
        _, task = hand.calls.popleft()
        try:
            yield self.ray.get(ref)
        except self.ray.exceptions.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, GradalignError):
                raise cause from error
            if isinstance(cause, _NotBegun):
                self._lost(hand, waiting)
                waiting.appendleft(task)
            elif isinstance(cause, QuestionFault):
                yield Failed(task, cause.reason, cause.question, cause)
            else:
                yield Failed(task, described(cause), error=cause)
        except self.ray.exceptions.RayError as error:
            log.warning("%s was lost (%s); what it had not finished is done again", hand.name, type(error).__name__)
            with contextlib.suppress(self.ray.exceptions.RayError):  # one that cannot be reached may still write
                self.ray.kill(hand.actor, no_restart=False)
            self._lost(hand, waiting)
            yield Failed(task, f"its worker was lost ({type(error).__name__})")

    def _lost(self, hand: _Hand, waiting: deque[Task]) -> None:
        """What a worker had in hand goes back to those that wait, and it is asked to load its models again."""
        waiting.extendleft(lost for _, lost in reversed(hand.calls))
        hand.calls.clear()
        hand.telling = None
        self._greet(hand)

    def _listen(self, progress: Progress) -> None:
        """Ask busy workers how far they are, and take in what they last said; many are asked less often than few."""
        now = time.monotonic()
        for hand in self.hands:
            if now - hand.asked < len(self.hands) / _QUESTIONS:
                continue
            if hand.telling is not None and self.ray.wait([hand.telling], timeout=0)[0]:
                try:
                    units = self.ray.get(hand.telling)
                    progress.advance(max(0, units - hand.units))
                    hand.units = units
                except self.ray.exceptions.RayError:
                    pass  # the call that it was at tells
                hand.telling = None
            if hand.telling is None and hand.ready and hand.calls:
                hand.telling = hand.actor.told.options(concurrency_group="telling").remote()
            hand.asked = now

    def close(self) -> None:
        """End the workers, and the cluster if it was started for them."""
        for hand in self.hands:
            self.ray.kill(hand.actor)
        if self.own:
            self.ray.shutdown()


def _imported() -> Any:
    try:
        import ray  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise GradalignError(f"--executor ray needs Ray ({error}); pip install 'gradalign[ray]'") from error
    return ray


def _connect(ray: Any, address: str | None) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        own = {} if address else {"include_dashboard": False}
        ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **own)
    except (ConnectionError, ValueError, RuntimeError) as error:
        where = f"the cluster at {address} cannot be reached" if address else "Ray cannot be started here"
        raise GradalignError(
            f"{where}: {described(error)}; check --address, and that the cluster runs this version of Ray"
        ) from error


def _shape(nodes: Sequence[dict[str, float]], execution: Execution) -> tuple[int, dict[str, float]]:
    """How many workers, and what each takes of its node."""
    have = {name: sum(node.get(name, 0) for node in nodes) for name in ("CPU", "GPU")}
    gpus = execution.worker_gpus if execution.worker_gpus is not None else float(have["GPU"] > 0)
    cpus = execution.worker_cpus
    asked = [(name, each) for name, each in (("CPU", cpus), ("GPU", gpus)) if each > 0]
    fits = (
        sum(int(min(node.get(name, 0) / each for name, each in asked)) for node in nodes) if asked else execution.workers or 1
    )
    count = execution.workers or fits
    if count < 1 or count > fits:
        raise GradalignError(
            f"the cluster has {have['CPU']:g} CPUs and {have['GPU']:g} GPUs: room for {fits} workers of {cpus:g} CPUs and {gpus:g} GPUs, "
            f"not {max(count, 1)}; ask for fewer with --workers, or for less with --worker-cpus and --worker-gpus"
        )
    return count, {"num_cpus": cpus, "num_gpus": gpus}
