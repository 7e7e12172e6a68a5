"""Who takes part in a run: the student with its engine, and the other models that teach or write demonstrations."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch

from gradalign.contexts import parse_teacher
from gradalign.engines import Engine, HFEngine, student_engine
from gradalign.models import (
    STUDENT,
    CausalLanguageModel,
    ChatCodec,
    LoadedModel,
    LoadOptions,
    differing_tokens,
    load_model,
    placed,
    read_placement,
    require_same_vocabulary,
    resolve_model,
)
from gradalign.objectives import parse_objective
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
    """Load every model that the configuration names, then the student's engine; teachers must share the student's vocabulary."""
    teachers = tuple(parse_teacher(spec) for spec in config.teachers)
    teaching = {spec.model for spec in teachers if spec.model}
    names = sorted(teaching | {spec.source for spec in teachers if spec.source})
    served_names = {name for name in names if resolve_model(name).kind == "server"}
    place = placed(
        [name for name in names if name not in served_names], _devices(execution.device), read_placement(execution.place)
    )
    shared = LoadOptions(place[STUDENT], config.dtype, config.temperature, execution.batch_size, config.chat_template)
    loaded = load_model(config.student, shared)
    others: dict[str, Member] = {}
    for name in names:
        options = replace(shared, device=place.get(name, place[STUDENT]))
        served = name in served_names
        others[name] = _served(name, loaded, options, config, name in teaching) if served else _load(name, options)
        if name in teaching:
            others[name] = _fitting(name, loaded, others[name], config)
    engine = student_engine(
        execution.engine, loaded, execution.batch_size, execution.tensor_parallel
    )  # takes what memory is left
    return Cast(Member(loaded, engine), teachers, others)


def _devices(device: str) -> list[str]:
    """The devices to spread models over: every GPU where none is named, else the one that is."""
    if device == "auto" and torch.cuda.device_count() > 1:
        return [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    return [device]


def _load(name: str, options: LoadOptions) -> Member:
    loaded = load_model(name, options)
    model = loaded.language_model
    assert isinstance(model, CausalLanguageModel)
    return Member(loaded, HFEngine(model, loaded.codec.stop_ids, options.batch_size))


def _served(name: str, student: LoadedModel, options: LoadOptions, config: RunConfig, teaches: bool) -> Member:
    from gradalign.engines.server import ServerEngine  # needs the extra `server`
    from gradalign.models.served import ServedModel, load_served

    loaded = load_served(name, student, options, config.teacher_top_k, teaches)
    model = loaded.language_model
    assert isinstance(model, ServedModel)
    span = model.vocabulary_size
    if teaches and model.top_k < span:
        rough = ", ".join(spec for spec in config.objectives if not parse_objective(spec).teacherless)
        told = f"{name}: the top {model.top_k} tokens are known; the rest is one bucket, spread as the student spreads it"
        loaded = replace(loaded, notices=(f"{told}, so {rough} are approximate (the column `tail` says how much was spread)",))
    return Member(loaded, ServerEngine(model.endpoint, loaded.codec.stop_ids, span, span))


def _fitting(name: str, student: LoadedModel, member: Member, config: RunConfig) -> Member:
    """A teacher over the student's tokens: as it is, or aligned by text where its tokenizer is another and that is asked for."""
    ours, theirs = student.codec, member.model.codec
    differing = differing_tokens(ours, theirs) if isinstance(ours, ChatCodec) and isinstance(theirs, ChatCodec) else []
    if not (config.cross_tokenizer and differing):
        _require_fit(student, member.model)
        return member
    from gradalign.models.cross import cross_tokenizer

    summing = [spec for spec in config.objectives if _sums_logprobs(spec)]
    if summing:
        raise GradalignError(
            f"objective {summing[0]} sums a teacher's log-probabilities over whole rollouts, and {name}, which has another tokenizer, does "
            "not tell all of them; leave the objective out, or choose a teacher of the student's family"
        )
    aligned = cross_tokenizer(student, member.model)
    rough = ", ".join(spec for spec in config.objectives if not parse_objective(spec).teacherless)
    notice = (
        f"approximate: {name} has another tokenizer ({len({token for token, _ in differing}):,} tokens differ), so its probabilities are "
        f"told over the student's tokens by the text that they write, and {rough} are approximate (the column `tail` says what is untold)"
    )
    return replace(member, model=replace(aligned, notices=(*aligned.notices, notice)))


def _sums_logprobs(spec: str) -> bool:
    outcome = parse_objective(spec).outcome
    return outcome is not None and outcome.kind in ("future_return", "pair_weight")


def _require_fit(student: LoadedModel, teacher: LoadedModel) -> None:
    if isinstance(student.codec, ChatCodec) and isinstance(teacher.codec, ChatCodec):
        require_same_vocabulary(student.codec, teacher.codec)
    ours, theirs = student.language_model, teacher.language_model
    if ours.vocabulary_size != theirs.vocabulary_size:
        raise GradalignError(
            f"teacher {theirs.name!r} has {theirs.vocabulary_size:,} logits, student {ours.name!r} {ours.vocabulary_size:,}; "
            "choose a teacher whose output layer covers the student's tokens"
        )
