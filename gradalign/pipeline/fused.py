"""The numbers of `vocabulary.chunk_numbers` by kernels that read the logits a few times and write nothing as wide as they are: Triton's on
a GPU, C++ on a CPU.

The plain form is the definition, and tests hold these kernels to it. They know the objectives whose directions are told by the two
distributions, or by these and the tokens that rollouts took; with any other, as a function of the user's own, the plain form is used.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gradalign.models.memory import sent
from gradalign.models.norms import kernels_run
from gradalign.objectives import Objective
from gradalign.pipeline.dense import LARGEST
from gradalign.pipeline.native import compiled, native_numbers
from gradalign.pipeline.vocabulary import SHORTEST, TOP, Stepping, Taken
from gradalign.sketch import OuterSketch

try:
    from gradalign.pipeline.kernels import DEEP, WIDE, numbers_kernel, top_kernel
except ImportError:  # no Triton: no GPU, or not one of its kind
    numbers_kernel = top_kernel = None

TILE = 2048  # buckets of the sketch that kernels take at once divide this
GROUP = 8  # buckets with one maximum
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
    """A direction as the kernels know it: `scale` times the one in `slot`, or that of what was `sampled`, whose expectation this is."""

    slot: str
    beta: float = 0.5
    scale: float = 1.0
    sampled: Literal["log_ratio", "advantage"] | None = None


def _form(objective: Objective) -> _Form | None:
    name, _, parameter = objective.name.partition(":")
    if objective.function is not None or "@" in objective.name:
        return None
    if name == "jsd":
        return _Form("jsd", float(parameter))
    if name == "pbsd":
        return _Form("forward", scale=0.5 * float(parameter))
    return _FORMS.get(name)


_FORMS = {
    "reverse_kl": _Form("reverse"), "minillm": _Form("reverse"), "pbsd_target": _Form("reverse"), "forward_kl": _Form("forward"),
    "sampled_kl": _Form("reverse", sampled="log_ratio"), "success": _Form("forward", scale=0.0),
    "dr_grpo": _Form("forward", scale=0.0, sampled="advantage"),
}  # fmt: skip


def can_fuse(objectives: Sequence[Objective], stepping: Stepping, device: torch.device) -> bool:
    """Do the kernels know all of this, and are they to be had for the device?"""
    if not stepping.by_rows or stepping.sketch.length % TILE or any(_form(objective) is None for objective in objectives):
        return False
    if _natively(device):
        return compiled() is not None
    return device.type == "cuda" and numbers_kernel is not None and kernels_run(device)


def _natively(device: torch.device) -> bool:
    """Is it the C++ kernel that works there?"""
    return device.type == "cpu"


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
        _by_beta(scores[0], other, factors[0], factor, forms, sketch)
        for other, factor in zip(scores[1:], factors[1:], strict=True)
    ]
    main = [by_beta[None] for by_beta in looks]
    first = main[0]
    children = sent(taken.tokens_NS, scores[0].device)
    share, advantage = (sent(values.astype(np.float32), scores[0].device) for values in (taken.share_NS, taken.advantage_NS))

    mine = first.best(first.maxima["student"], max(TOP, ranked), lambda tokens: first.scores[0].gather(1, tokens))
    theirs = [look.best(look.maxima["teacher"], TOP, lambda at, look=look: look.scores[1].gather(1, at)) for look in main]
    pairs = [_Direction.at(by_beta, form, children, share, advantage) for by_beta in looks for form in forms]
    lengths = [pair.expected_norm2.sqrt().clamp_min(SHORTEST)[:, None] for pair in pairs]

    def expected(tokens: Tensor) -> list[Tensor]:
        told = {id(look): look.logprobs(tokens) for by_beta in looks for look in by_beta.values()}
        return [pair.expected(*told[id(pair.look)]) for pair in pairs]

    def strongest(parts: Sequence[Tensor]) -> Tensor:
        return torch.stack([part.abs() / length for part, length in zip(parts, lengths, strict=True)]).amax(0)

    strength = first.best(strongest([pair.bound for pair in pairs]), ranked, lambda tokens: strongest(expected(tokens)))
    distance = first.best(
        torch.stack([look.maxima["distance"] for look in main]).amax(0),
        ranked,
        lambda tokens: torch.stack([look.direction("forward", *look.logprobs(tokens)).abs() for look in main]).amax(0),
    )
    kept = torch.cat([children, strength, distance, mine[:, :ranked]], dim=1)
    at = kept.clamp_min(0)
    moved = expected(at)

    def grid(values: Sequence[Tensor]) -> Tensor:
        return torch.stack([*values]).unflatten(0, (len(looks), len(forms)))

    numbers = {
        "student_lse_N": first.sums["student_lse"],
        "teacher_lse_CN": torch.stack([look.sums["teacher_lse"] for look in main]),
        "kept_NK": kept,
        "student_logprobs_NK": first.logprobs(at)[0],
        "teacher_logprobs_CNK": torch.stack([look.logprobs(at)[1] for look in main]),
        "direction_CONK": grid([pair.itself(kept, d) for pair, d in zip(pairs, moved, strict=True)]),
        "direction_norm2_CON": grid([pair.norm2 for pair in pairs]),
        "pull_CON": grid([pair.pull for pair in pairs]),
        "expected_norm2_CON": grid([pair.expected_norm2 for pair in pairs]),
        "lift_CONK": grid([d - pair.pull[:, None] for pair, d in zip(pairs, moved, strict=True)]),
        "lift2_CON": grid([pair.lift2 for pair in pairs]),
        "ratio2_CN": torch.stack([(look.sums["ratio2"] - 1).clamp_min(0) for look in main]),
        "student_entropy_N": first.sums["student_entropy"],
        "divergence_CND": torch.stack([_divergences(look, mine[:, :TOP], top) for look, top in zip(main, theirs, strict=True)]),
    }
    rows = [pair.rows(sketch) for pair in pairs]
    return numbers, [rows[start : start + len(forms)] for start in range(0, len(rows), len(forms))]


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
        wanted: set[str],
        beta: float,
        sketch: OuterSketch,
    ) -> "_Look":
        """`wanted` are the slots whose moments are asked for, and `student` where its probabilities are to be sketched."""
        nodes, device, length = len(student), student.device, sketch.length
        kept = [name for name in (*_SLOTS, "student") if name in wanted]
        shifts = sketch.shifts_on(device)
        sums, moments = (torch.empty(nodes, width, device=device) for width in (len(_SUMS), len(_SLOTS) * len(_MOMENTS)))
        maxima = torch.empty(nodes, len(_MAXIMA), length // GROUP, device=device)
        rows = torch.empty(nodes, len(kept), length, device=device)
        place = {name: kept.index(name) if name in kept else -1 for name in (*_SLOTS, "student")}
        if _natively(device):
            student, teacher = (
                scores.float() if scores.stride(1) == 1 else scores.float().contiguous() for scores in (student, teacher)
            )
            native_numbers(
                student=student, teacher=teacher, student_stride=student.stride(0), teacher_stride=teacher.stride(0),
                student_factor=student_factor, teacher_factor=teacher_factor, beta=beta, largest=LARGEST,
                shifts=shifts, signs=sketch.signs(student), sums=sums, moments=moments, maxima=maxima, rows=rows,
                nodes=nodes, vocabulary=student.shape[1], runs=len(sketch.shifts), length=length, group=GROUP,
                kept=len(kept), reverse=place["reverse"], forward=place["forward"], jsd=place["jsd"], alone=place["student"],
            )  # fmt: skip
        else:
            with torch.cuda.device_of(student):  # Triton launches on the device whose turn it is
                numbers_kernel[(nodes,)](  # pyright: ignore[reportIndexIssue, reportOptionalSubscript]
                    student, teacher, student.stride(0), teacher.stride(0), student_factor, teacher_factor, beta,
                    shifts, sketch.signs(torch.empty(0, dtype=torch.bfloat16, device=device)), sums, moments, maxima, rows,
                    VOCABULARY=student.shape[1], RUNS=len(sketch.shifts), LENGTH=length, TILE=TILE, GROUP=GROUP, DEEP=DEEP,
                    WIDE=1 if wanted & {"jsd", "student"} else WIDE,  # with more to remember, registers would spill
                    KEPT=len(kept), LARGEST=LARGEST, REVERSE=place["reverse"], FORWARD=place["forward"], JSD=place["jsd"],
                    STUDENT=place["student"], EVEN=beta == 0.5, NVIDIA=student.is_cuda and torch.version.cuda is not None, num_warps=_WARPS,
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

    def logprobs(self, tokens_NK: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities of student and teacher at a few tokens."""
        student, teacher = (
            scores.gather(1, tokens_NK).float() * factor - self.sums[lse][:, None]
            for scores, factor, lse in zip(self.scores, self.factors, ("student_lse", "teacher_lse"), strict=True)
        )
        return student, teacher

    def direction(self, slot: str, s: Tensor, t: Tensor) -> Tensor:
        """A slot's direction at a few tokens, from the log-probabilities of both there."""
        if slot == "forward":
            return t.exp() - s.exp()
        mixture = (self.beta * t.exp() + (1 - self.beta) * s.exp()).clamp_min(_TINY).log()
        signal = t - s if slot == "reverse" else (1 - self.beta) * (mixture - s)
        return s.exp() * (signal - self.moments[slot]["mean"][:, None])


