"""Training configurations as users write them down: who teaches, by which objective, and how questions and tokens are weighted.

A YAML file holds a list, or a mapping whose key `configurations` holds it:

    - name: paced, two stages
      teacher: ctx:correct_demo
      objective: [forward_kl, reverse_kl]
      step: 1
      questions: paced:1:1
      tokens: all

`load_configurations` reads one, or every one in a folder; whatever is wrong is named with its file and line. Nothing in a file is executed.
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from jaxtyping import Float

from gradalign.contexts import parse_teacher
from gradalign.endpoint import PREFIX, parse_address
from gradalign.home import expanded
from gradalign.types import REWARDS, GradalignError

QuestionKind = Literal["uniform", "paced"]
TokenKind = Literal["all", "incorrect_paths", "entropy_top", "positive_alignment"]
_QUESTIONS = "uniform or paced:ALPHA:BETA, as paced:1:1"
_TOKENS = "all, incorrect_paths, entropy_top:SHARE (as entropy_top:0.2) or positive_alignment"


@dataclass(frozen=True)
class QuestionWeighting:
    """How much each question counts in training: all alike, or w(p) = p^alpha (1 - p)^beta of its pass rate (PACED, arXiv 2603.11178)."""

    kind: QuestionKind = "uniform"
    alpha: float = 1.0
    beta: float = 1.0

    def weights(self, pass_rate_Q: Float[np.ndarray, " Q"]) -> Float[np.ndarray, " Q"]:
        """Weights of mean 1; NaN if every question would have weight 0."""
        if self.kind == "uniform":
            return np.ones(len(pass_rate_Q))
        weight = pass_rate_Q**self.alpha * (1 - pass_rate_Q) ** self.beta
        with np.errstate(divide="ignore", invalid="ignore"):
            return weight / weight.mean()

    def __str__(self) -> str:
        return "uniform" if self.kind == "uniform" else f"paced:{self.alpha:g}:{self.beta:g}"


@dataclass(frozen=True)
class TokenWeighting:
    """Which tokens count: all, those on paths that ended wrong, of each question the `share` of highest entropy, or those with positive
    alignment.

    `positive_alignment` knows the answer that training would have to find: an oracle analysis, not a configuration to train.
    """

    kind: TokenKind = "all"
    share: float = 1.0

    def factors(
        self, entropy_N: Float[np.ndarray, " N"], visits_N: Float[np.ndarray, " N"], wrong_N: Float[np.ndarray, " N"]
    ) -> Float[np.ndarray, " N"]:
        """How much the tokens at each node of a question count, from entropies (nats), visits, and the share of visits that went wrong.

        Nodes of equal entropy stand or fall together.
        """
        if self.kind == "positive_alignment":
            raise ValueError("alignment is known at scored nodes only")
        if self.kind == "incorrect_paths":
            return wrong_N
        if self.kind == "all":
            return np.ones(len(entropy_N))
        levels, at = np.unique(-entropy_N.round(9), return_inverse=True)
        held = np.bincount(at, visits_N, minlength=len(levels))
        higher = (np.cumsum(held) - held)[at] / visits_N.sum()  # share of visited tokens with higher entropy
        return (higher < self.share).astype(np.float64)

    def __str__(self) -> str:
        return f"entropy_top:{self.share:g}" if self.kind == "entropy_top" else self.kind


@dataclass(frozen=True)
class Configuration:
    """A training configuration. `teacher` is None where the objective looks at rewards alone (`dr_grpo`, `success`).

    With `then`, half of the training follows that objective, at the policy that a step of size `step` (in the logits, along the first
    objective's direction) would give.
    """

    name: str
    objective: str
    teacher: str | None = None
    then: str | None = None
    step: float = 1.0
    questions: QuestionWeighting = QuestionWeighting()
    tokens: TokenWeighting = TokenWeighting()
    temperature: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what makes no sense, in a line."""
        if not self.name.strip():
            raise GradalignError("a configuration needs a name")
        if not self.objective.strip():
            raise GradalignError(f"configuration {self.name!r} needs an objective")
        if self.teacher is not None:
            parse_teacher(self.teacher)
        if not 0 < self.step < np.inf:
            raise GradalignError(f"configuration {self.name!r} has step {self.step}; it must be above 0")
        if not 0 < self.temperature < np.inf:
            raise GradalignError(f"configuration {self.name!r} has temperature {self.temperature}; it must be above 0")

    @property
    def objectives(self) -> tuple[str, ...]:
        """The objective of each stage as the rows of a run name it."""
        return (self.objective,) if self.then is None else (self.objective, f"{self.then}@{self.objective}*{self.step:g}")

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """Teacher and objective of each stage as the rows of a run name them."""
        return tuple((self.teacher or REWARDS, objective) for objective in self.objectives)


def step_weightings(configurations: Sequence[Configuration]) -> tuple[str, ...]:
    """The token weightings, beyond all tokens alike, that a run has to keep steps under to tell the configurations' transfer."""
    kinds = (c.tokens for c in configurations if c.tokens.kind not in ("all", "positive_alignment"))
    return tuple(dict.fromkeys(map(str, kinds)))


def unnamed_servers(configurations: Sequence[Configuration], named: Sequence[str]) -> tuple[str, ...]:
    """Served models that configurations bring in, on servers that none of `named` (teachers, or an engine) is on."""
    known = {parse_address(name).origin for spec in named for name in _served(spec)}
    brought = (name for c in configurations if c.teacher is not None for name in _served(c.teacher))
    return tuple(dict.fromkeys(name for name in brought if parse_address(name).origin not in known))


def _served(spec: str) -> list[str]:
    """The served models in the spec of a teacher or an engine."""
    if not spec.startswith((PREFIX, "model:", "ctx:")):
        return []
    teacher = parse_teacher(spec)
    return [name for name in (teacher.model, teacher.source) if name is not None and name.startswith(PREFIX)]


def parse_questions(text: str, key: str = "questions") -> QuestionWeighting:
    """`uniform`, `paced` or `paced:ALPHA:BETA`; `key` is what a fault calls it."""
    kind, *numbers = text.split(":")
    if kind == "uniform" and not numbers:
        return QuestionWeighting()
    if kind == "paced" and len(numbers) in (0, 2):
        alpha, beta = _numbers(numbers, f"{key} {text!r} is not understood; write {_QUESTIONS}") if numbers else (1.0, 1.0)
        if alpha >= 0 and beta >= 0:
            return QuestionWeighting("paced", alpha, beta)
    raise GradalignError(f"{key} {text!r} is not understood; write {_QUESTIONS}")


def parse_tokens(text: str, key: str = "tokens") -> TokenWeighting:
    """`all`, `incorrect_paths`, `entropy_top:SHARE` or `positive_alignment`; `key` is what a fault calls it."""
    message = f"{key} {text!r} is not understood; write {_TOKENS}"
    kind, _, share = text.partition(":")
    if kind == "entropy_top":
        (value,) = _numbers([share], message)
        if 0 < value <= 1:
            return TokenWeighting("entropy_top", value)
    elif kind in ("all", "incorrect_paths", "positive_alignment") and not share:
        return TokenWeighting(kind)
    raise GradalignError(message)


def _numbers(texts: Sequence[str], message: str) -> tuple[float, ...]:
    try:
        values = tuple(float(text) for text in texts)
    except ValueError as error:
        raise GradalignError(message) from error
    if not np.isfinite(values).all():
        raise GradalignError(message)
    return values


_DEEPEST = 50
_SETTINGS = ("name", "teacher", "objective", "step", "questions", "tokens", "temperature")


def load_configurations(path: str | Path) -> tuple[Configuration, ...]:
    """Every configuration of a YAML file, or of all `.yaml` files of a folder in the order of their names."""
    place = expanded(path)
    files = sorted(place.glob("*.yaml")) if place.is_dir() else [place]
    if not files:
        raise GradalignError(f"folder {place} holds no .yaml file; give a file of configurations")
    found: list[Configuration] = []
    for file in files:
        found += _read(file)
    names = [configuration.name for configuration in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise GradalignError(f"two configurations in {place} are named {twice!r}; give each a name of its own")
    return tuple(found)


def _read(file: Path) -> list[Configuration]:
    try:
        text = file.read_text(encoding="utf-8")
        if _depth(text) > _DEEPEST:  # the time that PyYAML takes grows with the square of the depth
            raise GradalignError(f"{file}: not YAML: nested too deep")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except (OSError, ValueError) as error:
        raise GradalignError(f"configurations {file} cannot be read: {error}") from error
    except (yaml.reader.ReaderError, RecursionError) as error:
        why = "nested too deep" if isinstance(error, RecursionError) else str(error).splitlines()[0]
        raise GradalignError(f"{file}: not YAML: {why}") from error
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise GradalignError(f"{file}{line}: not YAML: {error.problem}") from error
    if isinstance(node, yaml.MappingNode):
        entries = _entries(node, ("configurations",), file)
        node = entries.get("configurations")
    if not isinstance(node, yaml.SequenceNode) or not node.value:
        raise GradalignError(f"{file}: holds no list of configurations; begin each with `- name: …`")
    return [_configuration(item, file) for item in node.value]


def _depth(text: str) -> int:
    """How many brackets are open at once, at most."""
    return max(accumulate((1 if c in "[{" else -1 for c in text if c in "[]{}"), initial=0))


def _entries(node: yaml.MappingNode, known: Sequence[str], file: Path) -> dict[str, yaml.Node]:
    """Values by key; an unknown key, or one given twice, is refused with its line."""
    found: dict[str, yaml.Node] = {}
    for key, value in node.value:
        if key.value not in known:
            close = difflib.get_close_matches(str(key.value), known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"choose from {', '.join(known)}"
            raise GradalignError(f"{_at(file, key)}: no setting {key.value!r}; {hint}")
        if key.value in found:
            raise GradalignError(f"{_at(file, key)}: setting {key.value!r} is given twice; leave one out")
        found[key.value] = value
    return found


def _configuration(node: yaml.Node, file: Path) -> Configuration:
    if not isinstance(node, yaml.MappingNode):
        raise GradalignError(f"{_at(file, node)}: a configuration is a mapping; begin it with `- name: …`")
    places = _entries(node, _SETTINGS, file)
    for needed in ("name", "objective"):
        if needed not in places:
            raise GradalignError(f"{_at(file, node)}: a configuration needs `{needed}:`")
    settings: dict[str, Any] = {"name": _scalar(places["name"], "name", file)}
    settings |= dict(zip(("objective", "then"), _stages(places["objective"], file), strict=False))
    if "teacher" in places:
        settings["teacher"] = _scalar(places["teacher"], "teacher", file)
    for key, parse in (("questions", parse_questions), ("tokens", parse_tokens), ("temperature", _number), ("step", _number)):
        if key in places:
            text = _scalar(places[key], key, file)
            settings[key] = _placed(lambda parse=parse, text=text, key=key: parse(text, key), _at(file, places[key]))
    return _placed(lambda: Configuration(**settings), _at(file, places.get("teacher", node)))


def _stages(node: yaml.Node, file: Path) -> list[str]:
    """One objective, or a list of two that follow each other."""
    if not isinstance(node, yaml.SequenceNode):
        return [_scalar(node, "objective", file)]
    if len(node.value) not in (1, 2):
        raise GradalignError(f"{_at(file, node)}: objective lists {len(node.value)} stages; give one or two")
    return [_scalar(item, "objective", file) for item in node.value]


def _number(text: str, key: str) -> float:
    return _numbers([text], f"{key} {text!r} is not a number")[0]


def _scalar(node: yaml.Node, key: str, file: Path) -> str:
    if not isinstance(node, yaml.ScalarNode):
        raise GradalignError(f"{_at(file, node)}: {key} is one word or number, not a list or mapping")
    return str(node.value)


def _placed(make: Any, place: str) -> Any:
    """What `make` gives; what it refuses is named with its place."""
    try:
        return make()
    except GradalignError as error:
        raise GradalignError(f"{place}: {error}") from error


def _at(file: Path, node: yaml.Node) -> str:
    return f"{file}, line {node.start_mark.line + 1}"
