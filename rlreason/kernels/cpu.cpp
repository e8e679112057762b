// CPU kernels: what PyTorch runs as many passes over memory, in one. Plain C interface, called through ctypes.
//
// Every function exists for float and for bfloat16 (suffixes _f32 and _bf16), computes in float, and rounds where the
// model's own modules round, so that both paths agree to the last bits. Work is split over `threads` OpenMP threads of
// PyTorch's own runtime. Loops are written for the compiler to vectorise.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#ifdef __AVX512F__
#include <immintrin.h>
#endif

namespace {

constexpr int BLOCK = 32;  // tokens of a cache block; PagedCache in paged.py uses the same

struct bf16 {
    uint16_t bits;
};

inline float load(float x) { return x; }
inline float load(bf16 x) {
    uint32_t u = uint32_t(x.bits) << 16;
    float f;
    std::memcpy(&f, &u, 4);
    return f;
}
inline void store(float* p, float x) { *p = x; }
inline void store(bf16* p, float x) {  // to nearest, ties to even; NaN stays NaN
    uint32_t u;
    std::memcpy(&u, &x, 4);
    uint32_t rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
    p->bits = uint16_t((u & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded);
}
template <typename T>
inline float rounded(float x) {
    T t;
    store(&t, x);
    return load(t);
}

// Vectors of 16 floats, which the compiler maps onto whatever registers the machine has.
constexpr int LANES = 16;
typedef float lanes __attribute__((vector_size(64)));
inline lanes load_lanes(const float* p) {
    lanes x;
    std::memcpy(&x, p, sizeof x);
    return x;
}
inline lanes load_lanes(const bf16* p) {
#ifdef __AVX512F__  // one instruction, where the compiler finds three
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p));
    return (lanes)_mm512_slli_epi32(wide, 16);
#else
    typedef uint16_t narrow __attribute__((vector_size(32)));
    typedef uint32_t wide __attribute__((vector_size(64)));
    narrow bits;
    std::memcpy(&bits, p, sizeof bits);
    return (lanes)(__builtin_convertvector(bits, wide) << 16);
#endif
}

// exp to 2 units in the last place, without a branch so that it vectorises; 0 below -87.
inline float fast_exp(float x) {
    float y = std::min(std::max(x, -87.0f), 88.0f);
    float n = (y * 1.44269504f + 12582912.0f) - 12582912.0f;  // nearest integer
    float r = (y - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    int32_t i = (int32_t(n) + 127) << 23;
    float scale;
    std::memcpy(&scale, &i, 4);
    return x < -87.0f ? 0.0f : p * scale;
}
inline float sigmoid(float x) { return 1.0f / (1.0f + fast_exp(-x)); }

// ---------------------------------------------------------------------------------------------------- RMS norm
// out = weight * x / rms(x), where first, if delta is given, x += delta in place. x, delta, out (rows, width).
template <typename T>
void rms_norm(T* x, const T* delta, const T* weight, T* out, float* inverse, int64_t rows, int64_t width, float eps,
              int threads) {
#pragma omp parallel for num_threads(threads) if (rows * width > 8192)
    for (int64_t r = 0; r < rows; ++r) {
        T* row = x + r * width;
        if (delta) {
            const T* d = delta + r * width;
#pragma omp simd
            for (int64_t i = 0; i < width; ++i) store(&row[i], load(row[i]) + load(d[i]));
        }
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < width; ++i) sum += load(row[i]) * load(row[i]);
        float scale = 1.0f / std::sqrt(sum / width + eps);
        if (inverse) inverse[r] = scale;
        T* o = out + r * width;
#pragma omp simd
        for (int64_t i = 0; i < width; ++i) store(&o[i], load(weight[i]) * rounded<T>(load(row[i]) * scale));
    }
}

