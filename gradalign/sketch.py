"""Sums of outer products as short vectors whose inner products are theirs: exact where they fit, else a tensor sketch. Torch only.

The output layer is shared by all questions, and what a step on one does to another shows in <sum_u d_u h_u^T, sum_v g_v h_v^T>, with h the
last hidden states: matrices of vocabulary x width, too large to keep for each question and configuration.
"""

import math
from functools import cached_property

import torch
from jaxtyping import Complex, Float
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
        self._moved_signs: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    @property
    def _by_matrix(self) -> bool:
        return self.exact or self.vocabulary * self.width <= _WORTH_A_MATRIX * self.length * math.log2(self.length)

    @cached_property
    def _hashes(self) -> tuple[list[int], Tensor, Tensor, Tensor]:
        """The shift of every run of rows, the sign of every row, and bucket and sign of every column."""
        rng = torch.Generator().manual_seed(self._seed)
        runs = -(-self.vocabulary // self.length)
        shifts, buckets = (torch.randint(self.length, (n,), generator=rng) for n in (runs, self.width))
        row_signs, column_signs = (
            torch.randint(2, (n,), generator=rng, dtype=torch.float32) * 2 - 1 for n in (self.vocabulary, self.width)
        )
        return shifts.tolist(), row_signs, buckets, column_signs

    def sum(self, left_NV: Float[Tensor, "N V"], right_NH: Float[Tensor, "N H"]) -> Float[Tensor, " L"]:
        """The sketch of sum_n left_n right_n^T, in double precision: shape (L,), L = `length`."""
        columns = self.columns(right_NH.to(left_NV.dtype))
        return self.folded(self.part(torch.ones(1, len(left_NV)).to(left_NV), left_NV, columns))[0]

    def columns(self, right_NH: Float[Tensor, "N H"]) -> Tensor:
        """The right factor as `part` wants it, made once for all left factors: itself, or the transform of each row's sketch."""
        if self._by_matrix:
            return right_NH
        _, _, bucket, sign = self._hashes
        sketched = torch.zeros(len(right_NH), self.length).to(right_NH)
        sketched.index_add_(1, bucket.to(right_NH.device), right_NH * sign.to(right_NH))
        return torch.fft.rfft(sketched)

    def part(
        self,
        weight_WN: Float[Tensor, "W N"],
        left_NV: Float[Tensor, "N V"],
        columns: Float[Tensor, "N H"] | Complex[Tensor, "N F"],
    ) -> Float[Tensor, "W ..."]:
        """What is kept of sum_n weight_wn left_n right_n^T for each w: parts add up over rows, and `folded` makes sketches of the sum."""
        if not self._by_matrix:
            transformed = torch.fft.rfft(self._rows(left_NV)) * columns
            return torch.view_as_real(weight_WN.to(columns.dtype) @ transformed).double()
        if self.width == 1:
            return ((weight_WN * columns[:, 0]) @ left_NV).double()[..., None]
        return torch.stack([left_NV.T @ (weight_N[:, None] * columns) for weight_N in weight_WN]).double()

    def folded(self, part: Float[Tensor, "W ..."]) -> Float[Tensor, "W L"]:
        """The sketches that a sum of parts stands for."""
        if self.exact:
            return part.flatten(1)
        if self._by_matrix:
            return torch.stack([self._of_matrix(matrix_VH) for matrix_VH in part])
        return torch.fft.irfft(torch.view_as_complex(part), n=self.length)

    def _of_matrix(self, matrix_VH: Tensor) -> Tensor:
        """Every entry into its bucket: cheap where the matrix is small."""
        shifts, row_sign, column, column_sign = self._hashes
        place = torch.arange(self.vocabulary)
        row = place + torch.tensor(shifts)[place // self.length]
        bucket = (row[:, None] + column[None, :]) % self.length
        signed = matrix_VH * (row_sign[:, None] * column_sign[None, :]).to(matrix_VH)
        return torch.zeros(self.length).to(matrix_VH).index_add_(0, bucket.reshape(-1).to(signed.device), signed.reshape(-1))

    def _rows(self, left_NV: Tensor) -> Float[Tensor, "N L"]:
        """Each row of the left factor, sketched; its circular convolution with the right one's is the sketch of the outer product."""
        signs_V, found_NL = self._signs(left_NV), left_NV.new_zeros(len(left_NV), self.length)
        for run, shift in enumerate(self._hashes[0]):
            turn = self.length - shift
            for low, high in ((0, turn), (turn, self.length)):
                start, stop = run * self.length + low, min(run * self.length + high, self.vocabulary)
                if start < stop:
                    to = (low + shift) % self.length
                    found_NL[:, to : to + stop - start].addcmul_(left_NV[:, start:stop], signs_V[start:stop])
        return found_NL

    def _signs(self, like: Tensor) -> Tensor:
        """The rows' signs where they are wanted."""
        key = (like.device, like.dtype)
        if key not in self._moved_signs:
            self._moved_signs[key] = self._hashes[1].to(like)
        return self._moved_signs[key]


def sketch_error(norm2_one: float, norm2_other: float, inner: float, length: int) -> float:
    """Standard error of the inner product of two sketched sums, from their squared lengths and the inner product itself."""
    return math.sqrt((norm2_one * norm2_other + inner**2) / length)