def _by_beta(
    student: Tensor, teacher: Tensor, student_factor: float, teacher_factor: float, forms: Sequence[_Form], sketch: OuterSketch
) -> dict[float | None, _Look]:
    """A look for each beta of a Jensen-Shannon divergence; None is the place of the one that has all else."""
    betas = [*dict.fromkeys(form.beta for form in forms if form.slot == "jsd")]
    wanted = {form.slot for form in forms} | ({"student"} if any(form.sampled for form in forms) else set())
    looks = [
        _Look.at(student, teacher, student_factor, teacher_factor, {"jsd"} if i else wanted, beta, sketch)
        for i, beta in enumerate(betas or [0.5])
    ]
    return {None: looks[0], **dict(zip(betas, looks, strict=False))}


def _top(values_NM: Tensor, count: int) -> Tensor:
    """The places of the `count` largest in each row, largest first."""
    if _natively(values_NM.device):
        return values_NM.topk(count).indices
    places = torch.empty(len(values_NM), count, dtype=torch.int64, device=values_NM.device)
    width = values_NM.shape[1]
    with torch.cuda.device_of(values_NM):
        top_kernel[(len(values_NM),)](  # pyright: ignore[reportIndexIssue, reportOptionalSubscript]
            values_NM, values_NM.stride(0), places, WIDTH=width, PADDED=1 << (width - 1).bit_length(), COUNT=count, num_warps=4
        )
    return places


