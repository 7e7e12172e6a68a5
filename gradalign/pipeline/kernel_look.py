"""What a kernel finds at nodes for student and one teacher, and the best tokens by it: Triton's on a GPU, C++ on a CPU."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gradalign.models.norms import kernels_run
from gradalign.pipeline.dense import LARGEST
from gradalign.pipeline.native import compiled, native_numbers
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


def has_kernel(device: torch.device) -> bool:
    """Is there a kernel for the device?"""
    if _natively(device):
        return compiled() is not None
    return device.type == "cuda" and numbers_kernel is not None and kernels_run(device)


def _natively(device: torch.device) -> bool:
    """Is it the C++ kernel that works there?"""
    return device.type == "cpu"


@dataclass(frozen=True, eq=False)
class KernelLook:
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
    ) -> "KernelLook":
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
