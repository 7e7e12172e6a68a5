"""What a run is: every setting that its rows depend on, and apart from them those that only say how it is carried out."""

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

from gradalign.configurations import parse_tokens
from gradalign.contexts import parse_teacher
from gradalign.endpoint import PREFIX, parse_address, require_no_secret
from gradalign.models import read_placement
from gradalign.objectives import parse_objective
from gradalign.pipeline.pass_rates import parse_filter
from gradalign.plugins import imported
from gradalign.questions import KINDS, parse_columns
from gradalign.types import GradalignError


@dataclass(frozen=True)
class RunConfig:
    """The settings that rows depend on. Stored in run.json; a run goes on only under the same ones.

    `columns` says which column of the questions' source holds what, as `("question=QUERY",)`; of the first `limit` of its `split` a random
    `sample` is taken. `filter`, as `pass_rate:0.1-0.9`, leaves out questions by `filter_rollouts` rollouts of the student, never scored.

    `tokens` are token weightings, beyond all tokens alike, that steps are kept under. `max_tokens` None means 1,024, or half the student's
    window where that is less; it is settled when the student is loaded. `thinking` is what chat templates are told that have a switch for
    it. Privileged material longer than `context_tokens` loses its middle (None: nothing is cut). `attention`, `quantize` and
    `trust_remote_code` are those of every model that is loaded here (`models.LoadOptions`). `teacher_top_k` tokens of a served teacher
    are known at each node. `cross_tokenizer` lets teachers with another tokenizer in, aligned by the text of rollouts. `grader` is the kind
    of answer that every question is graded by, or the user's function as `MODULE:FUNCTION`; with None each question's own kind counts.
    `instruction` is said behind every question (None: as its kind has it; empty: nothing).
    """

    student: str
    questions: str
    teachers: tuple[str, ...]
    objectives: tuple[str, ...] = ("reverse_kl", "forward_kl")
    tokens: tuple[str, ...] = ()
    limit: int | None = None
    rollouts: int = 64
    demonstrations: int = 8
    teacher_rollouts: int = 0
    replicates: int = 4
    candidates: int = 4
    candidate_mass: float = 0.995
    min_visits: int = 4
    node_selection: str = "pps"
    allocation: str = "adaptive"
    max_tokens: int | None = None
    temperature: float = 1.0
    seed: int = 0
    dtype: str = "auto"
    chat_template: str | None = None
    thinking: bool = False
    context_tokens: int | None = None
    attention: str | None = None
    quantize: str | None = None
    trust_remote_code: bool = False
    teacher_top_k: int = 20
    cross_tokenizer: bool = False
    part_size: int = 8
    columns: tuple[str, ...] = ()
    split: str | None = None
    sample: int | None = None
    filter: str | None = None
    filter_rollouts: int = 8
    grader: str | None = None
    instruction: str | None = None

    def __post_init__(self) -> None:
        """Refuse settings that make no sense, in a line each."""
        if not self.student.startswith(PREFIX):
            require_no_secret(self.student, "a model", "HF_TOKEN")
        require_no_secret(self.questions, "a question set", "HF_TOKEN")
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise GradalignError(f"{name} is {value}; it must be at least {least}")
        if not 0 < self.temperature < math.inf:
            raise GradalignError(
                f"temperature is {self.temperature}; it must be above 0 and finite (greedy rollouts have no gradient)"
            )
        if not 0 < self.candidate_mass <= 1:
            raise GradalignError(f"candidate_mass is {self.candidate_mass}; it must be above 0 and at most 1")
        if self.node_selection not in ("pps", "top"):
            raise GradalignError(f"node_selection is {self.node_selection!r}; choose pps or top")
        if self.grader is not None and self.grader not in KINDS and imported(self.grader) is None:
            raise GradalignError(f"unknown grader {self.grader!r}; choose from {', '.join(KINDS)}, or give MODULE:FUNCTION")
        if self.quantize not in (None, "8bit", "4bit"):
            raise GradalignError(f"quantize is {self.quantize!r}; choose 8bit or 4bit, or leave it out")
        if self.allocation not in ("adaptive", "fixed"):
            raise GradalignError(f"allocation is {self.allocation!r}; choose adaptive or fixed")
        for kind, specs, parse in (("teacher", self.teachers, parse_teacher), ("objective", self.objectives, parse_objective)):
            if not specs:
                raise GradalignError(f"no {kind} given; give at least one --{kind}")
            if len({parse(spec).name for spec in specs}) < len(specs):
                raise GradalignError(f"a {kind} is given twice among {', '.join(specs)}; give each once")
            for spec in specs:
                parse(spec)
        if len({replace(parse_teacher(spec), name="") for spec in self.teachers}) < len(self.teachers):
            raise GradalignError(f"one teacher is written in two ways among {', '.join(self.teachers)}; give each once")
        if all(parse_objective(spec).teacherless for spec in self.objectives):
            raise GradalignError(
                f"{', '.join(self.objectives)} looks at rewards alone, and does not say which nodes matter; give an objective with a "
                "teacher beside it, as --objective reverse_kl"
            )
        parse_columns(self.columns)
        if self.filter is not None:
            parse_filter(self.filter)
        for spec in self.tokens:
            if str(parse_tokens(spec)) != spec or spec in ("all", "positive_alignment"):
                raise GradalignError(f"no steps can be kept for tokens {spec!r}; give incorrect_paths or entropy_top:SHARE")
        asking = next((spec for spec in self.objectives if needs_teacher_rollouts(spec)), None)
        if asking is not None and self.teacher_rollouts < 2:
            raise GradalignError(
                f"objective {asking} compares with rollouts of the teacher; give teacher_rollouts of at least 2, as 32"
            )

    @property
    def pairs(self) -> int:
        """How many pairs of teacher and objective are compared; an objective without a teacher counts once."""
        alone = sum(parse_objective(spec).teacherless for spec in self.objectives)
        return len(self.teachers) * (len(self.objectives) - alone) + alone

    @property
    def grader_function(self) -> str | None:
        """The user's own grader as `MODULE:FUNCTION`, if one is named."""
        return None if self.grader in KINDS else self.grader

    @property
    def longest(self) -> int:
        """`max_tokens` once it is settled."""
        if self.max_tokens is None:
            raise ValueError("max_tokens is settled when the student is loaded")
        return self.max_tokens

    def as_dict(self) -> dict[str, Any]:
        """The settings as JSON-ready values."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


def needs_teacher_rollouts(spec: str) -> bool:
    """Does the objective rest on rollouts that teachers sample themselves?"""
    outcome = parse_objective(spec).outcome
    return outcome is not None and outcome.kind == "pair_weight"


def sums_logprobs(spec: str) -> bool:
    """Does the objective sum a teacher's log-probabilities over rollouts to their end, targeted ones among them?"""
    outcome = parse_objective(spec).outcome
    return outcome is not None and outcome.kind in ("future_return", "pair_weight")


