// One new token for every sequence of a batch: GPT.extend for CPUs, where the cache is not empty.
//
// Why not PyTorch's operators: with one token each is over in microseconds, so that calling them
// costs more than they do, and their sums run in an order that depends on the batch size. Here every
// number is summed in one order, whatever the batch and the thread count: an image comes out the
// same, bit for bit, alone or in a batch.
//
// All products have one form: as many results as a register has lanes grow side by side,
//     result[lane] = sum over k of matrix[k][lane] * x[k],
// so that no sum goes across lanes and memory is read from front to back. A word of 32 bits is one float32, or two consecutive k in
// bfloat16. Weights lie in panels of 64 outputs, [outputs / 64][k][64], cached keys in panels of 64
// positions, [T / 64][k][64], and cached values whole, [k][channels], k being positions there.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int64_t LANES = 16;  // floats in a register
constexpr int SUMS = 16;       // registers that hold sums
#elif defined(__AVX2__)
constexpr int64_t LANES = 8;
constexpr int SUMS = 8;
#else
constexpr int64_t LANES = 4;
constexpr int SUMS = 8;
#endif
constexpr int64_t PANEL = 64;
constexpr int64_t CHANNELS = 16;  // cached values are padded to a multiple of this
constexpr float NORM_EPS = 1e-5f;

typedef float Lanes __attribute__((vector_size(LANES * 4)));
typedef int32_t Ints __attribute__((vector_size(LANES * 4)));
typedef uint32_t Words __attribute__((vector_size(LANES * 4)));
typedef uint16_t Halves __attribute__((vector_size(LANES * 2)));

template <class To, class From>
To bits_of(From value) {
    static_assert(sizeof(To) == sizeof(From));
    To result;
    std::memcpy(&result, &value, sizeof(To));
    return result;
}

struct Float32 {
    static constexpr int64_t PER_WORD = 1;
    typedef float Number;
    static Lanes rounded(Lanes x) { return x; }
    static Lanes add_product(Lanes sum, Words w, uint32_t x) {
        return sum + (Lanes)w * bits_of<float>(x);
    }
};

struct BFloat16 {
    static constexpr int64_t PER_WORD = 2;
    typedef uint16_t Number;
    static Halves rounded(Lanes x) {  // to nearest, ties to even
        Words bits = (Words)x;
        return __builtin_convertvector((bits + 0x7fff + ((bits >> 16) & 1)) >> 16, Halves);
    }
    static Lanes add_product(Lanes sum, Words w, uint32_t x) {
#ifdef __AVX512BF16__
        return (Lanes)_mm512_dpbf16_ps((__m512)sum, (__m512bh)w, (__m512bh)_mm512_set1_epi32(x));
#else
        sum = sum + (Lanes)(w << 16) * bits_of<float>(x << 16);
        return sum + (Lanes)(w & 0xffff0000u) * bits_of<float>(x & 0xffff0000u);
#endif
    }
};

int64_t up(int64_t n, int64_t unit) { return (n + unit - 1) / unit; }

Lanes load(const float *x) { return *reinterpret_cast<const Lanes *>(x); }

// e^x to 2e-7; 0 below what float32 holds at full precision, finite above.
Lanes exponential(Lanes x) {
    Ints below = x < -87.0f;
    x = x > 88.0f ? Lanes{} + 88.0f : x;
    x = below ? Lanes{} : x;
    Lanes scaled = x * 1.44269504f;
    Ints n = __builtin_convertvector(scaled + (scaled < 0.0f ? Lanes{} - 0.5f : Lanes{} + 0.5f), Ints);
    Lanes whole = __builtin_convertvector(n, Lanes);
    Lanes r = x - whole * 0.693359375f + whole * 2.12194440e-4f;  // ln 2 in two parts
    Lanes p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    Lanes result = (p * r * r + r + 1.0f) * (Lanes)((n + 127) << 23);
    return below ? Lanes{} : result;
}