// Gradients of rms_norm: grad_x (rows, width) and grad_weight (threads, width) float, one partial sum a thread.
template <typename T>
void rms_norm_backward(const T* grad, const T* x, const T* weight, const float* inverse, T* grad_x, float* grad_weight,
                       int64_t rows, int64_t width, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int t = 0; t < threads; ++t) {
        float* own = grad_weight + t * width;
        std::fill(own, own + width, 0.0f);
        for (int64_t r = rows * t / threads; r < rows * (t + 1) / threads; ++r) {
            const T *g = grad + r * width, *row = x + r * width;
            float scale = inverse[r], dot = 0;
#pragma omp simd reduction(+ : dot)
            for (int64_t i = 0; i < width; ++i) {
                float normed = load(row[i]) * scale, gi = load(g[i]);
                own[i] += gi * rounded<T>(normed);
                dot += gi * load(weight[i]) * normed;
            }
            dot /= width;
            T* o = grad_x + r * width;
#pragma omp simd
            for (int64_t i = 0; i < width; ++i)
                store(&o[i], scale * (load(g[i]) * load(weight[i]) - load(row[i]) * scale * dot));
        }
    }
}

// ------------------------------------------------------------------------------------------------------ SwiGLU
// out = silu(gate) * up; gate and up are rows of `width` at a distance of `stride`, out (rows, width).
template <typename T>
void swiglu(const T* gate, const T* up, T* out, int64_t rows, int64_t width, int64_t stride, int threads) {
#pragma omp parallel for num_threads(threads) if (rows * width > 8192)
    for (int64_t r = 0; r < rows; ++r) {
        const T *g = gate + r * stride, *u = up + r * stride;
        T* o = out + r * width;
#pragma omp simd
        for (int64_t i = 0; i < width; ++i) {
            float x = load(g[i]);
            store(&o[i], rounded<T>(x * sigmoid(x)) * load(u[i]));
        }
    }
}

template <typename T>
void swiglu_backward(const T* grad, const T* gate, const T* up, T* grad_gate, T* grad_up, int64_t size, int threads) {
#pragma omp parallel for simd num_threads(threads)
    for (int64_t i = 0; i < size; ++i) {
        float x = load(gate[i]), s = sigmoid(x), g = load(grad[i]);
        store(&grad_up[i], g * rounded<T>(x * s));
        store(&grad_gate[i], g * load(up[i]) * s * (1.0f + x * (1.0f - s)));
    }
}

// ------------------------------------------------------------------------------------------------- log-softmax
// Of each row of logits (rows, vocabulary), divided by the temperature: its greatest entry, the logarithm of the sum
// of exponentials relative to that, and the expectation of the entries relative to it.
template <typename T>
void softmax_stats(const T* logits, float* top, float* total, float* expected, int64_t rows, int64_t vocabulary,
                   float temperature, int threads) {
#pragma omp parallel for num_threads(threads) schedule(dynamic, 4)
    for (int64_t r = 0; r < rows; ++r) {
        const T* row = logits + r * vocabulary;
        float high = -INFINITY;
#pragma omp simd reduction(max : high)
        for (int64_t i = 0; i < vocabulary; ++i) high = std::max(high, load(row[i]));
        double sum = 0, moment = 0;  // of pieces, since a float loses bits over 100,000 terms
        for (int64_t begin = 0; begin < vocabulary; begin += 1024) {
            int64_t end = std::min(begin + 1024, vocabulary);
            float s = 0, m = 0;
#pragma omp simd reduction(+ : s, m)
            for (int64_t i = begin; i < end; ++i) {
                float x = (load(row[i]) - high) / temperature, e = fast_exp(x);
                s += e;
                m += e == 0.0f ? 0.0f : e * x;  // -inf * 0
            }
            sum += s;
            moment += m;
        }
        top[r] = high / temperature;
        total[r] = float(std::log(sum));
        expected[r] = float(moment / sum);
    }
}

// Gradient of a loss that has derivative weight[r] in (the sum of the taken) log p and `entropy_weight[r]` in row r's
// entropy, but for the term of the taken token. May write over the logits.
template <typename T>
void softmax_backward(const T* logits, T* grad, const float* top, const float* total, const float* expected,
                      const float* weight, const float* entropy_weight, int64_t rows, int64_t vocabulary,
                      float temperature, int threads) {
#pragma omp parallel for num_threads(threads) schedule(dynamic, 4)
    for (int64_t r = 0; r < rows; ++r) {
        const T* row = logits + r * vocabulary;
        T* out = grad + r * vocabulary;
        float high = top[r] * temperature, scale = -1.0f / temperature;
        float w = weight[r], ew = entropy_weight[r], mean = expected[r], t = total[r];
#pragma omp simd
        for (int64_t i = 0; i < vocabulary; ++i) {
            float x = (load(row[i]) - high) / temperature;
            float p = fast_exp(x - t);
            store(&out[i], p == 0.0f ? 0.0f : p * scale * (w + ew * (x - mean)));
        }
    }
}