_LEAST = {
    "limit": 1, "teacher_rollouts": 0, "rollouts": 1, "demonstrations": 1, "replicates": 1, "candidates": 2, "min_visits": 2,
    "max_tokens": 1, "part_size": 1, "teacher_top_k": 1, "context_tokens": 1, "sample": 1, "filter_rollouts": 1,
}  # fmt: skip


@dataclass(frozen=True)
class Execution:
    """How a run is carried out; rows do not depend on it (up to floating-point ties), but for which engine samples.

    `engine` is what the student samples with: `auto`, `hf`, `vllm`, or `server:URL#MODEL`. `tensor_parallel` is the number of GPUs that one
    copy of the student is spread over in vLLM.

    On a machine with several GPUs the student is on the first and other models in turn on those after it (`models.placed`), unless `device`
    names one for all; `place` puts models elsewhere by name, as `("student=cuda:1",)`, or over all devices, as `("Qwen3-32B=shard",)`.

    `load` says whether external teachers that share a device are in memory `together` or `in-turn`; `auto` is in turn where
    they would not fit.

    `unnamed` are served models that only a file names, and not the user: no key of the environment goes to them.

    `batch_size` completions are under way at once (None: 256, and 2,048 with a student of under four million parameters).

    `executor` is `local` or `ray`. Local is this process, and where every model is small and on the CPU, `workers` forks of it (None: as
    many as torch uses threads; 1: this process alone). Ray is `workers` workers (None: as many as there is room for), each with
    `worker_cpus` CPUs and `worker_gpus` GPUs (None: one, if the cluster has any; fractions share one), over the cluster at `address` (None:
    this machine).
    """

    device: str = "auto"
    batch_size: int | None = None
    engine: str = "auto"
    tensor_parallel: int = 1
    place: tuple[str, ...] = ()
    executor: str = "local"
    workers: int | None = None
    worker_cpus: float = 1.0
    worker_gpus: float | None = None
    address: str | None = None
    load: str = "auto"
    unnamed: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.load not in ("auto", "together", "in-turn"):
            raise GradalignError(f"load is {self.load!r}; choose auto, together or in-turn")
        for name in ("batch_size", "tensor_parallel", "workers"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise GradalignError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("worker_cpus", "worker_gpus"):
            if getattr(self, name) is not None and not 0 <= getattr(self, name) < math.inf:
                raise GradalignError(f"{name} is {getattr(self, name)}; it must be at least 0")
        if self.engine.startswith(PREFIX):
            parse_address(self.engine)
        require_no_secret(self.address or "", "a cluster", "RAY_AUTH_TOKEN")
        read_placement(self.place)
        if self.executor not in ("local", "ray"):
            raise GradalignError(f"unknown executor {self.executor!r}; choose local or ray")
        given = [name for name in ("worker_gpus", "address") if getattr(self, name) is not None]
        if given and self.executor == "local":
            raise GradalignError(f"{given[0]} is for workers of a Ray cluster; give --executor ray, or leave it out")
