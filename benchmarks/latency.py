"""Known models that take the time of real ones: what the benchmarks of scale share."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from gradalign.models import LoadedModel
from gradalign.pipeline import Cast, Member
from gradalign.testbed import Automaton, TabularCodec, TabularModel
from gradalign.types import Completion, CompletionRequest, TeacherSpec


@dataclass
class Delayed:
    """The engine of a known model, each step of which takes `per_step` seconds for all completions that are under way together."""

    inner: Automaton
    per_step: float
    kind: str = "automaton"

    def rest(self) -> None: ...

    def complete(self, requests: Sequence[CompletionRequest]) -> Iterator[Completion]:
        longest = max((request.max_tokens for request in requests), default=0)
        time.sleep(self.per_step * longest)
        yield from self.inner.complete(requests)


def delayed(cast: Cast, per_step: float) -> Cast:
    """The same cast, whose student samples at the pace of a real one."""
    engine = cast.student.engine
    assert isinstance(engine, Automaton)
    return replace(cast, student=replace(cast.student, engine=Delayed(engine, per_step)))


def tabular_cast(teachers: Sequence[str]) -> Cast:
    """A student of four tokens and four steps, and teachers ever further from it, by names such as `model:better`."""
    student = TabularModel.random(vocabulary=4, length=4, seed=3)
    tilted = {spec: student.tilted(3.0 - 2 * i, spec) for i, spec in enumerate(teachers)}
    specs = tuple(TeacherSpec(spec, "none", spec.removeprefix("model:")) for spec in teachers)
    others = {spec.removeprefix("model:"): _member(model) for spec, model in tilted.items()}
    return Cast(_member(student), specs, others)


def _member(model: TabularModel) -> Member:
    return Member(LoadedModel(model, TabularCodec(model), model.name), model)
