"""The numbers of `vocabulary.chunk_numbers` on a GPU, by kernels that read the logits three times and write nothing as wide as they are.

The plain form is the definition, and tests hold these kernels to it. They know the objectives whose directions are told by the two
distributions, or by these and the tokens that rollouts took; with any other the plain form is used.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gradalign.models.memory import sent
from gradalign.objectives import Objective
from gradalign.pipeline.dense import LARGEST
from gradalign.pipeline.vocabulary import SHORTEST, TOP, Stepping, Taken
from gradalign.sketch import OuterSketch

try:
    from gradalign.pipeline.kernels import DEEP, GROUP, TILE, WIDE, numbers_kernel, top_kernel
except ImportError:  # no Triton: no GPU, or not one of its kind
    numbers_kernel = top_kernel = None

_TINY = torch.finfo(torch.float32).tiny
_WARPS = 16
_SUMS = (
    "student_lse", "teacher_lse", "student_entropy", "teacher_entropy", "reverse_kl", "forward_kl", "jsd", "distance2", "product",
    "student2", "teacher2", "ratio2",
)  # fmt: skip
_SLOTS = ("reverse", "forward", "jsd")
_MOMENTS = ("mean", "pull", "norm2", "lift2")
_MAXIMA = ("student", "teacher", "distance", "reverse", "jsd")


@dataclass(frozen=True)
class _Form:
    """A direction as the kernels know it: the `slot` of its expectation, and whether it is itself that at the tokens rollouts took."""

    slot: str
    beta: float = 0.5
    sampled: bool = False


def _form(objective: Objective) -> _Form | None:
    name, _, parameter = objective.name.partition(":")
    if objective.function is not None or "@" in objective.name:
        return None
    if name in ("reverse_kl", "minillm", "pbsd_target", "sampled_kl"):
        return _Form("reverse", sampled=name == "sampled_kl")
    if name == "jsd":
        return _Form("jsd", float(parameter))
    return _Form("forward") if name == "forward_kl" else None


def can_fuse(objectives: Sequence[Objective], stepping: Stepping, device: torch.device) -> bool:
    """Do the kernels know all of this?"""
    if numbers_kernel is None or device.type != "cuda" or not stepping.by_rows or stepping.sketch.length % TILE:
        return False
    forms = [_form(objective) for objective in objectives]
    return None not in forms and len({form.beta for form in forms if form is not None and form.slot == "jsd"}) <= 1


def fused_numbers(
    scores: Sequence[Float[Tensor, "N V"]],
    factors: Sequence[float],
    taken: Taken,
    objectives: Sequence[Objective],
    ranked: int,
    sketch: OuterSketch,
) -> tuple[dict[str, Tensor], list[list[Tensor]]]:
    """What `chunk_numbers` gives, with sketched rows in place of directions, from scores whose log-softmax after multiplication with
    `factors` are the log-probabilities of the student and then the teachers."""
    forms = [form for form in map(_form, objectives) if form is not None]
    looks = [
        _Look.at(scores[0], other, factors[0], factor, forms, sketch)
        for other, factor in zip(scores[1:], factors[1:], strict=True)
    ]
    first = looks[0]
    children = sent(taken.tokens_NS, scores[0].device)
    share = sent(taken.share_NS.astype(np.float32), scores[0].device)

    mine = first.best(first.maxima["student"], max(TOP, ranked), lambda tokens: first.scores[0].gather(1, tokens))
    theirs = [look.best(look.maxima["teacher"], TOP, lambda at, look=look: look.scores[1].gather(1, at)) for look in looks]
    pairs = [
        (look, form, look.moments[form.slot]["norm2"].sqrt().clamp_min(SHORTEST)[:, None]) for look in looks for form in forms
    ]
    strength = first.best(
        torch.stack([look.bound(form.slot) / length for look, form, length in pairs]).amax(0),
        ranked,
        lambda tokens: torch.stack([look.direction(form, tokens).abs() / length for look, form, length in pairs]).amax(0),
    )
    distance = first.best(
        torch.stack([look.maxima["distance"] for look in looks]).amax(0),
        ranked,
        lambda tokens: torch.stack([look.direction(_Form("forward"), tokens).abs() for look in looks]).amax(0),
    )
    kept = torch.cat([children, strength, distance, mine[:, :ranked]], dim=1)
    at = kept.clamp_min(0)
    sampled = [_Sampled.at(look, children, share) if any(form.sampled for form in forms) else None for look in looks]

    grid = [
        [(look, form, sample if form.sampled else None) for form in forms] for look, sample in zip(looks, sampled, strict=True)
    ]

    def every(value: Callable[[_Look, _Form, "_Sampled | None"], Tensor]) -> Tensor:
        return torch.stack([torch.stack([value(*cell) for cell in row]) for row in grid])

    numbers = {
        "student_lse_N": first.sums["student_lse"],
        "teacher_lse_CN": torch.stack([look.sums["teacher_lse"] for look in looks]),
        "kept_NK": kept,
        "student_logprobs_NK": first.logprobs(at)[0],
        "teacher_logprobs_CNK": torch.stack([look.logprobs(at)[1] for look in looks]),
        "direction_CONK": every(
            lambda look, form, sample: sample.direction(look, kept) if sample else look.direction(form, at)
        ),
        "direction_norm2_CON": every(
            lambda look, form, sample: sample.norm2(look) if sample else look.moments[form.slot]["norm2"]
        ),
        "pull_CON": every(lambda look, form, _: look.moments[form.slot]["pull"]),
        "expected_norm2_CON": every(lambda look, form, _: look.moments[form.slot]["norm2"]),
        "lift_CONK": every(lambda look, form, _: look.direction(form, at) - look.moments[form.slot]["pull"][:, None]),
        "lift2_CON": every(lambda look, form, _: look.moments[form.slot]["lift2"]),
        "ratio2_CN": torch.stack([(look.sums["ratio2"] - 1).clamp_min(0) for look in looks]),
        "student_entropy_N": first.sums["student_entropy"],
        "divergence_CND": torch.stack(
            [_divergences(look, mine[:, :TOP], top) for look, top in zip(looks, theirs, strict=True)]
        ),
    }
    rows = [[sample.rows(look, sketch) if sample else look.rows[form.slot] for look, form, sample in row] for row in grid]
    return numbers, rows


@dataclass(frozen=True, eq=False)
class _Look:
    """What the kernel found at N nodes for student and one teacher: sums, moments (N,), maxima of groups (N, B), sketched rows (N, L)."""

    scores: tuple[Tensor, Tensor]
    factors: tuple[float, float]
    beta: float
    shifts_R: Tensor
    length: int
    sums: dict[str, Tensor]
    moments: dict[str, dict[str, Tensor]]
    maxima: dict[str, Tensor]
    rows: dict[str, Tensor]

    @classmethod
    def at(
        cls,
        student: Tensor,
        teacher: Tensor,
        student_factor: float,
        teacher_factor: float,
        forms: Sequence[_Form],
        sketch: OuterSketch,
    ) -> "_Look":
        nodes, device, length = len(student), student.device, sketch.length
        slots = {form.slot for form in forms}
        beta = next((form.beta for form in forms if form.slot == "jsd"), 0.5)
        wanted = slots | ({"student"} if any(form.sampled for form in forms) else set())
        kept = [name for name in (*_SLOTS, "student") if name in wanted]
        shifts = sketch.shifts_on(device)
        sums, moments = (torch.empty(nodes, width, device=device) for width in (len(_SUMS), len(_SLOTS) * len(_MOMENTS)))
        maxima = torch.empty(nodes, len(_MAXIMA), length // GROUP, device=device)
        rows = torch.empty(nodes, len(kept), length, device=device)
        place = {name: kept.index(name) if name in kept else -1 for name in (*_SLOTS, "student")}
        numbers_kernel[(nodes,)](  # pyright: ignore[reportIndexIssue, reportOptionalSubscript]
            student, teacher, student.stride(0), teacher.stride(0), student_factor, teacher_factor, beta,
            shifts, sketch.signs(torch.empty(0, dtype=torch.bfloat16, device=device)), sums, moments, maxima, rows,
            VOCABULARY=student.shape[1], RUNS=len(sketch.shifts), LENGTH=length, TILE=TILE, GROUP=GROUP, DEEP=DEEP,
            WIDE=1 if wanted & {"jsd", "student"} else WIDE,  # with more to remember, registers would spill
            KEPT=len(kept), LARGEST=LARGEST, REVERSE=place["reverse"], FORWARD=place["forward"], JSD=place["jsd"], STUDENT=place["student"],
            EVEN=beta == 0.5, NVIDIA=student.is_cuda and torch.version.cuda is not None, num_warps=_WARPS,
        )  # fmt: skip
        found = moments.unflatten(1, (len(_SLOTS), len(_MOMENTS)))
        return cls(
            (student, teacher), (student_factor, teacher_factor), beta, shifts, length,
            dict(zip(_SUMS, sums.unbind(1), strict=True)),
            {slot: dict(zip(_MOMENTS, found[:, i].unbind(1), strict=True)) for i, slot in enumerate(_SLOTS)},
            dict(zip(_MAXIMA, maxima.unbind(1), strict=True)),
            {name: rows[:, i] for i, name in enumerate(kept)},
        )  # fmt: skip

    def members(self, groups_NB: Tensor) -> Tensor:
        """The tokens that share neighbouring buckets of the sketch: (N, B x group x runs)."""
        bucket = groups_NB[:, :, None] * GROUP + torch.arange(GROUP, device=groups_NB.device)
        place = (bucket[..., None] - self.shifts_R) % self.length
        return (place + torch.arange(len(self.shifts_R), device=place.device) * self.length).flatten(1)

    def best(self, bound_NB: Tensor, count: int, score: Callable[[Tensor], Tensor]) -> Tensor:
        """The best `count` tokens of each row, best first, which lie in the `count` groups with the best maxima."""
        tokens = self.members(_top(bound_NB, count))
        vocabulary = self.scores[0].shape[1]
        scores = score(tokens.clamp_max(vocabulary - 1)).masked_fill_(tokens >= vocabulary, -torch.inf)
        return tokens.gather(1, _top(scores, count))

    def bound(self, slot: str) -> Tensor:
        """Maxima of |d| in each group."""
        return self.maxima["distance" if slot == "forward" else slot]

    def logprobs(self, tokens_NK: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities of student and teacher at a few tokens."""
        student, teacher = (
            scores.gather(1, tokens_NK).float() * factor - self.sums[lse][:, None]
            for scores, factor, lse in zip(self.scores, self.factors, ("student_lse", "teacher_lse"), strict=True)
        )
        return student, teacher

    def direction(self, form: _Form, tokens_NK: Tensor) -> Tensor:
        """The expected direction at a few tokens."""
        s, t = self.logprobs(tokens_NK)
        if form.slot == "forward":
            return t.exp() - s.exp()
        mixture = (form.beta * t.exp() + (1 - form.beta) * s.exp()).clamp_min(_TINY).log()
        signal = t - s if form.slot == "reverse" else (1 - form.beta) * (mixture - s)
        return s.exp() * (signal - self.moments[form.slot]["mean"][:, None])