// -------------------------------------------------------------------------------------------- softmax of attention
// In place: scores (batch, heads, queries, keys) become softmax(scores * scaling + mask) over the keys. mask (batch or 1,
// 1, queries, keys), its rows and batches at a distance; null for none.
template <typename T>
void attention_softmax(T* scores, const T* mask, int64_t mask_batch, int64_t mask_row, float scaling, int64_t batch,
                       int64_t heads, int64_t queries, int64_t keys, int threads) {
#pragma omp parallel num_threads(threads) if (batch * heads * queries * keys > 8192)
    {
        std::vector<float> x(keys);
#pragma omp for schedule(static)
        for (int64_t r = 0; r < batch * heads * queries; ++r) {
            T* row = scores + r * keys;
            const T* add = mask ? mask + r / (heads * queries) * mask_batch + r % queries * mask_row : nullptr;
            float high = -INFINITY, sum = 0;
            if (add) {
#pragma omp simd reduction(max : high)
                for (int64_t i = 0; i < keys; ++i) {
                    x[i] = load(row[i]) * scaling + load(add[i]);
                    high = std::max(high, x[i]);
                }
            } else {
#pragma omp simd reduction(max : high)
                for (int64_t i = 0; i < keys; ++i) {
                    x[i] = load(row[i]) * scaling;
                    high = std::max(high, x[i]);
                }
            }
#pragma omp simd reduction(+ : sum)
            for (int64_t i = 0; i < keys; ++i) {
                x[i] = fast_exp(x[i] - high);
                sum += x[i];
            }
            float scale = 1.0f / sum;
#pragma omp simd
            for (int64_t i = 0; i < keys; ++i) store(&row[i], x[i] * scale);
        }
    }
}

// In place: grad (rows, keys) in the weights that attention_softmax gave becomes that in its scores.
template <typename T>
void attention_softmax_backward(T* grad, const T* weights, float scaling, int64_t rows, int64_t keys, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (rows * keys > 8192)
    for (int64_t r = 0; r < rows; ++r) {
        T* g = grad + r * keys;
        const T* w = weights + r * keys;
        float dot = 0;
#pragma omp simd reduction(+ : dot)
        for (int64_t i = 0; i < keys; ++i) dot += load(g[i]) * load(w[i]);
#pragma omp simd
        for (int64_t i = 0; i < keys; ++i) store(&g[i], load(w[i]) * (load(g[i]) - dot) * scaling);
    }
}

// ------------------------------------------------------------------------------------------------------ sampling
// Token of each row of logits by inverse CDF at uniform[r] in [0, 1), or the first greatest where temperature[r] is 0,
// and its log-probability at that temperature (at 1 where it is 0).
template <typename T>
void sample(const T* logits, const float* temperature, const double* uniform, int64_t* token, float* logp, int64_t rows,
            int64_t vocabulary, int threads) {
    constexpr int64_t PIECE = 512;
    int64_t pieces = (vocabulary + PIECE - 1) / PIECE;
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> mass(pieces);
#pragma omp for schedule(dynamic, 1)
        for (int64_t r = 0; r < rows; ++r) {
            const T* row = logits + r * vocabulary;
            float scale = temperature[r] > 0 ? 1.0f / temperature[r] : 1.0f, high = -INFINITY;
#pragma omp simd reduction(max : high)
            for (int64_t i = 0; i < vocabulary; ++i) high = std::max(high, load(row[i]));
            double sum = 0;
            for (int64_t p = 0; p < pieces; ++p) {
                float s = 0;
                int64_t end = std::min((p + 1) * PIECE, vocabulary);
#pragma omp simd reduction(+ : s)
                for (int64_t i = p * PIECE; i < end; ++i) s += fast_exp((load(row[i]) - high) * scale);
                mass[p] = s;
                sum += s;
            }
            int64_t chosen = -1;
            if (temperature[r] > 0) {
                double target = uniform[r] * sum, before = 0;
                int64_t p = 0;
                while (p < pieces - 1 && before + mass[p] <= target) before += mass[p++];
                int64_t end = std::min((p + 1) * PIECE, vocabulary);
                for (int64_t i = p * PIECE; i < end; ++i) {
                    float e = fast_exp((load(row[i]) - high) * scale);
                    if (e > 0) chosen = i;  // rounding may leave the target beyond the last: then the last possible
                    before += e;
                    if (before > target && e > 0) break;
                }
            }
            if (chosen < 0)  // greedy, or a last piece without mass
                for (chosen = 0; load(row[chosen]) != high && chosen < vocabulary - 1;) ++chosen;
            token[r] = chosen;
            logp[r] = float((load(row[chosen]) - high) * scale - std::log(sum));
        }
    }
}

