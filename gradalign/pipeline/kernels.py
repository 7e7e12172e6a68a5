"""The Triton kernel behind `fused`: a program for each node, three walks over the scores of student and teacher, sums in registers."""

import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]

TILE = 1024
GROUP = 8


@triton.jit
def _scores(pointer, place, there, factor):
    """Scores in single precision; what is not there, or impossible, has so little that its probability is 0 and products with it are."""
    return tl.maximum(tl.where(there, tl.load(pointer + place, mask=there, other=0.0).to(tl.float32) * factor, -1e30), -1e30)


@triton.jit
def _mixture(p, q, share):
    """log of share q + (1 - share) p."""
    return tl.log(tl.maximum(share * q + (1 - share) * p, 1.1754944e-38))


@triton.jit
def _highest(most, GROUP: tl.constexpr, TILE: tl.constexpr):
    return tl.max(tl.reshape(most, (TILE // GROUP, GROUP)), axis=1)


@triton.jit
def numbers_kernel(
    student, teacher, student_stride, teacher_stride, student_factor, teacher_factor, beta,
    shifts, signs, sums, moments, maxima, rows,
    VOCABULARY: tl.constexpr, RUNS: tl.constexpr, LENGTH: tl.constexpr, TILE: tl.constexpr, GROUP: tl.constexpr,
    KEPT: tl.constexpr, LARGEST: tl.constexpr,
    REVERSE: tl.constexpr, FORWARD: tl.constexpr, JSD: tl.constexpr, STUDENT: tl.constexpr,
):  # fmt: skip
    """REVERSE, FORWARD, JSD and STUDENT are the places of sketched rows, -1 where they are not wanted."""
    node = tl.program_id(0).to(tl.int64)
    student += node * student_stride
    teacher += node * teacher_stride
    lane = tl.arange(0, TILE)
    zero = tl.zeros((TILE,), tl.float32)

    # 1: log of the sums of exponentials, lane by lane, and the student's likeliest token
    most_s, most_t, total_s, total_t, likeliest = zero - 1e30, zero - 1e30, zero, zero, lane
    for start in range(0, VOCABULARY, TILE):
        place = start + lane
        there = place < VOCABULARY
        x = _scores(student, place, there, student_factor)
        y = _scores(teacher, place, there, teacher_factor)
        likeliest = tl.where(x > most_s, place, likeliest)
        new_s, new_t = tl.maximum(most_s, x), tl.maximum(most_t, y)
        total_s = total_s * tl.exp(most_s - new_s) + tl.exp(x - new_s)
        total_t = total_t * tl.exp(most_t - new_t) + tl.exp(y - new_t)
        most_s, most_t = new_s, new_t
    top_s, top_t = tl.max(most_s), tl.max(most_t)
    lse_s = top_s + tl.log(tl.sum(total_s * tl.exp(most_s - top_s)))
    lse_t = top_t + tl.log(tl.sum(total_t * tl.exp(most_t - top_t)))
    best = tl.min(tl.where(most_s == top_s, likeliest, 2147483647))

    # 2: sums that need nothing but the two distributions
    entropy_s, entropy_t, reverse, forward, even = zero, zero, zero, zero, zero
    distance2, product, student2, teacher2, ratio2, skewed = zero, zero, zero, zero, zero, zero
    for start in range(0, VOCABULARY, TILE):
        place = start + lane
        there = place < VOCABULARY
        s = _scores(student, place, there, student_factor) - lse_s
        t = _scores(teacher, place, there, teacher_factor) - lse_t
        p, q, ratio = tl.exp(s), tl.exp(t), t - s
        entropy_s -= p * s
        entropy_t -= q * t
        reverse += p * ratio
        forward += q * ratio
        middle = _mixture(p, q, 0.5)
        even += p * (s - middle) + q * (t - middle)
        distance2 += (q - p) * (q - p)
        product += p * q
        student2 += p * p
        teacher2 += q * q
        ratio2 += tl.minimum(q * q / tl.maximum(p, 1.1754944e-38), LARGEST)
        if JSD >= 0:
            skewed += p * (_mixture(p, q, beta) - s)
    mean_r, mean_j = tl.sum(reverse), (1 - beta) * tl.sum(skewed)
    out = sums + node * 13
    tl.store(out, lse_s)
    tl.store(out + 1, lse_t)
    tl.store(out + 2, tl.sum(entropy_s))
    tl.store(out + 3, tl.sum(entropy_t))
    tl.store(out + 4, -mean_r)
    tl.store(out + 5, tl.sum(forward))
    tl.store(out + 6, 0.5 * tl.sum(even))
    tl.store(out + 7, tl.sum(distance2))
    tl.store(out + 8, tl.sum(product))
    tl.store(out + 9, tl.sum(student2))
    tl.store(out + 10, tl.sum(teacher2))
    tl.store(out + 11, tl.sum(ratio2))
    tl.store(out + 12, best.to(tl.float32))

    # 3: directions around that at the likeliest token, where nothing large cancels; buckets of the sketch, whose tokens lie one in each run
    s_best = tl.maximum(tl.load(student + best).to(tl.float32) * student_factor, -1e30) - lse_s
    t_best = tl.maximum(tl.load(teacher + best).to(tl.float32) * teacher_factor, -1e30) - lse_t
    p_best, q_best = tl.exp(s_best), tl.exp(t_best)
    around_r = p_best * (t_best - s_best - mean_r)
    around_f = q_best - p_best
    around_j = p_best * ((1 - beta) * (_mixture(p_best, q_best, beta) - s_best) - mean_j)
    first_r, second_r, norm2_r, first_f, second_f, first_j, second_j, norm2_j = zero, zero, zero, zero, zero, zero, zero, zero
    group = tl.arange(0, TILE // GROUP)
    for tile in range(LENGTH // TILE):
        bucket = tile * TILE + lane
        row_r, row_f, row_j, row_s = zero, zero, zero, zero
        high_s, high_t, high_d, high_r, high_j = zero, zero, zero, zero, zero
        for run in range(RUNS):
            place = bucket - tl.load(shifts + run)
            place = tl.where(place < 0, place + LENGTH, place) + run * LENGTH
            there = place < VOCABULARY
            s = _scores(student, place, there, student_factor) - lse_s
            t = _scores(teacher, place, there, teacher_factor) - lse_t
            sign = tl.load(signs + place, mask=there, other=0).to(tl.float32)
            p, q = tl.exp(s), tl.exp(t)
            high_s, high_t = tl.maximum(high_s, p), tl.maximum(high_t, q)
            f = q - p
            high_d = tl.maximum(high_d, tl.abs(f))
            if FORWARD >= 0:
                first_f += p * (f - around_f)
                second_f += p * (f - around_f) * (f - around_f)
                row_f += sign * f
            if REVERSE >= 0:
                r = p * (t - s - mean_r)
                first_r += p * (r - around_r)
                second_r += p * (r - around_r) * (r - around_r)
                norm2_r += r * r
                high_r = tl.maximum(high_r, tl.abs(r))
                row_r += sign * r
            if JSD >= 0:
                j = p * ((1 - beta) * (_mixture(p, q, beta) - s) - mean_j)
                first_j += p * (j - around_j)
                second_j += p * (j - around_j) * (j - around_j)
                norm2_j += j * j
                high_j = tl.maximum(high_j, tl.abs(j))
                row_j += sign * j
            if STUDENT >= 0:
                row_s += sign * p
        to = rows + node * KEPT * LENGTH + bucket
        if REVERSE >= 0:
            tl.store(to + REVERSE * LENGTH, row_r)
        if FORWARD >= 0:
            tl.store(to + FORWARD * LENGTH, row_f)
        if JSD >= 0:
            tl.store(to + JSD * LENGTH, row_j)
        if STUDENT >= 0:
            tl.store(to + STUDENT * LENGTH, row_s)
        high = maxima + node * 5 * (LENGTH // GROUP) + tile * (TILE // GROUP) + group
        tl.store(high, _highest(high_s, GROUP, TILE))
        tl.store(high + LENGTH // GROUP, _highest(high_t, GROUP, TILE))
        tl.store(high + 2 * (LENGTH // GROUP), _highest(high_d, GROUP, TILE))
        tl.store(high + 3 * (LENGTH // GROUP), _highest(high_r, GROUP, TILE))
        tl.store(high + 4 * (LENGTH // GROUP), _highest(high_j, GROUP, TILE))
    out = moments + node * 12
    one_r, one_f, one_j = tl.sum(first_r), tl.sum(first_f), tl.sum(first_j)
    tl.store(out, mean_r)
    tl.store(out + 1, around_r + one_r)
    tl.store(out + 2, tl.sum(norm2_r))
    tl.store(out + 3, tl.maximum(tl.sum(second_r) - one_r * one_r, 0.0))
    tl.store(out + 4, 1.0)
    tl.store(out + 5, around_f + one_f)
    tl.store(out + 6, tl.sum(distance2))
    tl.store(out + 7, tl.maximum(tl.sum(second_f) - one_f * one_f, 0.0))
    tl.store(out + 8, mean_j)
    tl.store(out + 9, around_j + one_j)
    tl.store(out + 10, tl.sum(norm2_j))
    tl.store(out + 11, tl.maximum(tl.sum(second_j) - one_j * one_j, 0.0))