@dataclass(frozen=True, eq=False)
class _Sampled:
    """A direction of what rollouts took, part_j - pi_j sum_k part_k, with a `part` for each of the tokens (N, S)."""

    tokens_NS: Tensor
    part_NS: Tensor
    probs_NS: Tensor
    mean_N: Tensor

    @classmethod
    def at(cls, look: _Look, tokens_NS: Tensor, weight_NS: Tensor, by_log_ratio: bool) -> "_Sampled":
        s, t = look.logprobs(tokens_NS.clamp_min(0))
        part = torch.where(tokens_NS >= 0, weight_NS * (t - s) if by_log_ratio else weight_NS, 0.0)
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


@dataclass(frozen=True, eq=False)
class _Direction:
    """How one objective moves the student under one teacher, at N nodes: the direction expected of it, and the one that rollouts gave."""

    look: _Look
    form: _Form
    sampled: _Sampled | None

    @classmethod
    def at(
        cls, by_beta: dict[float | None, _Look], form: _Form, children_NS: Tensor, share_NS: Tensor, advantage_NS: Tensor
    ) -> "_Direction":
        look = by_beta[form.beta if form.slot == "jsd" else None]
        if form.sampled is None:
            return cls(look, form, None)
        by_log_ratio = form.sampled == "log_ratio"
        return cls(look, form, _Sampled.at(look, children_NS, share_NS if by_log_ratio else advantage_NS, by_log_ratio))

    @property
    def bound(self) -> Tensor:
        """Maxima of the expected direction's absolute values in each group: (N, B)."""
        return self.form.scale * self.look.maxima["distance" if self.form.slot == "forward" else self.form.slot]

    @property
    def expected_norm2(self) -> Tensor:
        return self.form.scale**2 * self.look.moments[self.form.slot]["norm2"]

    @property
    def lift2(self) -> Tensor:
        return self.form.scale**2 * self.look.moments[self.form.slot]["lift2"]

    @property
    def pull(self) -> Tensor:
        return self.form.scale * self.look.moments[self.form.slot]["pull"]

    @property
    def norm2(self) -> Tensor:
        return self.sampled.norm2(self.look) if self.sampled else self.expected_norm2

    def expected(self, s: Tensor, t: Tensor) -> Tensor:
        """The expected direction at a few tokens, from the log-probabilities of student and teacher there."""
        return self.form.scale * self.look.direction(self.form.slot, s, t)

    def itself(self, kept_NK: Tensor, expected_NK: Tensor) -> Tensor:
        """The direction at a few tokens, where this is expected of it."""
        return self.sampled.direction(self.look, kept_NK) if self.sampled else expected_NK

    def rows(self, sketch: OuterSketch) -> Tensor:
        """The direction's rows, sketched: (N, L)."""
        if self.sampled:
            return self.sampled.rows(self.look, sketch)
        found = self.look.rows[self.form.slot]
        return found if self.form.scale == 1 else self.form.scale * found


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