// ------------------------------------------------------------------------------------------- rotary embedding
// out = x cosine + rotate_half(x) sine, or, with `transposed`, the gradient of that in x given its gradient x. x and out
// are (batch, heads, tokens, width) with strides {batch, heads, tokens}; cosine, sine (batch or 1, tokens, width).
template <typename T>
void rotary(const T* x, const T* cosine, const T* sine, T* out, const int64_t* from, const int64_t* to,
            int64_t angle_stride, int64_t batch, int64_t heads, int64_t tokens, int64_t width, int64_t transposed,
            int threads) {
    int64_t half = width / 2;
#pragma omp parallel for collapse(2) num_threads(threads)
    for (int64_t b = 0; b < batch; ++b)
        for (int64_t t = 0; t < tokens; ++t) {
            const T *c = cosine + b * angle_stride + t * width, *s = sine + b * angle_stride + t * width;
            for (int64_t h = 0; h < heads; ++h) {
                const T* in = x + b * from[0] + h * from[1] + t * from[2];
                T* o = out + b * to[0] + h * to[1] + t * to[2];
                if (transposed) {
#pragma omp simd
                    for (int64_t i = 0; i < half; ++i) {
                        float low = load(in[i]), high = load(in[i + half]);
                        store(&o[i], low * load(c[i]) + high * load(s[i + half]));
                        store(&o[i + half], high * load(c[i + half]) - low * load(s[i]));
                    }
                } else {
#pragma omp simd
                    for (int64_t i = 0; i < half; ++i) {
                        float low = load(in[i]), high = load(in[i + half]);
                        store(&o[i], rounded<T>(low * load(c[i])) - rounded<T>(high * load(s[i])));
                        store(&o[i + half], rounded<T>(high * load(c[i + half])) + rounded<T>(low * load(s[i + half])));
                    }
                }
            }
        }
}

// --------------------------------------------------------------------------------------------- decoding attention
// The cache holds neighbours that are summed over side by side, in pairs for bfloat16, as the processor's bfloat16 dot
// product takes them: in a block of keys two entries of the head, (width / PAIR, BLOCK, PAIR), in one of values two
// tokens, (BLOCK / PAIR, width, PAIR).
template <typename T>
constexpr int PAIR = sizeof(T) == 2 ? 2 : 1;

// LANES sums of one product, or of two, each: sum + w * data.
inline lanes load_data(const float* p) { return load_lanes(p); }
inline lanes dot(lanes sum, const float* w, lanes data) { return sum + *w * data; }
#ifdef __AVX512BF16__
inline __m512bh load_data(const bf16* p) { return (__m512bh)_mm512_loadu_si512(p); }
inline lanes dot(lanes sum, const bf16* w, __m512bh data) {
    int32_t both;
    std::memcpy(&both, w, 4);
    return (lanes)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(both), data);
}
#else
struct Both {
    lanes first, second;
};
inline Both load_data(const bf16* p) {
    typedef uint32_t words __attribute__((vector_size(64)));
    words x;
    std::memcpy(&x, p, sizeof x);
    return {(lanes)(x << 16), (lanes)(x & 0xffff0000u)};
}
inline lanes dot(lanes sum, const bf16* w, Both data) {
    return sum + load(w[0]) * data.first + load(w[1]) * data.second;
}
#endif