Lanes quick_gelu(Lanes x) { return x / (1.0f + exponential(x * -1.702f)); }

float sum_of(Lanes x) {
    float sum = 0;
    for (int64_t i = 0; i < LANES; i++) sum += x[i];
    return sum;
}

float max_of(Lanes x) {
    float largest = x[0];
    for (int64_t i = 1; i < LANES; i++) largest = std::max(largest, x[i]);
    return largest;
}

// Stores the first `count` lanes, rounded.
template <class Type>
void store(Lanes x, int64_t count, typename Type::Number *out) {
    auto numbers = Type::rounded(x);
    std::memcpy(out, &numbers, count * sizeof(*out));
}

// sums[c][r]: the columns of register c times row r of x; `stride` words lie between rows k.
template <class Type, int C, int R>
inline __attribute__((always_inline)) void multiply(
    Lanes (&sums)[C][R], const uint32_t *matrix, int64_t stride, const uint32_t *x, int64_t n_words
) {
    for (int c = 0; c < C; c++)
        for (int r = 0; r < R; r++) sums[c][r] = Lanes{};
    for (int64_t k = 0; k < n_words; k++)
        for (int c = 0; c < C; c++) {
            Words w = *reinterpret_cast<const Words *>(matrix + k * stride + c * LANES);
            for (int r = 0; r < R; r++)
                sums[c][r] = Type::add_product(sums[c][r], w, x[r * n_words + k]);
        }
}

// emit(row, first column, sums) for C registers of columns and every row.
template <class Type, int C, class Emit>
void multiply_rows(
    const uint32_t *matrix, int64_t stride, int64_t column, const uint32_t *x, int64_t n_rows,
    int64_t n_words, Emit &emit
) {
    constexpr int R = std::max(1, SUMS / C);
    int64_t row = 0;
    for (; row + R <= n_rows; row += R) {
        Lanes sums[C][R];
        multiply<Type, C, R>(sums, matrix + column, stride, x + row * n_words, n_words);
        for (int r = 0; r < R; r++)
            for (int c = 0; c < C; c++) emit(row + r, column + c * LANES, sums[c][r]);
    }
    for (; row < n_rows; row++) {
        Lanes sums[C][1];
        multiply<Type, C, 1>(sums, matrix + column, stride, x + row * n_words, n_words);
        for (int c = 0; c < C; c++) emit(row, column + c * LANES, sums[c][0]);
    }
}

// The same for all columns from `column` to before `end`, which are multiples of LANES.
template <class Type, class Emit>
void multiply_columns(
    const uint32_t *matrix, int64_t stride, int64_t column, int64_t end, const uint32_t *x,
    int64_t n_rows, int64_t n_words, Emit emit
) {
    for (; column + 4 * LANES <= end; column += 4 * LANES)
        multiply_rows<Type, 4>(matrix, stride, column, x, n_rows, n_words, emit);
    for (; column + 2 * LANES <= end; column += 2 * LANES)
        multiply_rows<Type, 2>(matrix, stride, column, x, n_rows, n_words, emit);
    for (; column < end; column += LANES)
        multiply_rows<Type, 1>(matrix, stride, column, x, n_rows, n_words, emit);
}

}  // namespace

extern "C" {

// The structures and their order are those of decoder.py; rows of floats are padded with 0 to 64.
struct Matrix {
    const uint32_t *panels;
    const float *bias;
};

struct Block {
    const float *norm_1, *norm_2;
    Matrix c_attn, c_proj, c_fc, mlp_proj;
    uint32_t *keys, *values;
};

struct Network {
    int64_t n_layer, n_head, width, n_colors, seq_len, batch_size, n_threads;
    const float *token_table, *position_table, *norm_f;
    Matrix head;
    const Block *blocks;
};
}

namespace {

// What one step works on. The threads share all of it; every `omp for` ends with a barrier.
template <class Type>
struct Step {
    typedef typename Type::Number Number;
    static constexpr int64_t PER_WORD = Type::PER_WORD;

