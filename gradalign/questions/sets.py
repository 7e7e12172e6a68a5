"""Named question sets as data: where on the hub each lies, in which configurations and splits, and what its source text means.

Knows names alone; reads no file and reaches no network.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field

from gradalign.types import AnswerKind, GradalignError

MMLU_SUBJECTS = (
    "abstract_algebra", "anatomy", "astronomy", "business_ethics", "clinical_knowledge", "college_biology",
    "college_chemistry", "college_computer_science", "college_mathematics", "college_medicine", "college_physics",
    "computer_security", "conceptual_physics", "econometrics", "electrical_engineering", "elementary_mathematics",
    "formal_logic", "global_facts", "high_school_biology", "high_school_chemistry", "high_school_computer_science",
    "high_school_european_history", "high_school_geography", "high_school_government_and_politics",
    "high_school_macroeconomics", "high_school_mathematics", "high_school_microeconomics", "high_school_physics",
    "high_school_psychology", "high_school_statistics", "high_school_us_history", "high_school_world_history", "human_aging",
    "human_sexuality", "international_law", "jurisprudence", "logical_fallacies", "machine_learning", "management",
    "marketing", "medical_genetics", "miscellaneous", "moral_disputes", "moral_scenarios", "nutrition", "philosophy",
    "prehistory", "professional_accounting", "professional_law", "professional_medicine", "professional_psychology",
    "public_relations", "security_studies", "sociology", "us_foreign_policy", "virology", "world_religions",
)  # fmt: skip


@dataclass(frozen=True)
class Part:
    """One configuration of a data set on the hub; `label` goes before the ids of its questions where several years are put together."""

    repository: str
    configuration: str | None = None
    label: str | None = None


@dataclass(frozen=True)
class NamedSet:
    """A set by name: its parts by variant (as `2024` of `aime`), the variants that its bare name stands for, its splits, and its kind."""

    name: str
    variants: Mapping[str, Part]
    bare: tuple[str, ...]
    splits: tuple[str, ...]
    kind: AnswerKind
    gated: bool = False


@dataclass(frozen=True)
class HubSource:
    """What to read from the hub for one source text: parts one after the other, and how the answers of a known set are graded."""

    text: str
    parts: tuple[Part, ...]
    splits: tuple[str, ...] = ()
    kind: AnswerKind | None = None
    gated: bool = field(default=False)


def _whole(repository: str, configuration: str) -> dict[str, Part]:
    return {"": Part(repository, configuration)}


_MMLU = {name: Part("cais/mmlu", name) for name in ("all", *MMLU_SUBJECTS)}
_AIME = {
    "2024": Part("HuggingFaceH4/aime_2024", "default", "2024"),
    "2025": Part("MathArena/aime_2025", "default", "2025"),
    "2026": Part("MathArena/aime_2026", "default", "2026"),
}
_GPQA = {name: Part("Idavidrein/gpqa", f"gpqa_{name}") for name in ("diamond", "main", "extended")}

# The first split of each is the one that is read unless another is asked for.
SETS = {
    named.name: named
    for named in (
        NamedSet("boolq", _whole("google/boolq", "default"), ("",), ("train", "validation"), "boolean"),
        NamedSet("mmlu", _MMLU, ("all",), ("test", "validation", "dev", "auxiliary_train"), "choice"),
        NamedSet("aime", _AIME, tuple(_AIME), ("train",), "numeric"),
        NamedSet("gsm8k", _whole("openai/gsm8k", "main"), ("",), ("train", "test"), "numeric"),
        NamedSet("math500", _whole("HuggingFaceH4/MATH-500", "default"), ("",), ("test",), "math"),
        NamedSet("gpqa", _GPQA, ("diamond",), ("train",), "choice", gated=True),
    )
}


def hub_source(text: str) -> HubSource | None:
    """What a source text such as `mmlu:anatomy,virology` or `hf://OWNER/NAME:CONFIG` asks of the hub; None if it is no such text."""
    if text.startswith("hf://"):
        repository, _, configuration = text.removeprefix("hf://").partition(":")
        if repository.count("/") != 1 or not all(repository.split("/")):
            raise GradalignError(f"{text!r} names no data set; write hf://OWNER/NAME or hf://OWNER/NAME:CONFIG")
        return HubSource(text, (Part(repository, configuration or None),))
    name, _, chosen = text.partition(":")
    named = SETS.get(name)
    if named is None:
        return None
    asked = [variant.strip() for variant in chosen.split(",")] if chosen else list(named.bare)
    for variant in asked:
        if variant not in named.variants:
            raise GradalignError(_unknown_variant(named, text, variant))
    parts = tuple(named.variants[variant] for variant in dict.fromkeys(asked))
    return HubSource(text, parts, named.splits, named.kind, named.gated)


def near_names(name: str) -> str:
    """The named sets, the nearest first."""
    near = difflib.get_close_matches(name.partition(":")[0].lower(), SETS, n=1)
    return ", ".join(dict.fromkeys([*near, *SETS]))


def _unknown_variant(named: NamedSet, text: str, variant: str) -> str:
    known = [name for name in named.variants if name]
    if not known:
        return f"{named.name} has no parts to choose from: write {named.name}, not {text}"
    near = difflib.get_close_matches(variant, known, n=3, cutoff=0.5) or known[:3]
    return f"{named.name} has no part {variant!r}; the nearest are {', '.join(near)}, as {named.name}:{near[0]}"