// Rotary embedding of the queries and keys in qkv (rows, (heads + 2 kv_heads) width), each head first normalised by
// RMS where q_norm and k_norm are given; queries go to `query` (rows, heads, width), keys and values into the cache
// at position[r] of row r. cosine, sine (positions, width).
template <typename T>
void rotate_and_write(const T* qkv, const T* cosine, const T* sine, const T* q_norm, const T* k_norm, float eps,
                      const int32_t* position, const int32_t* table, int64_t table_width, T* query, T* keys, T* values,
                      int64_t rows, int64_t heads, int64_t kv_heads, int64_t width, int threads) {
    constexpr int P = PAIR<T>;
#pragma omp parallel for num_threads(threads)
    for (int64_t r = 0; r < rows; ++r) {
        const T* in = qkv + r * (heads + 2 * kv_heads) * width;
        const T *c = cosine + position[r] * width, *s = sine + position[r] * width;
        int64_t block = table[r * table_width + position[r] / BLOCK], slot = position[r] % BLOCK, half = width / 2;
        std::vector<float> x(width), y(width);
        for (int64_t h = 0; h < heads + kv_heads; ++h) {
            const T* norm = h < heads ? q_norm : k_norm;
            float sum = 0, scale = 1;
            for (int64_t i = 0; i < width; ++i) x[i] = load(in[h * width + i]);
            if (norm) {
                for (int64_t i = 0; i < width; ++i) sum += x[i] * x[i];
                scale = 1.0f / std::sqrt(sum / width + eps);
                for (int64_t i = 0; i < width; ++i) x[i] = rounded<T>(load(norm[i]) * rounded<T>(x[i] * scale));
            }
            for (int64_t i = 0; i < half; ++i) {
                y[i] = rounded<T>(x[i] * load(c[i])) - rounded<T>(x[i + half] * load(s[i]));
                y[i + half] = rounded<T>(x[i + half] * load(c[i + half])) + rounded<T>(x[i] * load(s[i + half]));
            }
            if (h < heads) {
                T* out = query + (r * heads + h) * width;
                for (int64_t i = 0; i < width; ++i) store(&out[i], y[i]);
            } else {
                T* out = keys + (block * kv_heads + h - heads) * width * BLOCK + slot * P;
                for (int64_t i = 0; i < width; ++i) store(&out[i / P * P * BLOCK + i % P], y[i]);
            }
        }
        for (int64_t h = 0; h < kv_heads; ++h) {
            const T* from = in + (heads + kv_heads + h) * width;
            T* out = values + ((block * kv_heads + h) * BLOCK + slot / P * P) * width;
            for (int64_t i = 0; i < width; ++i) out[i * P + slot % P] = from[i];
            if (slot % P == 0 && P == 2)  // the partner, which is read before it is written, with weight 0
                for (int64_t i = 0; i < width; ++i) store(&out[i * P + 1], 0.0f);
        }
    }
}

