"""The Triton kernel behind `fused`: a program for each node, two walks over the scores of student and teacher, sums in registers.

Logarithms are to base 2 inside, as the hardware's are, and turned into nats at the end. Only the last stretch of a walk, past which the
vocabulary ends, asks which lanes hold a token.
"""

import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]

TILE = 2048
GROUP = 8
DEEP, WIDE = 8, 2  # stretches of the vocabulary, and runs of the sketch, that are loaded while others are worked on
_LN2 = tl.constexpr(0.6931471805599453)
_LOG2E = tl.constexpr(1.4426950408889634)
_TINY = tl.constexpr(1.1754944e-38)
_NEVER = tl.constexpr(-1e30)
_FAR = tl.constexpr(100.0)  # powers of 2, of the 127 that single precision has
_MUCH = tl.constexpr(1e30)


@triton.jit
def _exp2(x, NVIDIA: tl.constexpr):
    """2 ** x, in one instruction where there is one: what is below the smallest normal number is 0."""
    if NVIDIA:
        return tl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)
    return tl.exp2(x)


@triton.jit
def _log2(x, NVIDIA: tl.constexpr):
    if NVIDIA:
        return tl.inline_asm_elementwise("lg2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)
    return tl.log2(x)


@triton.jit
def _scores(pointer, place, factor, less, VOCABULARY: tl.constexpr, MASKED: tl.constexpr):
    """Scores to base 2, less a number. What is not there, or impossible, has so little that its probability is 0; products with it too."""
    if MASKED:
        there = place < VOCABULARY
        found = tl.load(pointer + place, mask=there, other=0.0).to(tl.float32)
        return tl.maximum(tl.where(there, found * factor - less, _NEVER), _NEVER)
    return tl.maximum(tl.load(pointer + place).to(tl.float32) * factor - less, _NEVER)


@triton.jit
def _mixture(p, q, share, NVIDIA: tl.constexpr):
    """Logarithm of share q + (1 - share) p."""
    return _log2(tl.maximum(share * q + (1 - share) * p, _TINY), NVIDIA)


@triton.jit
def _added(most, total, weighted, score, value, NVIDIA: tl.constexpr):
    """A running maximum, the sum of 2 ** (scores - maximum) and that of these times values, with one more score."""
    less, higher = _exp2(-tl.abs(score - most), NVIDIA), score > most
    total = tl.where(higher, total * less + 1.0, total + less)
    return tl.maximum(most, score), total, tl.where(higher, weighted * less + value, weighted + less * value)


@triton.jit
def _highest(most, GROUP: tl.constexpr, TILE: tl.constexpr):
    return tl.max(tl.reshape(most, (TILE // GROUP, GROUP)), axis=1)


@triton.jit
def numbers_kernel(
    student, teacher, student_stride, teacher_stride, student_factor, teacher_factor, beta,
    shifts, signs, sums, moments, maxima, rows,
    VOCABULARY: tl.constexpr, RUNS: tl.constexpr, LENGTH: tl.constexpr, TILE: tl.constexpr, GROUP: tl.constexpr,
    DEEP: tl.constexpr, WIDE: tl.constexpr, KEPT: tl.constexpr, LARGEST: tl.constexpr,
    REVERSE: tl.constexpr, FORWARD: tl.constexpr, JSD: tl.constexpr, STUDENT: tl.constexpr, EVEN: tl.constexpr,
    NVIDIA: tl.constexpr,
):  # fmt: skip
    """REVERSE, FORWARD, JSD and STUDENT are the places of sketched rows, -1 where they are not wanted; EVEN says that beta is 0.5."""
    node = tl.program_id(0).to(tl.int64)
    student += node * student_stride
    teacher += node * teacher_stride
    student_factor *= _LOG2E
    teacher_factor *= _LOG2E
    lane = tl.arange(0, TILE)
    zero = tl.zeros((TILE,), tl.float32)
    STRIDE: tl.constexpr = DEEP * TILE
    WHOLE: tl.constexpr = VOCABULARY // STRIDE * STRIDE
    WHOLE_RUNS: tl.constexpr = (RUNS - 1) // WIDE * WIDE

    # 1: logarithms of the sums of exponentials and the mean log-ratio, lane by lane, and the student's likeliest token
    near_s = tl.max(_scores(student, lane, student_factor, 0.0, VOCABULARY, True))
    near_t = tl.max(_scores(teacher, lane, teacher_factor, 0.0, VOCABULARY, True))
    most_s, total_s, total_t, apart, likeliest = zero + _NEVER, zero, zero, zero, lane
    for masked in tl.static_range(2):
        for start in range(WHOLE if masked else 0, VOCABULARY if masked else WHOLE, TILE if masked else STRIDE):
            for piece in tl.static_range(1 if masked else DEEP):
                place = start + piece * TILE + lane
                x = _scores(student, place, student_factor, near_s, VOCABULARY, masked)
                y = _scores(teacher, place, teacher_factor, near_t, VOCABULARY, masked)
                likeliest = tl.where(x > most_s, place, likeliest)
                most_s = tl.maximum(most_s, x)
                chance = _exp2(x, NVIDIA)
                total_s += chance
                apart += chance * (y - x)
                total_t += _exp2(y, NVIDIA)
    top_s = tl.max(most_s)
    best = tl.min(tl.where(most_s == top_s, likeliest, 2147483647))
    sum_s, sum_t, sum_apart = tl.sum(total_s), tl.sum(total_t), tl.sum(apart)
    top_t = near_t
    if (top_s > _FAR) | (sum_t > _MUCH):  # the first stretch was not near the best: sums around running maxima
        most_s, most_t, total_s, total_t, apart, likeliest = zero + _NEVER, zero + _NEVER, zero, zero, zero, lane
        for start in range(0, VOCABULARY, TILE):
            x = _scores(student, start + lane, student_factor, 0.0, VOCABULARY, True)
            y = _scores(teacher, start + lane, teacher_factor, 0.0, VOCABULARY, True)
            likeliest = tl.where(x > most_s, start + lane, likeliest)
            most_s, total_s, apart = _added(most_s, total_s, apart, x, y - x, NVIDIA)
            most_t, total_t, _ = _added(most_t, total_t, zero, y, zero, NVIDIA)
        top_s, top_t = tl.max(most_s), tl.max(most_t)
        best = tl.min(tl.where(most_s == top_s, likeliest, 2147483647))
        turned = tl.exp2(most_s - top_s)
        sum_s, sum_t, sum_apart = tl.sum(total_s * turned), tl.sum(total_t * tl.exp2(most_t - top_t)), tl.sum(apart * turned)
        sum_apart += sum_s * (top_s - top_t)
    else:
        top_s = near_s
    mean_r = sum_apart / sum_s + tl.log2(sum_s) - tl.log2(sum_t)
    lse_s, lse_t = top_s + tl.log2(sum_s), top_t + tl.log2(sum_t)

    # 2: the mean of the one signal that is not linear in the log-ratio
    mean_j = 0.0
    if JSD >= 0:
        skewed = zero
        for masked in tl.static_range(2):
            for start in range(WHOLE if masked else 0, VOCABULARY if masked else WHOLE, TILE if masked else STRIDE):
                for piece in tl.static_range(1 if masked else DEEP):
                    place = start + piece * TILE + lane
                    s = _scores(student, place, student_factor, lse_s, VOCABULARY, masked)
                    t = _scores(teacher, place, teacher_factor, lse_t, VOCABULARY, masked)
                    p = _exp2(s, NVIDIA)
                    skewed += p * (_mixture(p, _exp2(t, NVIDIA), beta, NVIDIA) - s)
        mean_j = (1 - beta) * tl.sum(skewed)

    # 3: sums, directions around that at the likeliest token, where nothing large cancels, and buckets of the sketch, run by run
    s_best = _scores(student, best, student_factor, lse_s, VOCABULARY, False)
    t_best = _scores(teacher, best, teacher_factor, lse_t, VOCABULARY, False)
    p_best, q_best = tl.exp2(s_best), tl.exp2(t_best)
    around_r = p_best * (t_best - s_best - mean_r)
    around_f = q_best - p_best
    around_j = p_best * ((1 - beta) * (_mixture(p_best, q_best, beta, False) - s_best) - mean_j)
    entropy_s, entropy_t, forward, even = zero, zero, zero, zero
    distance2, student2, teacher2, ratio2 = zero, zero, zero, zero
    first_r, second_r, norm2_r, first_f, second_f, first_j, second_j, norm2_j = zero, zero, zero, zero, zero, zero, zero, zero
    group = tl.arange(0, TILE // GROUP)
    for tile in range(LENGTH // TILE):
        bucket = tile * TILE + lane
        row_r, row_f, row_j, row_s = zero, zero, zero, zero
        high_s, high_t, high_d, high_r, high_j = zero, zero, zero, zero, zero
        for masked in tl.static_range(2):
            for first in range(WHOLE_RUNS if masked else 0, RUNS if masked else WHOLE_RUNS, 1 if masked else WIDE):
                for each in tl.static_range(1 if masked else WIDE):
                    run = first + each
                    place = bucket - tl.load(shifts + run)
                    place = tl.where(place < 0, place + LENGTH, place) + run * LENGTH
                    s = _scores(student, place, student_factor, lse_s, VOCABULARY, masked)
                    t = _scores(teacher, place, teacher_factor, lse_t, VOCABULARY, masked)
                    if masked:
                        sign = tl.load(signs + place, mask=place < VOCABULARY, other=0).to(tl.float32)
                    else:
                        sign = tl.load(signs + place).to(tl.float32)
                    p, q, ratio = _exp2(s, NVIDIA), _exp2(t, NVIDIA), t - s
                    f, both = q - p, p + q
                    entropy_s += p * s
                    entropy_t += q * t
                    forward += q * ratio
                    halfway = _log2(tl.maximum(both, _TINY), NVIDIA) - 1
                    even += both * (s - halfway)
                    distance2 += f * f
                    student2 += p * p
                    teacher2 += q * q
                    ratio2 += tl.minimum(q * _exp2(tl.minimum(ratio, 126.0), NVIDIA), LARGEST)
                    high_s, high_t = tl.maximum(high_s, p), tl.maximum(high_t, q)
                    high_d = tl.maximum(high_d, tl.abs(f))
                    if FORWARD >= 0:
                        weighted_f = p * (f - around_f)
                        first_f += weighted_f
                        second_f += weighted_f * (f - around_f)
                        row_f += sign * f
                    if REVERSE >= 0:
                        r = p * (ratio - mean_r)
                        weighted_r = p * (r - around_r)
                        first_r += weighted_r
                        second_r += weighted_r * (r - around_r)
                        norm2_r += r * r
                        high_r = tl.maximum(high_r, tl.abs(r))
                        row_r += sign * r
                    if JSD >= 0:
                        j = p * ((1 - beta) * ((halfway if EVEN else _mixture(p, q, beta, NVIDIA)) - s) - mean_j)
                        weighted_j = p * (j - around_j)
                        first_j += weighted_j
                        second_j += weighted_j * (j - around_j)
                        norm2_j += j * j
                        high_j = tl.maximum(high_j, tl.abs(j))
                        row_j += sign * j
                    if STUDENT >= 0:
                        row_s += sign * p
        to = rows + node * KEPT * LENGTH + bucket
        if REVERSE >= 0:
            tl.store(to + REVERSE * LENGTH, row_r * _LN2)
        if FORWARD >= 0:
            tl.store(to + FORWARD * LENGTH, row_f)
        if JSD >= 0:
            tl.store(to + JSD * LENGTH, row_j * _LN2)
        if STUDENT >= 0:
            tl.store(to + STUDENT * LENGTH, row_s)
        high = maxima + node * 5 * (LENGTH // GROUP) + tile * (TILE // GROUP) + group
        tl.store(high, _highest(high_s, GROUP, TILE))
        tl.store(high + LENGTH // GROUP, _highest(high_t, GROUP, TILE))
        tl.store(high + 2 * (LENGTH // GROUP), _highest(high_d, GROUP, TILE))
        tl.store(high + 3 * (LENGTH // GROUP), _highest(high_r, GROUP, TILE) * _LN2)
        tl.store(high + 4 * (LENGTH // GROUP), _highest(high_j, GROUP, TILE) * _LN2)
    away, forwards, self_s, self_t = tl.sum(distance2), tl.sum(forward), tl.sum(student2), tl.sum(teacher2)
    out = sums + node * 12
    tl.store(out, lse_s * _LN2)
    tl.store(out + 1, lse_t * _LN2)
    tl.store(out + 2, -tl.sum(entropy_s) * _LN2)
    tl.store(out + 3, -tl.sum(entropy_t) * _LN2)
    tl.store(out + 4, -mean_r * _LN2)
    tl.store(out + 5, forwards * _LN2)
    tl.store(out + 6, 0.5 * (tl.sum(even) + forwards) * _LN2)
    tl.store(out + 7, away)
    tl.store(out + 8, 0.5 * (self_s + self_t - away))
    tl.store(out + 9, self_s)
    tl.store(out + 10, self_t)
    tl.store(out + 11, tl.sum(ratio2))
    out = moments + node * 12
    one_r, one_f, one_j = tl.sum(first_r), tl.sum(first_f), tl.sum(first_j)
    tl.store(out, mean_r * _LN2)
    tl.store(out + 1, (around_r + one_r) * _LN2)
    tl.store(out + 2, tl.sum(norm2_r) * _LN2 * _LN2)
    tl.store(out + 3, tl.maximum(tl.sum(second_r) - one_r * one_r, 0.0) * _LN2 * _LN2)
    tl.store(out + 4, 1.0)
    tl.store(out + 5, around_f + one_f)
    tl.store(out + 6, away)
    tl.store(out + 7, tl.maximum(tl.sum(second_f) - one_f * one_f, 0.0))
    tl.store(out + 8, mean_j * _LN2)
    tl.store(out + 9, (around_j + one_j) * _LN2)
    tl.store(out + 10, tl.sum(norm2_j) * _LN2 * _LN2)
    tl.store(out + 11, tl.maximum(tl.sum(second_j) - one_j * one_j, 0.0) * _LN2 * _LN2)


@triton.jit
def top_kernel(values, stride, places, WIDTH: tl.constexpr, PADDED: tl.constexpr, COUNT: tl.constexpr):
    """The places of the `COUNT` largest of a row's values, largest first: for few of a few thousand."""
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, PADDED)
    left = tl.load(values + row * stride + lane, mask=lane < WIDTH, other=float("-inf")).to(tl.float32)
    left = tl.where(lane < WIDTH, tl.maximum(left, -3.0e38), float("-inf"))
    for i in tl.static_range(COUNT):
        place = tl.argmax(left, axis=0)
        tl.store(places + row * COUNT + i, place.to(tl.int64))
        left = tl.where(lane == place, float("-inf"), left)