def _top(values_NM: Tensor, count: int) -> Tensor:
    """The places of the `count` largest in each row, largest first."""
    places = torch.empty(len(values_NM), count, dtype=torch.int64, device=values_NM.device)
    width = values_NM.shape[1]
    top_kernel[(len(values_NM),)](  # pyright: ignore[reportIndexIssue, reportOptionalSubscript]
        values_NM, values_NM.stride(0), places, WIDTH=width, PADDED=1 << (width - 1).bit_length(), COUNT=count, num_warps=4
    )
    return places


@dataclass(frozen=True, eq=False)
class _Sampled:
    """The direction of `sampled_kl`, -pi_j mean + share_j (log tau_j - log pi_j), with tokens (N, S) that rollouts took."""

    tokens_NS: Tensor
    part_NS: Tensor
    probs_NS: Tensor
    mean_N: Tensor

    @classmethod
    def at(cls, look: _Look, tokens_NS: Tensor, share_NS: Tensor) -> "_Sampled":
        s, t = look.logprobs(tokens_NS.clamp_min(0))
        part = torch.where(tokens_NS >= 0, share_NS * (t - s), 0.0)
        return cls(tokens_NS, part, torch.where(tokens_NS >= 0, s.exp(), 0.0), part.sum(-1))

    def direction(self, look: _Look, kept_NK: Tensor) -> Tensor:
        s, _ = look.logprobs(kept_NK.clamp_min(0))
        same = kept_NK.clamp_min(0)[:, :, None] == self.tokens_NS[:, None, :]
        return (same * self.part_NS[:, None, :]).sum(-1) - s.exp() * self.mean_N[:, None]

    def norm2(self, look: _Look) -> Tensor:
        elsewhere = (look.sums["student2"] - self.probs_NS.square().sum(-1)).clamp_min(0)
        return elsewhere * self.mean_N**2 + (self.part_NS - self.probs_NS * self.mean_N[:, None]).square().sum(-1)

    def rows(self, look: _Look, sketch: OuterSketch) -> Tensor:
        tokens = self.tokens_NS.clamp_min(0)
        bucket = (tokens + look.shifts_R[tokens // look.length]) % look.length
        signed = self.part_NS * sketch.signs(self.part_NS)[tokens]
        return (-self.mean_N[:, None] * look.rows["student"]).scatter_add_(1, bucket, signed)


def _divergences(look: _Look, mine_NT: Tensor, theirs_NT: Tensor) -> Tensor:
    """In the order of `DIVERGENCES`: (N, D)."""
    sums = look.sums
    columns = [
        sums["reverse_kl"],
        sums["forward_kl"],
        sums["jsd"],
        sums["distance2"].sqrt(),
        sums["product"] / (sums["student2"] * sums["teacher2"]).sqrt(),
        sums["teacher_entropy"],
        (mine_NT[:, :, None] == theirs_NT[:, None, :]).any(-1).double().mean(-1),
        look.logprobs(theirs_NT)[0].exp().sum(-1),
        look.logprobs(mine_NT)[1].exp().sum(-1),
    ]
    return torch.stack([column.double() for column in columns], dim=-1)
