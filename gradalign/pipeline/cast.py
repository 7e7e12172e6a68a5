"""Who takes part in a run: the student with its engine, and the other models that teach or write demonstrations."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from gradalign.contexts import parse_teacher
from gradalign.engines import Engine, HFEngine, student_engine
from gradalign.models import CausalLanguageModel, ChatCodec, LoadedModel, LoadOptions, load_model, require_same_vocabulary
from gradalign.pipeline.config import Execution, RunConfig
from gradalign.types import GradalignError, TeacherSpec


@dataclass(frozen=True, eq=False)
class Member:
    """A model and the engine that samples from it."""

    model: LoadedModel
    engine: Engine


@dataclass(frozen=True, eq=False)
class Cast:
    """The student, and other models by the name the user gave them."""

    student: Member
    teachers: tuple[TeacherSpec, ...]
    others: Mapping[str, Member] = field(default_factory=dict)

    def member(self, name: str | None) -> Member:
        """The model of that name; None is the student."""
        return self.student if name is None else self.others[name]

    def rest(self) -> None:
        """Have every engine give back memory that forward passes may need."""
        for member in (self.student, *self.others.values()):
            member.engine.rest()

    @property
    def fingerprints(self) -> dict[str, str]:
        """What tells the weights apart, for run.json."""
        return {"student": self.student.model.fingerprint} | {
            name: m.model.fingerprint for name, m in sorted(self.others.items())
        }

    @property
    def parameters(self) -> int:
        """Parameters of the largest model."""
        return max(member.model.parameters for member in (self.student, *self.others.values()))

    @property
    def notices(self) -> list[str]:
        """What loading had to say."""
        return [notice for member in (self.student, *self.others.values()) for notice in member.model.notices]


def load_cast(config: RunConfig, execution: Execution) -> Cast:
    """Load every model that the configuration names; teachers must share the student's vocabulary."""
    options = LoadOptions(execution.device, config.dtype, config.temperature, execution.batch_size, config.chat_template)
    teachers = tuple(parse_teacher(spec) for spec in config.teachers)
    loaded = load_model(config.student, options)
    student = Member(loaded, student_engine(execution.engine, loaded, execution.batch_size, execution.tensor_parallel))
    teaching = {spec.model for spec in teachers if spec.model}
    others: dict[str, Member] = {}
    for name in sorted(teaching | {spec.source for spec in teachers if spec.source}):
        others[name] = _load(name, options)
        if name in teaching:
            _require_fit(student.model, others[name].model)
    return Cast(student, teachers, others)


def _load(name: str, options: LoadOptions) -> Member:
    loaded = load_model(name, options)
    model = loaded.language_model
    assert isinstance(model, CausalLanguageModel)
    return Member(loaded, HFEngine(model, loaded.codec.stop_ids, options.batch_size))


def _require_fit(student: LoadedModel, teacher: LoadedModel) -> None:
    if isinstance(student.codec, ChatCodec) and isinstance(teacher.codec, ChatCodec):
        require_same_vocabulary(student.codec, teacher.codec)
    ours, theirs = student.language_model, teacher.language_model
    if ours.vocabulary_size != theirs.vocabulary_size:
        raise GradalignError(
            f"teacher {theirs.name!r} has {theirs.vocabulary_size:,} logits, student {ours.name!r} {ours.vocabulary_size:,}; "
            "choose a teacher whose output layer covers the student's tokens"
        )
