"""Sums of outer products as short vectors whose inner products are theirs: exact where they fit, else a tensor sketch. Torch only.

The output layer is shared by all questions, and what a step on one does to another shows in <sum_u d_u h_u^T, sum_v g_v h_v^T>, with h the
last hidden states: matrices of vocabulary x width, too large to keep for each question and configuration.
"""

import math
from collections.abc import Sequence
from functools import cached_property

import torch
from jaxtyping import Complex, Float, Int, Num
from torch import Tensor

_WORTH_A_MATRIX = 8  # up to so many times the work of one row's transform, the matrix itself is made


class OuterSketch:
    """Maps sum_n left_n right_n^T, a (V, H) matrix, to at most `size` numbers, linearly.

    If V x H <= `size` the numbers are the matrix itself. Else every entry is added, with a random sign, into one of `size` buckets, by
    hashes of its row and of its column that add up (tensor sketch; Pham and Pagh, 2013): inner products are unbiased over
    seeds, with a standard error of at most sqrt((|A|^2 |B|^2 + <A, B>^2) / size).

    Rows are hashed in runs of `size` neighbours: each run keeps its order and is turned by a shift of its own, drawn evenly. Two
    entries still share a bucket with probability 1 / size at most, which is all that the error rests on, and a row of the left factor
    is read in order instead of scattered.
    """

    def __init__(self, vocabulary: int, width: int, size: int = 8192, seed: int = 0):
        self.vocabulary, self.width = vocabulary, width
        self.exact = vocabulary * width <= size
        self.length = vocabulary * width if self.exact else size
        self._seed = seed
        self._moved: dict[tuple[str, torch.device, torch.dtype], Tensor] = {}

    @property
    def by_matrix(self) -> bool:
        """Is the matrix itself made before it is sketched, if it is at all?"""
        return self.exact or self.vocabulary * self.width <= _WORTH_A_MATRIX * self.length * math.log2(self.length)

    @cached_property
    def _hashes(self) -> tuple[list[int], Tensor, Tensor, Tensor]:
        """The shift of every run of rows, the sign of every row, and bucket and sign of every column.

        Those of rows are drawn first: they are the same at every width.
        """
        rng = torch.Generator().manual_seed(self._seed)
        runs = -(-self.vocabulary // self.length)
        shifts = torch.randint(self.length, (runs,), generator=rng)
        row_signs = torch.randint(2, (self.vocabulary,), generator=rng, dtype=torch.float32) * 2 - 1
        buckets = torch.randint(self.length, (self.width,), generator=rng)
        column_signs = torch.randint(2, (self.width,), generator=rng, dtype=torch.float32) * 2 - 1
        return shifts.tolist(), row_signs, buckets, column_signs

    @property
    def shifts(self) -> list[int]:
        """By how much each run of `length` rows is turned."""
        return self._hashes[0]

    def signs(self, like: Tensor) -> Num[Tensor, " V"]:
        """The rows' signs, where and as `like` is."""
        return self._once("row signs", self._hashes[1], like.device, like.dtype)

    def shifts_on(self, device: torch.device) -> Int[Tensor, " runs"]:
        """`shifts` on a device."""
        return self._once("shifts", torch.tensor(self.shifts), device, torch.int32)

    def _once(self, name: str, values: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
        """What is moved there once and kept: a GPU would have to do all that it was given before, each time anew."""
        key = (name, device, dtype)
        if key not in self._moved:
            self._moved[key] = values.to(device, dtype)
        return self._moved[key]

    def sum(self, left_NV: Float[Tensor, "N V"], right_NH: Float[Tensor, "N H"]) -> Float[Tensor, " L"]:
        """The sketch of sum_n left_n right_n^T, in double precision: shape (L,), L = `length`."""
        columns = self.columns(right_NH.to(left_NV.dtype))
        return self.folded(self.part(torch.ones(1, len(left_NV)).to(left_NV), self.rows([left_NV]), columns)[0])[0]

    def rows(self, lefts: Sequence[Float[Tensor, "N V"]]) -> Float[Tensor, "D N L"]:
        """Left factors as `part` wants them: each row sketched, or as it is where the matrix itself is made."""
        if self.by_matrix:
            return torch.stack([*lefts])
        signs_V, found_DNL = self.signs(lefts[0]), lefts[0].new_empty(len(lefts), len(lefts[0]), self.length)
        if self.vocabulary < self.length:
            found_DNL.zero_()
        for left_NV, found_NL in zip(lefts, found_DNL, strict=True):
            for run, shift in enumerate(self.shifts):
                turn = self.length - shift
                for low, high in ((0, turn), (turn, self.length)):
                    start, stop = run * self.length + low, min(run * self.length + high, self.vocabulary)
                    if start < stop:
                        to = (low + shift) % self.length
                        part, signed = found_NL[:, to : to + stop - start], (left_NV[:, start:stop], signs_V[start:stop])
                        part.addcmul_(*signed) if run else torch.mul(*signed, out=part)
        return found_DNL

    def columns(self, right_NH: Float[Tensor, "N H"]) -> Tensor:
        """The right factor as `part` wants it, made once for all left factors: itself, or the transform of each row's sketch."""
        if self.by_matrix:
            return right_NH
        _, _, bucket, sign = self._hashes
        sketched = right_NH.new_zeros(len(right_NH), self.length)
        device, dtype = right_NH.device, right_NH.dtype
        sign_H = self._once("column signs", sign, device, dtype)
        sketched.index_add_(1, self._once("buckets", bucket, device, torch.int64), right_NH * sign_H)
        return torch.fft.rfft(sketched)

    def part(
        self,
        weight_WN: Float[Tensor, "W N"],
        rows_DNL: Float[Tensor, "D N L"],
        columns: Float[Tensor, "N H"] | Complex[Tensor, "N F"],
    ) -> Float[Tensor, "D W ..."]:
        """What is kept of sum_n weight_wn left_dn right_n^T for each d and w: parts add up over n, and `folded` makes sketches of the sum.

        The circular convolution of two rows' sketches is the sketch of their outer product.
        """
        if not self.by_matrix:
            return torch.view_as_real(weight_WN.to(columns.dtype) @ torch.fft.rfft(rows_DNL).mul_(columns)).double()
        if self.width == 1:
            return ((weight_WN * columns[:, 0]) @ rows_DNL).double()[..., None]
        return (rows_DNL.mT[:, None] @ (weight_WN[..., None] * columns)).double()

    def folded(self, part: Float[Tensor, "W ..."]) -> Float[Tensor, "W L"]:
        """The sketches that a sum of parts stands for."""
        if self.exact:
            return part.flatten(1)
        if self.by_matrix:
            return torch.stack([self._of_matrix(matrix_VH) for matrix_VH in part])
        return torch.fft.irfft(torch.view_as_complex(part), n=self.length)

    def turned(self, rows_WL: Float[Tensor, "W L"]) -> Float[Tensor, "W L"]:
        """At width 1: the sketches of left factors whose rows were sketched, and summed, with a right factor of 1."""
        _, _, bucket, sign = self._hashes
        return torch.roll(rows_WL, int(bucket[0]), dims=-1) * float(sign[0])

    def _of_matrix(self, matrix_VH: Tensor) -> Tensor:
        """Every entry into its bucket: cheap where the matrix is small."""
        bucket, sign = self._entries
        signed = matrix_VH.reshape(-1) * sign.to(matrix_VH)
        return torch.zeros(self.length).to(matrix_VH).index_add_(0, bucket.to(signed.device), signed)

    @cached_property
    def _entries(self) -> tuple[Tensor, Tensor]:
        """Bucket and sign of every entry of the matrix, row by row."""
        shifts, row_sign, column, column_sign = self._hashes
        place = torch.arange(self.vocabulary)
        row = place + torch.tensor(shifts)[place // self.length]
        bucket = (row[:, None] + column[None, :]) % self.length
        return bucket.reshape(-1), (row_sign[:, None] * column_sign[None, :]).reshape(-1)


def sketch_error(norm2_one: float, norm2_other: float, inner: float, length: int) -> float:
    """Standard error of the inner product of two sketched sums, from their squared lengths and the inner product itself."""
    return math.sqrt((norm2_one * norm2_other + inner**2) / length)