    const Network &net;
    const int64_t position, B, D, padded, E;
    std::vector<Lanes> stream_lanes;
    float *const stream;                    // (B, padded)
    std::vector<Number> qkv, narrow, wide;  // (B, 3 D); input of a product: (B, D), (B, 4 D)

    Step(const Network &net, int64_t position)
        : net(net), position(position), B(net.batch_size), D(net.width),
          padded(up(D, LANES) * LANES), E(D / net.n_head), stream_lanes(B * padded / LANES),
          stream(reinterpret_cast<float *>(stream_lanes.data())), qkv(B * 3 * D), narrow(B * D),
          wide(B * 4 * D) {}

    static const uint32_t *words(const Number *x) { return reinterpret_cast<const uint32_t *>(x); }

    // emit(row, first output, outputs) for all rows of x, (B, n_in).
    template <class Emit>
    void linear(
        const Matrix &matrix, int64_t n_out, int64_t n_in, const std::vector<Number> &x, Emit emit
    ) {
        int64_t n_words = n_in / PER_WORD, columns = up(n_out, LANES) * LANES;
        int64_t part = n_out / PANEL >= net.n_threads ? PANEL : LANES;  // what a thread takes
#pragma omp for schedule(static)
        for (int64_t first = 0; first < columns; first += part) {
            int64_t panel = first / PANEL * PANEL, end = std::min(first + part, columns);
            multiply_columns<Type>(
                matrix.panels + panel * n_words, PANEL, first - panel, end - panel, words(x.data()),
                B, n_words, [&](int64_t row, int64_t column, Lanes sums) {
                    emit(row, panel + column, sums + load(matrix.bias + panel + column));
                });
        }
    }

    void embed(const int64_t *tokens) {
#pragma omp for schedule(static)
        for (int64_t row = 0; row < B; row++)
            for (int64_t d = 0; d < D; d++)
                stream[row * padded + d] =
                    net.token_table[tokens[row] * D + d] + net.position_table[position * D + d];
    }

    void normalise(const float *gain) {
#pragma omp for schedule(static)
        for (int64_t row = 0; row < B; row++) {
            const float *x = stream + row * padded;
            Lanes squares{};
            for (int64_t d = 0; d < D; d += LANES) squares += load(x + d) * load(x + d);
            float scale = 1.0f / std::sqrt(sum_of(squares) / D + NORM_EPS);
            for (int64_t d = 0; d < D; d += LANES)
                store<Type>(load(x + d) * scale * load(gain + d), std::min(LANES, D - d),
                            &narrow[row * D + d]);
        }
    }

    void add_to_stream(int64_t row, int64_t first, Lanes sums) {
        float *x = stream + row * padded + first;
        for (int64_t i = 0; i < std::min(LANES, D - first); i++) x[i] += sums[i];
    }

