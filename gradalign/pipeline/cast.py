"""Who takes part in a run: the student with its engine, and the other models that teach or write demonstrations."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch

from gradalign.contexts import parse_teacher
from gradalign.engines import BATCH, Engine, HFEngine, student_engine
from gradalign.models import (
    SHARD,
    STUDENT,
    CausalLanguageModel,
    ChatCodec,
    Codec,
    LoadedModel,
    LoadOptions,
    Turn,
    crowded,
    differing_tokens,
    load_model,
    placed,
    read_placement,
    resolve_model,
    settle_span,
)
from gradalign.models.span import shared_span
from gradalign.models.weights import device_of
from gradalign.objectives import parse_objective
from gradalign.pipeline.config import Execution, RunConfig, sums_logprobs
from gradalign.pipeline.openings import opening_notices
from gradalign.questions import grade
from gradalign.types import GradalignError, Grade, Question, TeacherSpec


@dataclass(frozen=True, eq=False)
class Member:
    """A model and the engine that samples from it."""

    model: LoadedModel
    engine: Engine

    @cached_property
    def thinks(self) -> str:
        """`<think>` where the chat template opens hidden reasoning and leaves it open, so that rollouts begin within it; else nothing."""
        opening = self.model.codec.shown(self.model.codec.boundary("?"))
        return "<think>" if opening.rfind("<think>") > opening.rfind("</think>") else ""

    def graded(self, question: Question, text: str) -> Grade:
        """The grade of a text that the model goes on with behind its prompt."""
        return grade(question, self.thinks + text)


@dataclass(frozen=True, eq=False)
class Cast:
    """The student, and other models by the name the user gave them."""

    student: Member
    teachers: tuple[TeacherSpec, ...]
    others: Mapping[str, Member] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

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
        """What loading had to say, of each model and of all together, and what is to be said of the prompts."""
        own = [notice for member in (self.student, *self.others.values()) for notice in member.model.notices]
        return [*own, *self.remarks]


def load_cast(config: RunConfig, execution: Execution) -> Cast:
    """Load every model that the configuration names, then the student's engine; teachers must share the student's vocabulary.

    Those that are served are asked last, about the tokens that all others have in common.
    """
    teachers = tuple(parse_teacher(spec) for spec in config.teachers)
    teaching = {spec.model for spec in teachers if spec.model}
    names = sorted(teaching | {spec.source for spec in teachers if spec.source})
    served_names = [name for name in names if resolve_model(name).kind == "server"]
    local = [name for name in names if name not in served_names]
    named = placed(local, _devices(execution.device), read_placement(execution.place))
    place = {name: _settled(device) for name, device in named.items()}
    shared = LoadOptions(
        place[STUDENT], config.dtype, config.temperature, execution.batch_size or BATCH, config.chat_template, config.thinking,
        config.attention, config.quantize, config.trust_remote_code,
    )  # fmt: skip
    turns, remarks = _turns(config.student, {name: place[name] for name in local}, shared, execution.load)
    loaded = load_model(config.student, shared)
    others = {name: _load(name, replace(shared, device=place[name]), turns.get(place[name]), loaded.codec) for name in local}
    strangers = _strangers(loaded, {name: others[name].model for name in local if name in teaching}, config)
    fitting = [others[name].model for name in local if name in teaching and name not in strangers]
    span = min((shared_span(loaded, model) for model in fitting), default=loaded.language_model.vocabulary_size)
    remarks += settle_span([loaded, *fitting], span)
    for name, differing in strangers.items():
        others[name] = _aligned(name, loaded, others[name], differing, config)
    for name in served_names:
        others[name] = _served(name, loaded, shared, config, name in teaching, name not in execution.unnamed)
    remarks += opening_notices(loaded, {name: member.model for name, member in others.items()}, teachers)
    engine = student_engine(
        execution.engine, loaded, execution.batch_size, execution.tensor_parallel
    )  # takes what memory is left
    return Cast(Member(loaded, engine), teachers, {name: others[name] for name in names}, tuple(remarks))


def _turns(student: str, place: Mapping[str, str], options: LoadOptions, load: str) -> tuple[dict[str, Turn], list[str]]:
    """A turn for each device whose external models are loaded one after another, and why, where memory decided it."""
    if load == "in-turn":
        return {device: Turn() for device in place.values()}, []
    several = {device for device in place.values() if [*place.values()].count(device) > 1}
    if load == "together" or not several:
        return {}, []
    found = crowded([(student, options.device), *((name, device) for name, device in place.items())], options)
    short = {device: said for device, said in found.items() if device in several}
    why = [f"{said}: external models there are loaded one after another (--load together loads all)" for said in short.values()]
    return {device: Turn() for device in short}, why


def _devices(device: str) -> list[str]:
    """The devices to spread models over: every GPU where none is named, else the one that is."""
    if device == "auto" and torch.cuda.device_count() > 1:
        return [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    return [device]


def _settled(device: str) -> str:
    """The one name of a device that has several (auto, cuda, cuda:0)."""
    return device if device == SHARD else str(torch.empty(1, device=device_of(LoadOptions(device=device))).device)


def _load(name: str, options: LoadOptions, turn: Turn | None, student: Codec) -> Member:
    loaded = load_model(name, options, turn, student)
    model = loaded.language_model
    assert isinstance(model, CausalLanguageModel)
    return Member(loaded, HFEngine(model, loaded.codec.stop_ids, options.batch_size))


def _served(name: str, student: LoadedModel, options: LoadOptions, config: RunConfig, teaches: bool, named: bool) -> Member:
    from gradalign.engines.server import ServerEngine  # needs the extra `server`
    from gradalign.models.served import ServedModel, load_served

    loaded = load_served(name, student, options, config.teacher_top_k, teaches, named)
    model = loaded.language_model
    assert isinstance(model, ServedModel)
    span = model.vocabulary_size
    if teaches and model.top_k < span:
        rough = ", ".join(spec for spec in config.objectives if not parse_objective(spec).teacherless)
        told = f"{name}: the top {model.top_k} tokens are known; the rest is one bucket, spread as the student spreads it"
        loaded = replace(loaded, notices=(f"{told}, so {rough} are approximate (the column `tail` says how much was spread)",))
    return Member(loaded, ServerEngine(model.endpoint, loaded.codec.stop_ids, span, span))


def _strangers(student: LoadedModel, teachers: Mapping[str, LoadedModel], config: RunConfig) -> dict[str, int]:
    """Teachers whose tokenizer is another, where that is asked for, with how many tokens differ."""
    found = {}
    for name, teacher in teachers.items():
        ours, theirs = student.codec, teacher.codec
        if config.cross_tokenizer and isinstance(ours, ChatCodec) and isinstance(theirs, ChatCodec):
            differing = differing_tokens(ours, theirs)
            found |= {name: len({token for token, _ in differing})} if differing else {}
    return found


def _aligned(name: str, student: LoadedModel, member: Member, differing: int, config: RunConfig) -> Member:
    """A teacher with another tokenizer over the student's tokens, aligned by text."""
    from gradalign.models.cross import cross_tokenizer

    summing = [spec for spec in config.objectives if sums_logprobs(spec)]
    if summing:
        raise GradalignError(
            f"objective {summing[0]} sums a teacher's log-probabilities over whole rollouts, and {name}, which has another tokenizer, does "
            "not tell all of them; leave the objective out, or choose a teacher of the student's family"
        )
    aligned = cross_tokenizer(student, member.model)
    rough = ", ".join(spec for spec in config.objectives if not parse_objective(spec).teacherless)
    notice = (
        f"approximate: {name} has another tokenizer ({differing:,} tokens differ), so its probabilities are told over the student's tokens "
        f"by the text that they write, and {rough} are approximate (the column `tail` says what is untold)"
    )
    return replace(member, model=replace(aligned, notices=(*aligned.notices, notice)))
