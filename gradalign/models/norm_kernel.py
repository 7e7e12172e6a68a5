"""The Triton kernel behind `norms`: a few rows in each program, read once and written once."""

import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]


@triton.jit
def norm_kernel(
    values, weight, out, rows, epsilon,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, TOGETHER: tl.constexpr, ROUNDED: tl.constexpr, MORE: tl.constexpr,
):  # fmt: skip
    """Each row over the root of its mean square, in single precision, times weight + `MORE`; `ROUNDED` to the values' type before that."""
    row = tl.program_id(0).to(tl.int64) * TOGETHER + tl.arange(0, TOGETHER)
    column = tl.arange(0, PADDED)
    place = row[:, None] * WIDTH + column[None, :]
    there = (row < rows)[:, None] & (column < WIDTH)[None, :]
    read = tl.load(values + place, mask=there, other=0.0)
    value = read.to(tl.float32)
    value *= tl.rsqrt(tl.sum(value * value, axis=1) / WIDTH + epsilon)[:, None]
    if ROUNDED:
        value = value.to(read.dtype).to(tl.float32)
    factor = tl.load(weight + column, mask=column < WIDTH, other=0.0).to(tl.float32) + MORE
    tl.store(out + place, (value * factor[None, :]).to(read.dtype), mask=there)
