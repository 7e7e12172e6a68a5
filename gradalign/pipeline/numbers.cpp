// The walks of `fused` on a CPU: a node at a time, whose scores then lie in the cache of one core; sums in lanes, flushed often.
//
// The same sums as the GPU's kernel in `kernels.py`, in the same places. Logarithms are to base 2 inside, and turned into nats at the end.
// Only vector extensions of GCC and Clang, no header of torch: it takes a second to compile.

#include <cstdint>
#include <cstring>
#include <memory>
#ifdef __SSE2__
#include <xmmintrin.h>
#endif

namespace {

// Takes numbers below the smallest normal one for 0 while it lives: squares of small probabilities, which would take a hundred times as long
struct Flushing {
#ifdef __SSE2__
    unsigned before = _mm_getcsr();
    Flushing() { _mm_setcsr(before | 0x8040); }
    ~Flushing() { _mm_setcsr(before); }
#endif
};

#ifdef __AVX512F__
constexpr int LANES = 16;
#else
constexpr int LANES = 8;
#endif
using F = float __attribute__((vector_size(LANES * sizeof(float))));
using I = int32_t __attribute__((vector_size(LANES * sizeof(float))));

constexpr float LN2 = 0.6931471805599453f, LOG2E = 1.4426950408889634f;
constexpr float TINY = 1.1754944e-38f, NEVER = -1e30f;
constexpr int64_t TILE = 512, BLOCK = 2048;  // buckets of the sketch at once, and tokens that are summed in single precision

inline F all(float x) { return x - F{}; }
inline F most(F a, F b) { return a > b ? a : b; }
inline F least(F a, F b) { return a < b ? a : b; }
inline F size(F a) { return most(a, -a); }
inline F load(const float* from) { F v; std::memcpy(&v, from, sizeof v); return v; }
inline void store(float* to, F v) { std::memcpy(to, &v, sizeof v); }
inline F cast(I bits) { F v; std::memcpy(&v, &bits, sizeof v); return v; }
inline I bits(F v) { I found; std::memcpy(&found, &v, sizeof found); return found; }

inline double sum(F v) {
    double total = 0;
    for (int i = 0; i < LANES; i++) total += v[i];
    return total;
}

// 2 ** x up to 2 ** 127; what is below the smallest normal number is 0
inline F exp2v(F x) {
    const I none = x < -126.0f;
    x = none ? all(-126.0f) : x;
    const F shifted = x + 12582912.0f;  // the nearest whole number, in the last bits
    const F f = x - (shifted - 12582912.0f);
    F p = f * 1.535336188319500e-4f + 1.339887440266574e-3f;
    p = p * f + 9.618437357674640e-3f;
    p = p * f + 5.550332471162809e-2f;
    p = p * f + 2.402264791363012e-1f;
    p = p * f + 6.931472028550421e-1f;
    p = p * f + 1.0f;
    const F found = cast(bits(p) + (bits(shifted) << 23));
    return none ? F{} : found;
}

// Logarithm to base 2 of a normal number
inline F log2v(F x) {
    const I e = (bits(x) - 0x3f3504f3) >> 23;
    const F f = cast(bits(x) - (e << 23)) - 1.0f, z = f * f;
    F p = f * 7.0376836292e-2f - 1.1514610310e-1f;
    p = p * f + 1.1676998740e-1f;
    p = p * f - 1.2420140846e-1f;
    p = p * f + 1.4249322787e-1f;
    p = p * f - 1.6668057665e-1f;
    p = p * f + 2.0000714765e-1f;
    p = p * f - 2.4999993993e-1f;
    p = p * f + 3.3333331174e-1f;
    p = p * f * z - 0.5f * z;
    return (f + p) * LOG2E + __builtin_convertvector(e, F);
}

// As many numbers as there are lanes, one behind the other
struct Whole {
    F some(const float* from, float) const { return load(from); }
    void put(float* to, F v) const { store(to, v); }
};

// Fewer of them: `rest` stands for those that are not there
struct Part {
    int64_t count;
    F some(const float* from, float rest) const {
        F v = all(rest);
        std::memcpy(&v, from, count * sizeof(float));
        return v;
    }
    void put(float* to, F v) const { std::memcpy(to, &v, count * sizeof(float)); }
};

// Do a step for all lanes at a time from `start` to `stop`; the few at the end apart, as to ask at each step would cost more than the rest
template <typename Step>
inline void walk(int64_t start, int64_t stop, const Step& step) {
    for (; start + LANES <= stop; start += LANES) step(start, Whole{});
    if (start < stop) step(start, Part{stop - start});
}

// The same, with a pause after every `BLOCK`
template <typename Begin>
inline void blocks(int64_t count, const Begin& begin) {
    for (int64_t start = 0; start < count; start += BLOCK) begin(start, start + BLOCK < count ? start + BLOCK : count);
}

// Scores of a model at a node, to base 2 and less a number. What is impossible has probability 0, and products with it are 0 too.
struct Scores {
    const float* scores;
    float factor, less;