// GROUP query heads that share a kv head against one row's cached tokens. Scores and weights are rounded as they are
// in training. `scores` and `weights` have room for GROUP * (length + BLOCK).
template <typename T, int GROUP>
void attend_group(const T* query, const T* keys, const T* values, const int32_t* table, int64_t length, T* out,
                  int64_t kv_heads, int64_t kv, int64_t width, float scaling, float* scores, T* weights) {
    constexpr int P = PAIR<T>;
    int64_t blocks = (length + BLOCK - 1) / BLOCK, span = blocks * BLOCK;
    for (int64_t b = 0; b < blocks; ++b) {
        const T* k = keys + (int64_t(table[b]) * kv_heads + kv) * width * BLOCK;
        // two blocks ahead, into L2: a block is a page or so, where the processor stops prefetching by itself
        const T* next = b + 2 < blocks ? keys : values;
        next += (int64_t(table[(b + 2) % blocks]) * kv_heads + kv) * width * BLOCK;
        lanes sum[GROUP][2] = {};
        for (int64_t i = 0; i < width; i += P) {
            __builtin_prefetch(next + i * BLOCK, 0, 2);
            __builtin_prefetch(next + i * BLOCK + LANES * P, 0, 2);
            auto low = load_data(k + i * BLOCK), high = load_data(k + i * BLOCK + LANES * P);
            for (int g = 0; g < GROUP; ++g) {
                sum[g][0] = dot(sum[g][0], query + g * width + i, low);
                sum[g][1] = dot(sum[g][1], query + g * width + i, high);
            }
        }
        for (int g = 0; g < GROUP; ++g)
            for (int j = 0; j < 2; ++j)
                std::memcpy(scores + g * span + b * BLOCK + j * LANES, &sum[g][j], sizeof(lanes));
    }
    for (int g = 0; g < GROUP; ++g) {
        float *s = scores + g * span, high = -INFINITY, sum = 0;
        T* w = weights + g * span;
#pragma omp simd reduction(max : high)
        for (int64_t t = 0; t < length; ++t) high = std::max(high, s[t] = rounded<T>(s[t]) * scaling);
#pragma omp simd reduction(+ : sum)
        for (int64_t t = 0; t < length; ++t) sum += s[t] = fast_exp(s[t] - high);
        float scale = 1.0f / sum;
#pragma omp simd
        for (int64_t t = 0; t < length; ++t) store(&w[t], s[t] * scale);
        for (int64_t t = length; t < span; ++t) store(&w[t], 0.0f);
    }
    int64_t part = 0;
    for (; part + 4 * LANES <= width; part += 4 * LANES) {  // 16 sums: as many as stay in registers
        lanes sum[GROUP][4] = {};
        for (int64_t b = 0; b < blocks; ++b) {
            const T* v = values + (int64_t(table[b]) * kv_heads + kv) * width * BLOCK + part * P;
            const T* next = values + part * P;
            next += (int64_t(table[std::min(b + 2, blocks - 1)]) * kv_heads + kv) * width * BLOCK;
            int64_t filled = std::min<int64_t>(BLOCK, length - b * BLOCK);
            for (int64_t t = 0; t < filled; t += P)
                for (int j = 0; j < 4; ++j) {
                    __builtin_prefetch(next + t * width + j * LANES * P, 0, 2);
                    auto data = load_data(v + t * width + j * LANES * P);
                    for (int g = 0; g < GROUP; ++g)
                        sum[g][j] = dot(sum[g][j], weights + g * span + b * BLOCK + t, data);
                }
        }
        for (int g = 0; g < GROUP; ++g) {
            float flat[4 * LANES];
            std::memcpy(flat, sum[g], sizeof flat);
            for (int i = 0; i < 4 * LANES; ++i) store(&out[g * width + part + i], flat[i]);
        }
    }
    for (; part < width; ++part)  // a width that is no multiple of 64
        for (int g = 0; g < GROUP; ++g) {
            float sum = 0;
            for (int64_t t = 0; t < length; ++t) {
                const T* v = values + (int64_t(table[t / BLOCK]) * kv_heads + kv) * width * BLOCK;
                int64_t slot = t % BLOCK;
                sum += load(weights[g * span + t]) * load(v[slot / P * P * width + part * P + slot % P]);
            }
            store(&out[g * width + part], sum);
        }
}

// One query token a row against its row's cached tokens 0 .. position[r]. query, out (rows, heads, width).
template <typename T>
void attend(const T* query, const T* keys, const T* values, const int32_t* position, const int32_t* table,
            int64_t table_width, T* out, int64_t rows, int64_t heads, int64_t kv_heads, int64_t width, float scaling,
            int threads) {
    int64_t group = heads / kv_heads;
    int32_t longest = *std::max_element(position, position + rows) + 1;
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> scores(4 * (longest + BLOCK));
        std::vector<T> weights(4 * (longest + BLOCK));
        // kv head by kv head, so that rows that share a prompt's blocks find them in the cache
#pragma omp for schedule(dynamic, 8)
        for (int64_t pair = 0; pair < rows * kv_heads; ++pair) {
            int64_t kv = pair / rows, r = pair % rows;
            for (int64_t g = 0; g < group;) {
                const T* q = query + (r * heads + kv * group + g) * width;
                T* o = out + (r * heads + kv * group + g) * width;
                const int32_t* blocks = table + r * table_width;
                int64_t length = position[r] + 1;
#define RUN(N)                                                                                                         \
    attend_group<T, N>(q, keys, values, blocks, length, o, kv_heads, kv, width, scaling, scores.data(), weights.data()), \
        g += N
                if (group - g >= 4) RUN(4);
                else if (group - g == 3) RUN(3);
                else if (group - g == 2) RUN(2);
                else RUN(1);
#undef RUN
            }
        }
    }
}

}  // namespace