    // One head of one sequence: keep its key and value, then look at every position so far.
    void attend(const Block &block, int64_t row, int64_t head, Lanes *scores) {
        int64_t pair = row * net.n_head + head, length = position + 1;
        int64_t time = up(net.seq_len, PANEL) * PANEL, channels = up(E, CHANNELS) * CHANNELS;
        Number *keys = reinterpret_cast<Number *>(block.keys) + pair * time * E;
        Number *values = reinterpret_cast<Number *>(block.values) + pair * time * channels;
        const Number *q = &qkv[row * 3 * D + head * E], *k = q + D, *v = k + D;
        // Where number k of a column stands among columns of which `width` lie side by side.
        auto place = [](int64_t k, int64_t column, int64_t width) {
            return (k / PER_WORD * width + column) * PER_WORD + k % PER_WORD;
        };
        for (int64_t e = 0; e < E; e++) {
            keys[position / PANEL * PANEL * E + place(e, position % PANEL, PANEL)] = k[e];
            values[place(position, e, channels)] = v[e];
        }

        Lanes largest = Lanes{} - INFINITY;
        for (int64_t panel = 0; panel < length; panel += PANEL)
            multiply_columns<Type>(
                words(keys + panel * E), PANEL, 0, up(std::min(PANEL, length - panel), LANES) * LANES,
                words(q), 1, E / PER_WORD, [&](int64_t, int64_t column, Lanes sums) {
                    Lanes score = sums * (1.0f / std::sqrt(float(E)));
                    int64_t filled = length - panel - column;
                    for (int64_t i = filled; i < LANES; i++) score[i] = -INFINITY;
                    scores[(panel + column) / LANES] = score;
                    largest = score > largest ? score : largest;
                });

        // Softmax; its weights overwrite the scores, and the division waits for the end.
        float top = max_of(largest);
        Number *weights = reinterpret_cast<Number *>(scores);
        Lanes total{};
        for (int64_t i = 0; i < up(length, LANES); i++) {
            Lanes weight = exponential(scores[i] - top);
            total += weight;
            store<Type>(weight, LANES, weights + i * LANES);
        }
        float divisor = sum_of(total);
        multiply_columns<Type>(
            words(values), channels, 0, channels, words(weights), 1, up(length, PER_WORD),
            [&](int64_t, int64_t e, Lanes sums) {
                if (e < E)
                    store<Type>(
                        sums / divisor, std::min(LANES, E - e), &narrow[row * D + head * E + e]);
            });
    }

    void attention(const Block &block) {
        std::vector<Lanes> scores(up(position + 1, LANES));
#pragma omp for schedule(static)
        for (int64_t pair = 0; pair < B * net.n_head; pair++)
            attend(block, pair / net.n_head, pair % net.n_head, scores.data());
    }
    void run(const int64_t *tokens, float *logits) {
        auto add = [&](int64_t row, int64_t first, Lanes sums) { add_to_stream(row, first, sums); };
        embed(tokens);
        for (const Block *block = net.blocks; block < net.blocks + net.n_layer; block++) {
            normalise(block->norm_1);
            linear(block->c_attn, 3 * D, D, narrow, [&](int64_t row, int64_t first, Lanes sums) {
                store<Type>(sums, std::min(LANES, 3 * D - first), &qkv[row * 3 * D + first]);
            });
            attention(*block);
            linear(block->c_proj, D, D, narrow, add);
            normalise(block->norm_2);
            linear(block->c_fc, 4 * D, D, narrow, [&](int64_t row, int64_t first, Lanes sums) {
                store<Type>(quick_gelu(sums), std::min(LANES, 4 * D - first),
                            &wide[row * 4 * D + first]);
            });
            linear(block->mlp_proj, D, 4 * D, wide, add);
        }
        normalise(net.norm_f);
        linear(net.head, net.n_colors, D, narrow, [&](int64_t row, int64_t first, Lanes sums) {
            std::memcpy(logits + row * net.n_colors + first, &sums,
                        std::min(LANES, net.n_colors - first) * sizeof(float));
        });
    }
};

template <class Type>
void decode(const Network *net, int64_t position, const int64_t *tokens, float *logits) {
    Step<Type> step(*net, position);
#pragma omp parallel num_threads(net->n_threads)
    step.run(tokens, logits);
}

}  // namespace

extern "C" {

// Whether this processor multiplies bfloat16 itself.
int has_bfloat16() {
#ifdef __AVX512BF16__
    return 1;
#else
    return 0;
#endif
}

// tokens (B,) stand before `position`; logits (B, K) of the token at `position`.
void decode_float32(const Network *net, int64_t position, const int64_t *tokens, float *logits) {
    decode<Float32>(net, position, tokens, logits);
}

void decode_bfloat16(const Network *net, int64_t position, const int64_t *tokens, float *logits) {
    decode<BFloat16>(net, position, tokens, logits);
}
}