    template <typename Lanes>
    F at(int64_t place, const Lanes& lanes) const {
        return most(lanes.some(scores + place, -__builtin_inff()) * factor - less, all(NEVER));
    }
    float one(int64_t place) const { return at(place, Part{1})[0]; }
};

// The largest score, NaN if there is one, and the first place of it
float highest(const float* scores, int64_t vocabulary, int64_t& place) {
    float best = -__builtin_inff();
    int64_t block = 0;
    blocks(vocabulary, [&](int64_t start, int64_t stop) {
        F high = all(-__builtin_inff());
        walk(start, stop, [&](int64_t i, const auto& lanes) {
            const F x = lanes.some(scores + i, -__builtin_inff());
            high = ((x > high) | (x != x)) ? x : high;
        });
        for (int i = 0; i < LANES; i++) {
            if (high[i] > best || high[i] != high[i]) best = high[i], block = start;
        }
    });
    for (place = block; scores[place] != best && place + 1 < vocabulary;) place++;
    return best;
}

// Sums over tokens: in lanes for a while, then in double precision
struct Sums {
    enum { ENTROPY_S, ENTROPY_T, FORWARD, EVEN, DISTANCE2, STUDENT2, TEACHER2, RATIO2, FIRST_R, SECOND_R, NORM2_R, FIRST_F, SECOND_F,
           FIRST_J, SECOND_J, NORM2_J, COUNT };
    double total[COUNT] = {};

