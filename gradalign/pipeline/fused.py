"""The numbers of `vocabulary.chunk_numbers` by kernels that read the logits a few times and write nothing as wide as they are: Triton's on
a GPU, C++ on a CPU.

The plain form is the definition, and tests hold these kernels to it. They know the objectives whose directions are told by the two
distributions, or by these and the tokens that rollouts took; with any other, as a function of the user's own, the plain form is used.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gradalign.models.memory import sent
from gradalign.objectives import Objective
from gradalign.pipeline.kernel_look import TILE, KernelLook, has_kernel
from gradalign.pipeline.vocabulary import SHORTEST, TOP, Stepping, Taken
from gradalign.sketch import OuterSketch


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
    return has_kernel(device)


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


def _by_beta(
    student: Tensor, teacher: Tensor, student_factor: float, teacher_factor: float, forms: Sequence[_Form], sketch: OuterSketch
) -> dict[float | None, KernelLook]:
    """A look for each beta of a Jensen-Shannon divergence; None is the place of the one that has all else."""
    betas = [*dict.fromkeys(form.beta for form in forms if form.slot == "jsd")]
    wanted = {form.slot for form in forms} | ({"student"} if any(form.sampled for form in forms) else set())
    looks = [
        KernelLook.at(student, teacher, student_factor, teacher_factor, {"jsd"} if i else wanted, beta, sketch)
        for i, beta in enumerate(betas or [0.5])
    ]
    return {None: looks[0], **dict(zip(betas, looks, strict=False))}


@dataclass(frozen=True, eq=False)
class _Sampled:
    """A direction of what rollouts took, part_j - pi_j sum_k part_k, with a `part` for each of the tokens (N, S)."""

    tokens_NS: Tensor
    part_NS: Tensor
    probs_NS: Tensor
    mean_N: Tensor

    @classmethod
    def at(cls, look: KernelLook, tokens_NS: Tensor, weight_NS: Tensor, by_log_ratio: bool) -> "_Sampled":
        s, t = look.logprobs(tokens_NS.clamp_min(0))
        part = torch.where(tokens_NS >= 0, weight_NS * (t - s) if by_log_ratio else weight_NS, 0.0)
        return cls(tokens_NS, part, torch.where(tokens_NS >= 0, s.exp(), 0.0), part.sum(-1))

    def direction(self, look: KernelLook, kept_NK: Tensor) -> Tensor:
        s, _ = look.logprobs(kept_NK.clamp_min(0))
        same = kept_NK.clamp_min(0)[:, :, None] == self.tokens_NS[:, None, :]
        return (same * self.part_NS[:, None, :]).sum(-1) - s.exp() * self.mean_N[:, None]

    def norm2(self, look: KernelLook) -> Tensor:
        elsewhere = (look.sums["student2"] - self.probs_NS.square().sum(-1)).clamp_min(0)
        return elsewhere * self.mean_N**2 + (self.part_NS - self.probs_NS * self.mean_N[:, None]).square().sum(-1)

    def rows(self, look: KernelLook, sketch: OuterSketch) -> Tensor:
        tokens = self.tokens_NS.clamp_min(0)
        bucket = (tokens + look.shifts_R[tokens // look.length]) % look.length
        signed = self.part_NS * sketch.signs(self.part_NS)[tokens]
        return (-self.mean_N[:, None] * look.rows["student"]).scatter_add_(1, bucket, signed)


@dataclass(frozen=True, eq=False)
class _Direction:
    """How one objective moves the student under one teacher, at N nodes: the direction expected of it, and the one that rollouts gave."""

    look: KernelLook
    form: _Form
    sampled: _Sampled | None

    @classmethod
    def at(
        cls, by_beta: dict[float | None, KernelLook], form: _Form, children_NS: Tensor, share_NS: Tensor, advantage_NS: Tensor
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


def _divergences(look: KernelLook, mine_NT: Tensor, theirs_NT: Tensor) -> Tensor:
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