#define EXPORT(T, SUFFIX)                                                                                             \
    extern "C" void rms_norm_##SUFFIX(T* x, const T* delta, const T* weight, T* out, float* inverse, int64_t rows,    \
                                      int64_t width, float eps, int threads) {                                        \
        rms_norm<T>(x, delta, weight, out, inverse, rows, width, eps, threads);                                       \
    }                                                                                                                 \
    extern "C" void rms_norm_backward_##SUFFIX(const T* grad, const T* x, const T* weight, const float* inverse,      \
                                               T* grad_x, float* grad_weight, int64_t rows, int64_t width,            \
                                               int threads) {                                                         \
        rms_norm_backward<T>(grad, x, weight, inverse, grad_x, grad_weight, rows, width, threads);                    \
    }                                                                                                                 \
    extern "C" void swiglu_##SUFFIX(const T* gate, const T* up, T* out, int64_t rows, int64_t width, int64_t stride,  \
                                    int threads) {                                                                    \
        swiglu<T>(gate, up, out, rows, width, stride, threads);                                                       \
    }                                                                                                                 \
    extern "C" void swiglu_backward_##SUFFIX(const T* grad, const T* gate, const T* up, T* grad_gate, T* grad_up,     \
                                             int64_t size, int threads) {                                             \
        swiglu_backward<T>(grad, gate, up, grad_gate, grad_up, size, threads);                                        \
    }                                                                                                                 \
    extern "C" void softmax_stats_##SUFFIX(const T* logits, float* top, float* total, float* expected, int64_t rows,  \
                                           int64_t vocabulary, float temperature, int threads) {                      \
        softmax_stats<T>(logits, top, total, expected, rows, vocabulary, temperature, threads);                       \
    }                                                                                                                 \
    extern "C" void softmax_backward_##SUFFIX(const T* logits, T* grad, const float* top, const float* total,         \
                                              const float* expected, const float* weight,                             \
                                              const float* entropy_weight, int64_t rows, int64_t vocabulary,          \
                                              float temperature, int threads) {                                       \
        softmax_backward<T>(logits, grad, top, total, expected, weight, entropy_weight, rows, vocabulary,             \
                            temperature, threads);                                                                    \
    }                                                                                                                 \
    extern "C" void attention_softmax_##SUFFIX(T* scores, const T* mask, int64_t mask_batch, int64_t mask_row,         \
                                               float scaling, int64_t batch, int64_t heads, int64_t queries,          \
                                               int64_t keys, int threads) {                                           \
        attention_softmax<T>(scores, mask, mask_batch, mask_row, scaling, batch, heads, queries, keys, threads);      \
    }                                                                                                                 \
    extern "C" void attention_softmax_backward_##SUFFIX(T* grad, const T* weights, float scaling, int64_t rows,        \
                                                        int64_t keys, int threads) {                                  \
        attention_softmax_backward<T>(grad, weights, scaling, rows, keys, threads);                                   \
    }                                                                                                                 \
    extern "C" void sample_##SUFFIX(const T* logits, const float* temperature, const double* uniform, int64_t* token, \
                                    float* logp, int64_t rows, int64_t vocabulary, int threads) {                     \
        sample<T>(logits, temperature, uniform, token, logp, rows, vocabulary, threads);                              \
    }                                                                                                                 \
    extern "C" void rotate_and_write_##SUFFIX(                                                                        \
        const T* qkv, const T* cosine, const T* sine, const T* q_norm, const T* k_norm, float eps,                    \
        const int32_t* position, const int32_t* table, int64_t table_width, T* query, T* keys, T* values,             \
        int64_t rows, int64_t heads, int64_t kv_heads, int64_t width, int threads) {                                  \
        rotate_and_write<T>(qkv, cosine, sine, q_norm, k_norm, eps, position, table, table_width, query, keys,        \
                            values, rows, heads, kv_heads, width, threads);                                           \
    }                                                                                                                 \
    extern "C" void rotary_##SUFFIX(const T* x, const T* cosine, const T* sine, T* out, const int64_t* from,          \
                                    const int64_t* to, int64_t angle_stride, int64_t batch, int64_t heads,            \
                                    int64_t tokens, int64_t width, int64_t transposed, int threads) {                 \
        rotary<T>(x, cosine, sine, out, from, to, angle_stride, batch, heads, tokens, width, transposed, threads);    \
    }                                                                                                                 \
    extern "C" void attend_##SUFFIX(const T* query, const T* keys, const T* values, const int32_t* position,          \
                                    const int32_t* table, int64_t table_width, T* out, int64_t rows, int64_t heads,   \
                                    int64_t kv_heads, int64_t width, float scaling, int threads) {                    \
        attend<T>(query, keys, values, position, table, table_width, out, rows, heads, kv_heads, width, scaling,      \
                  threads);                                                                                           \
    }

EXPORT(float, f32)
EXPORT(bf16, bf16)