    void add(const F (&lanes)[COUNT]) {
        for (int i = 0; i < COUNT; i++) total[i] += sum(lanes[i]);
    }
};

struct Request {
    const float *student, *teacher;
    int64_t student_stride, teacher_stride;
    float student_factor, teacher_factor, beta, largest;
    const int32_t* shifts;
    const float* signs;
    float *sums, *moments, *maxima, *rows;
    int64_t nodes, vocabulary, runs, length, group, kept, reverse, forward, jsd, alone;
};

// One node; `room` holds three numbers for each token
void node_numbers(const Request& r, int64_t node, float* room) {
    const int64_t V = r.vocabulary;
    const float beta = r.beta, largest = r.largest;
    const bool even = beta == 0.5f, reverse = r.reverse >= 0, jsd = r.jsd >= 0;
    float *chance_s = room, *chance_t = room + V, *mixed = room + 2 * V;
    Scores student{r.student + node * r.student_stride, r.student_factor * LOG2E, 0};
    Scores teacher{r.teacher + node * r.teacher_stride, r.teacher_factor * LOG2E, 0};
    int64_t best = 0, unused = 0;
    const float top_s = highest(student.scores, V, best) * student.factor, top_t = highest(teacher.scores, V, unused) * teacher.factor;

    // 1: sums of exponentials, which are kept, and the mean log-ratio
    student.less = top_s, teacher.less = top_t;
    double sum_s = 0, sum_t = 0, sum_apart = 0;
    blocks(V, [&](int64_t start, int64_t stop) {
        F total_s{}, total_t{}, apart{};
        walk(start, stop, [&](int64_t i, const auto& lanes) {
            const F x = student.at(i, lanes), y = teacher.at(i, lanes), p = exp2v(x), q = exp2v(y);
            total_s += p, total_t += q, apart += p * (y - x);
            lanes.put(chance_s + i, p), lanes.put(chance_t + i, q);
        });
        sum_s += sum(total_s), sum_t += sum(total_t), sum_apart += sum(apart);
    });
    const double log_s = __builtin_log2(sum_s), log_t = __builtin_log2(sum_t);
    const float mean_r = static_cast<float>(sum_apart / sum_s + log_s - log_t);
    const float share_s = static_cast<float>(1 / sum_s), share_t = static_cast<float>(1 / sum_t);
    const double lse_s = top_s + log_s, lse_t = top_t + log_t;
    student.less = static_cast<float>(lse_s), teacher.less = static_cast<float>(lse_t);

    // 2: the mean of the one signal that is not linear in the log-ratio
    double skewed = 0;
    if (jsd) {
        blocks(V, [&](int64_t start, int64_t stop) {
            F total{};
            walk(start, stop, [&](int64_t i, const auto& lanes) {
                const F p = lanes.some(chance_s + i, 0) * share_s, q = lanes.some(chance_t + i, 0) * share_t;
                const F m = log2v(most(beta * q + (1 - beta) * p, all(TINY)));
                total += p * (m - student.at(i, lanes));
                lanes.put(mixed + i, m);
            });
            skewed += sum(total);
        });
    }
    const float mean_j = static_cast<float>((1 - beta) * skewed);

    // 3: sums, directions around that at the likeliest token, where nothing large cancels, and buckets of the sketch, run by run
    const float p_best = chance_s[best] * share_s, q_best = chance_t[best] * share_t;
    const float s_best = student.one(best), around_r = p_best * (teacher.one(best) - s_best - mean_r), around_f = q_best - p_best;
    const float around_j = jsd ? p_best * ((1 - beta) * (mixed[best] - s_best) - mean_j) : 0;
    Sums sums;
    for (int64_t tile = 0; tile < r.length; tile += TILE) {
        alignas(64) float row[4][TILE] = {}, high[5][TILE] = {};
        F total[Sums::COUNT] = {};
        for (int64_t run = 0; run < r.runs; run++) {
            const int64_t shift = r.shifts[run], turn = shift < tile ? tile : shift < tile + TILE ? shift : tile + TILE;
            for (int side = 0; side < 2; side++) {  // buckets before the place where the run begins, and those from there on
                const int64_t from = side ? turn : tile, first = run * r.length + from - shift + (side ? 0 : r.length);
                const int64_t there = side ? tile + TILE - turn : turn - tile, count = there < V - first ? there : V - first;
                walk(0, count, [&](int64_t i, const auto& lanes) {
                    const int64_t place = first + i, at = from - tile + i;
                    const F s = student.at(place, lanes), t = teacher.at(place, lanes), sign = lanes.some(r.signs + place, 0);
                    const F p = lanes.some(chance_s + place, 0) * share_s, q = lanes.some(chance_t + place, 0) * share_t;
                    const F ratio = t - s, f = q - p, both = p + q, weight_f = p * (f - around_f);
                    const F m = jsd ? lanes.some(mixed + place, 0) : F{};
                    const F halfway = jsd && even ? m : log2v(most(both * 0.5f, all(TINY)));
                    const auto raise = [&](float* best_of, F v) { lanes.put(best_of + at, most(lanes.some(best_of + at, 0), v)); };
                    const auto sketch = [&](int64_t which, F v) {
                        if (which >= 0) lanes.put(row[which] + at, lanes.some(row[which] + at, 0) + sign * v);
                    };
                    total[Sums::ENTROPY_S] += p * s;
                    total[Sums::ENTROPY_T] += q * t;
                    total[Sums::FORWARD] += q * ratio;
                    total[Sums::EVEN] += both * (s - halfway);
                    total[Sums::DISTANCE2] += f * f;
                    total[Sums::STUDENT2] += p * p;
                    total[Sums::TEACHER2] += q * q;
                    total[Sums::RATIO2] += least(q * q / most(p, all(TINY)), all(largest));
                    total[Sums::FIRST_F] += weight_f;
                    total[Sums::SECOND_F] += weight_f * (f - around_f);
                    raise(high[0], p), raise(high[1], q), raise(high[2], size(f));
                    sketch(r.forward, f), sketch(r.alone, p);
                    if (reverse) {
                        const F d = p * (ratio - mean_r), weight = p * (d - around_r);
                        total[Sums::FIRST_R] += weight;
                        total[Sums::SECOND_R] += weight * (d - around_r);
                        total[Sums::NORM2_R] += d * d;
                        raise(high[3], size(d)), sketch(r.reverse, d);
                    }
                    if (jsd) {
                        const F d = p * ((1 - beta) * (m - s) - mean_j), weight = p * (d - around_j);
                        total[Sums::FIRST_J] += weight;
                        total[Sums::SECOND_J] += weight * (d - around_j);
                        total[Sums::NORM2_J] += d * d;
                        raise(high[4], size(d)), sketch(r.jsd, d);
                    }
                });
            }
        }
        sums.add(total);
        for (int64_t k = 0; k < r.kept; k++) {
            const float unit = k == r.reverse || k == r.jsd ? LN2 : 1;
            for (int64_t i = 0; i < TILE; i++) r.rows[(node * r.kept + k) * r.length + tile + i] = row[k][i] * unit;
        }
        for (int64_t k = 0; k < 5; k++) {
            float* to = r.maxima + ((node * 5 + k) * r.length + tile) / r.group;
            for (int64_t i = 0; i < TILE; i += r.group) {
                float best_of = 0;
                for (int64_t j = i; j < i + r.group; j++) best_of = high[k][j] > best_of ? high[k][j] : best_of;
                to[i / r.group] = k > 2 ? best_of * LN2 : best_of;
            }
        }
    }
    const double* found = sums.total;
    const auto clear = [](double x) { return x > 0 ? x : x != x ? x : 0; };
    const auto spread = [&](int first, int second) { return clear(found[second] - found[first] * found[first]); };
    const double unit = LN2, self_s = found[Sums::STUDENT2], self_t = found[Sums::TEACHER2], away = found[Sums::DISTANCE2];
    const double numbers[12] = {
        lse_s * unit, lse_t * unit, -found[Sums::ENTROPY_S] * unit, -found[Sums::ENTROPY_T] * unit, -mean_r * unit,
        found[Sums::FORWARD] * unit, 0.5 * (found[Sums::EVEN] + found[Sums::FORWARD]) * unit, away, 0.5 * (self_s + self_t - away),
        self_s, self_t, found[Sums::RATIO2]};
    const double moments[12] = {
        mean_r * unit, (around_r + found[Sums::FIRST_R]) * unit, found[Sums::NORM2_R] * unit * unit,
        spread(Sums::FIRST_R, Sums::SECOND_R) * unit * unit, 1, around_f + found[Sums::FIRST_F], away,
        spread(Sums::FIRST_F, Sums::SECOND_F), mean_j * unit, (around_j + found[Sums::FIRST_J]) * unit,
        found[Sums::NORM2_J] * unit * unit, spread(Sums::FIRST_J, Sums::SECOND_J) * unit * unit};
    for (int i = 0; i < 12; i++) {
        r.sums[node * 12 + i] = static_cast<float>(numbers[i]);
        r.moments[node * 12 + i] = static_cast<float>(moments[i]);
    }
}

}  // namespace

extern "C" void numbers(const Request* request, int threads) {
#pragma omp parallel num_threads(threads)
    {
        const Flushing flushing;
        const std::unique_ptr<float[]> room(new float[3 * request->vocabulary]);
#pragma omp for schedule(static)
        for (int64_t node = 0; node < request->nodes; node++) node_numbers(*request, node, room.get());
    }
}
