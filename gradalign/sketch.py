"""Sums of outer products as short vectors whose inner products are theirs: exact where they fit, else a tensor sketch. Torch only.

The output layer is shared by all questions, and what a step on one does to another shows in <sum_u d_u h_u^T, sum_v g_v h_v^T>, with h the
last hidden states: matrices of vocabulary x width, too large to keep for each question and configuration.
"""

import math
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

_CHUNK = 256
_WORTH_A_MATRIX = 8  # up to so many times the work of one row's transform, the matrix itself is made


class OuterSketch:
    """Maps sum_n left_n right_n^T, a (V, H) matrix, to at most `size` numbers, linearly.

    If V x H <= `size` the numbers are the matrix itself. Else every entry is added, with a random sign, into one of `size` buckets, by
    hashes of its row and of its column that add up (tensor sketch; Pham and Pagh, 2013): inner products are unbiased over
    seeds, with a standard error of at most sqrt((|A|^2 |B|^2 + <A, B>^2) / size).
    """

    def __init__(self, vocabulary: int, width: int, size: int = 8192, seed: int = 0):
        self.vocabulary, self.width = vocabulary, width
        self.exact = vocabulary * width <= size
        self.length = vocabulary * width if self.exact else size
        self._seed = seed

    @cached_property
    def _hashes(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Bucket and sign of every row and of every column."""
        rng = torch.Generator().manual_seed(self._seed)
        buckets = [torch.randint(self.length, (n,), generator=rng) for n in (self.vocabulary, self.width)]
        signs = [torch.randint(2, (n,), generator=rng) * 2 - 1 for n in (self.vocabulary, self.width)]
        return buckets[0], signs[0], buckets[1], signs[1]

    def sum(self, left_NV: Float[Tensor, "N V"], right_NH: Float[Tensor, "N H"]) -> Float[Tensor, " L"]:
        """The sketch of sum_n left_n right_n^T, in double precision: shape (L,), L = `length`."""
        right_NH = right_NH.to(left_NV.dtype)
        if self.exact:
            return (left_NV.T @ right_NH).reshape(-1).double()
        if self.vocabulary * self.width <= _WORTH_A_MATRIX * self.length * math.log2(self.length):
            return self._of_matrix(left_NV.T @ right_NH)
        total = torch.zeros(self.length // 2 + 1, dtype=torch.complex128, device=left_NV.device)
        for start in range(0, len(left_NV), _CHUNK):
            spectra = [
                torch.fft.rfft(side) for side in self._sides(left_NV[start : start + _CHUNK], right_NH[start : start + _CHUNK])
            ]
            total += (spectra[0] * spectra[1]).sum(0)
        return torch.fft.irfft(total, n=self.length)

    def _of_matrix(self, matrix_VH: Tensor) -> Tensor:
        """Every entry into its bucket: cheap where the matrix is small."""
        row, row_sign, column, column_sign = (part.to(matrix_VH.device) for part in self._hashes)
        bucket = (row[:, None] + column[None, :]) % self.length
        signed = matrix_VH.double() * (row_sign[:, None] * column_sign[None, :])
        return torch.zeros(self.length, dtype=torch.float64, device=matrix_VH.device).index_add_(
            0, bucket.reshape(-1), signed.reshape(-1)
        )

    def _sides(self, left_NV: Tensor, right_NH: Tensor) -> list[Tensor]:
        """Both factors hashed on their own: their circular convolution is the sketch of the outer product."""
        row, row_sign, column, column_sign = (part.to(left_NV.device) for part in self._hashes)
        found = []
        for side, bucket, sign in ((left_NV, row, row_sign), (right_NH, column, column_sign)):
            empty = torch.zeros(len(side), self.length, dtype=torch.float64, device=side.device)
            found.append(empty.index_add_(1, bucket, side.double() * sign))
        return found


def sketch_error(norm2_one: float, norm2_other: float, inner: float, length: int) -> float:
    """Standard error of the inner product of two sketched sums, from their squared lengths and the inner product itself."""
    return math.sqrt((norm2_one * norm2_other + inner**2) / length)
