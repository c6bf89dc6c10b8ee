// Tokens through the network: GPT.extend for CPUs.
//
// Why not PyTorch's operators: with one token each is over in microseconds, so that calling them
// costs more than they do, and their sums run in an order that depends on the batch size. Here every
// number is summed in one order, whatever the batch and the thread count: an image comes out the
// same, bit for bit, alone or in a batch.
//
// All products have one form: as many results as a register has lanes grow side by side,
//     result[lane] = sum over k of matrix[k][lane] * x[k],
// so that no sum goes across lanes and memory is read from front to back. A word of 32 bits is one
// float32, or two consecutive k in bfloat16. Weights lie in panels of 64 outputs,
// [outputs / 64][k][64], cached keys in panels of 64 positions, [T / 64][k][64], and cached values
// whole, [k][channels], k being positions there. This is also what the tiles of AMX read: 16 rows
// of x at once.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif
#if defined(__AMX_BF16__) && defined(__AMX_TILE__) && defined(__linux__)
#define HAS_TILES
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "crew.h"

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

// sums[c][r]: the columns of register c times row r of x; `stride` words lie between rows k. Each sum
// grows in STRANDS, every STRANDS-th k, so that few sums need not wait for each addition.
template <class Type, int C, int R, int STRANDS>
inline __attribute__((always_inline)) void multiply(
    Lanes (&sums)[C][R], const uint32_t *matrix, int64_t stride, const uint32_t *x, int64_t n_words
) {
    Lanes strands[STRANDS][C][R] = {};
    auto add = [&](int64_t k, int strand) {
        for (int c = 0; c < C; c++) {
            Words w = *reinterpret_cast<const Words *>(matrix + k * stride + c * LANES);
            for (int r = 0; r < R; r++)
                strands[strand][c][r] =
                    Type::add_product(strands[strand][c][r], w, x[r * n_words + k]);
        }
    };
    int64_t k = 0;
    for (; k + STRANDS <= n_words; k += STRANDS)
        for (int s = 0; s < STRANDS; s++) add(k + s, s);
    for (; k < n_words; k++) add(k, 0);
    for (int c = 0; c < C; c++)
        for (int r = 0; r < R; r++) {
            sums[c][r] = strands[0][c][r];
            for (int s = 1; s < STRANDS; s++) sums[c][r] += strands[s][c][r];
        }
}

// emit(row, first column, sums) for C registers of columns and every row.
template <class Type, int C, int STRANDS, class Emit>
void multiply_rows(
    const uint32_t *matrix, int64_t stride, int64_t column, const uint32_t *x, int64_t n_rows,
    int64_t n_words, Emit &emit
) {
    constexpr int R = std::max(1, SUMS / C / STRANDS);
    int64_t row = 0;
    for (; row + R <= n_rows; row += R) {
        Lanes sums[C][R];
        multiply<Type, C, R, STRANDS>(sums, matrix + column, stride, x + row * n_words, n_words);
        for (int r = 0; r < R; r++)
            for (int c = 0; c < C; c++) emit(row + r, column + c * LANES, sums[c][r]);
    }
    for (; row < n_rows; row++) {
        Lanes sums[C][1];
        multiply<Type, C, 1, STRANDS>(sums, matrix + column, stride, x + row * n_words, n_words);
        for (int c = 0; c < C; c++) emit(row, column + c * LANES, sums[c][0]);
    }
}

// The same for all columns from `column` to before `end`, which are multiples of LANES.
template <class Type, int STRANDS, class Emit>
void multiply_columns(
    const uint32_t *matrix, int64_t stride, int64_t column, int64_t end, const uint32_t *x,
    int64_t n_rows, int64_t n_words, Emit emit
) {
    for (; column + 4 * LANES <= end; column += 4 * LANES)
        multiply_rows<Type, 4, STRANDS>(matrix, stride, column, x, n_rows, n_words, emit);
    for (; column + 2 * LANES <= end; column += 2 * LANES)
        multiply_rows<Type, 2, STRANDS>(matrix, stride, column, x, n_rows, n_words, emit);
    for (; column < end; column += LANES)
        multiply_rows<Type, 1, STRANDS>(matrix, stride, column, x, n_rows, n_words, emit);
}

// Rows of x in memory are a multiple of this, filled up with any numbers: tiles read all of them.
constexpr int64_t TILE_ROWS = 16;
constexpr int64_t TILE_WORDS = 16;

#ifdef HAS_TILES
// Linux lends the tiles to a process that asks.
bool have_tiles() {
    constexpr long REQUEST = 0x1023, TILE_DATA = 18;
    static const bool granted = syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
    return granted;
}

// Palette 1; from byte 16, the 64 bytes a row of each of eight tiles; from byte 48, their 16 rows. A
// constant, because compilers believe that only the first bytes of it are read.
alignas(64) const uint8_t TILE_SHAPES[64] = {
    1,  0, 0,  0, 0,  0, 0,  0, 0,  0, 0,  0, 0,  0, 0,  0, 64, 0, 64, 0, 64, 0, 64, 0, 64, 0, 64, 0, 64,
    0,  64, 0, 0, 0,  0, 0,  0, 0,  0, 0,  0, 0,  0, 0,  0, 0,  0, 0,  16, 16, 16, 16, 16, 16, 16, 16,
};

// A thread's tiles while it works. Afterwards they are shaped as before: PyTorch's own products on
// this thread remember how they left them.
class Tiles {
    const bool mine = have_tiles();
    alignas(64) uint8_t before[64] = {};
    static void settle() { asm volatile("" ::: "memory"); }

  public:
    Tiles() {
        if (!mine) return;
        _tile_storeconfig(before);
        settle();
        _tile_loadconfig(TILE_SHAPES);
    }
    ~Tiles() {
        settle();
        if (mine) _tile_loadconfig(before);
    }
};

// multiply_columns in bfloat16 for `n_words` that are a multiple of TILE_WORDS.
template <int C, class Emit>
void multiply_tiles(
    const uint32_t *matrix, int64_t stride, int64_t column, const uint32_t *x, int64_t n_rows,
    int64_t n_words, Emit &emit
) {
    alignas(64) float sums[C][TILE_ROWS * LANES];
    for (int64_t row = 0; row < n_rows; row += TILE_ROWS) {
        _tile_zero(0);
        if constexpr (C == 4) {
            _tile_zero(1);
            _tile_zero(2);
            _tile_zero(3);
        }
        for (int64_t k = 0; k < n_words; k += TILE_WORDS) {
            const uint32_t *w = matrix + k * stride + column;
            _tile_loadd(4, x + row * n_words + k, n_words * 4);
            _tile_loadd(5, w, stride * 4);
            _tile_dpbf16ps(0, 4, 5);
            if constexpr (C == 4) {
                _tile_loadd(6, w + LANES, stride * 4);
                _tile_dpbf16ps(1, 4, 6);
                _tile_loadd(7, w + 2 * LANES, stride * 4);
                _tile_dpbf16ps(2, 4, 7);
                _tile_loadd(5, w + 3 * LANES, stride * 4);
                _tile_dpbf16ps(3, 4, 5);
            }
        }
        _tile_stored(0, sums[0], LANES * 4);
        if constexpr (C == 4) {
            _tile_stored(1, sums[1], LANES * 4);
            _tile_stored(2, sums[2], LANES * 4);
            _tile_stored(3, sums[3], LANES * 4);
        }
        for (int64_t r = 0; r < std::min(TILE_ROWS, n_rows - row); r++)
            for (int c = 0; c < C; c++)
                emit(row + r, column + c * LANES, load(&sums[c][r * LANES]));
    }
}
#else
struct Tiles {};
#endif

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
    const float *token_table, *position_table, *sos, *norm_f;
    Matrix head;
    const Block *blocks;
};
}

namespace {

// What one call works on: the next token of every sequence, or the first ones of a single sequence.
template <class Type>
struct Step {
    typedef typename Type::Number Number;
    static constexpr int64_t PER_WORD = Type::PER_WORD;

    const Network net;
    const int64_t position;      // of the tokens, where each is of another sequence
    const int64_t filled;        // the one sequence that is filled from its start; else -1
    const int64_t rows, D, padded, E;
    const int64_t *const tokens;
    float *const logits;
    std::vector<Lanes> stream_lanes;
    float *const stream;               // (rows, padded)
    std::vector<Number> qkv, seen, wide;  // (rows, 3 D), (rows, D), (rows, 4 D)
    crew::Phases phases;

    Step(const Network &net, int64_t position, int64_t filled, int64_t rows, const int64_t *tokens,
         float *logits)
        : net(net), position(position), filled(filled), rows(rows), D(net.width),
          padded(up(D, LANES) * LANES), E(D / net.n_head), tokens(tokens), logits(logits),
          stream_lanes(rows * padded / LANES),
          stream(reinterpret_cast<float *>(stream_lanes.data())), qkv(rows * 3 * D),
          seen(in_tiles(rows) * D), wide(in_tiles(rows) * 4 * D),
          phases(6 * net.n_layer + 2, net.n_threads) {}

    static int64_t in_tiles(int64_t rows) { return up(rows, TILE_ROWS) * TILE_ROWS; }
    static const uint32_t *words(const Number *x) { return reinterpret_cast<const uint32_t *>(x); }
    int64_t sequence_of(int64_t row) const { return filled < 0 ? row : filled; }
    int64_t position_of(int64_t row) const { return filled < 0 ? position : row; }

    // What one thread has for itself.
    struct Own {
        const int64_t thread;
        std::vector<Number> narrow;  // normalised rows (rows, D): each thread makes its own
        std::vector<Lanes> scores;
        int64_t phase = 0;
        bool normalised = false;
    };

    template <class DoPart>
    void share(Own &own, int64_t n_parts, DoPart do_part) {
        phases.share(own.phase++, own.thread, n_parts, do_part);
        own.normalised = false;
    }

    // emit(row, first output, outputs) for n rows of x, (n, n_in).
    template <class Emit>
    void multiply(
        const Matrix &matrix, int64_t first, int64_t end, int64_t n_in, const Number *x, int64_t n,
        Emit emit
    ) {
        int64_t n_words = n_in / PER_WORD, panel = first / PANEL * PANEL;
        const uint32_t *weights = matrix.panels + panel * n_words;
        auto with_bias = [&](int64_t row, int64_t column, Lanes sums) {
            emit(row, panel + column, sums + load(matrix.bias + panel + column));
        };
        int64_t column = first - panel;
#ifdef HAS_TILES
        if (PER_WORD == 2 && n_words % TILE_WORDS == 0 && have_tiles()) {
            for (; column + PANEL <= end - panel; column += PANEL)
                multiply_tiles<4>(weights, PANEL, column, words(x), n, n_words, with_bias);
            for (; column < end - panel; column += LANES)
                multiply_tiles<1>(weights, PANEL, column, words(x), n, n_words, with_bias);
            return;
        }
#endif
        multiply_columns<Type, 1>(
            weights, PANEL, column, end - panel, words(x), n, n_words, with_bias);
    }

    // A linear map as one phase. `input` gives the thread its (n, n_in) numbers.
    template <class Input, class Emit>
    void linear(
        Own &own, const Matrix &matrix, int64_t n_out, int64_t n_in, int64_t n, Input input,
        Emit emit
    ) {
        int64_t columns = up(n_out, LANES) * LANES, panels = up(n_out, PANEL);
        bool even = panels % net.n_threads == 0 || panels >= 4 * net.n_threads;
        int64_t width = even ? PANEL : LANES;  // of a part
        share(own, up(columns, width), [&](int64_t part) {
            int64_t first = part * width, end = std::min(first + width, columns);
            multiply(matrix, first, end, n_in, input(), n, emit);
        });
    }

    void embed(int64_t row) {
        // A sequence that is filled begins with `sos`, which stands before its tokens.
        const float *token = filled < 0  ? net.token_table + tokens[row] * D
                             : row == 0 ? net.sos
                                        : net.token_table + tokens[row - 1] * D;
        const float *place = net.position_table + position_of(row) * D;
        for (int64_t d = 0; d < D; d++) stream[row * padded + d] = token[d] + place[d];
    }

    // The rows from `first` on, once a phase.
    const Number *normalise(Own &own, const float *gain, int64_t first = 0) {
        if (own.normalised) return own.narrow.data();
        own.normalised = true;
        own.narrow.resize(in_tiles(rows) * D);
        for (int64_t row = first; row < rows; row++) {
            const float *x = stream + row * padded;
            Lanes squares{};
            for (int64_t d = 0; d < D; d += LANES) squares += load(x + d) * load(x + d);
            float scale = 1.0f / std::sqrt(sum_of(squares) / D + NORM_EPS);
            for (int64_t d = 0; d < D; d += LANES)
                store<Type>(load(x + d) * scale * load(gain + d), std::min(LANES, D - d),
                            &own.narrow[(row - first) * D + d]);
        }
        return own.narrow.data();
    }

    Number *keys_of(const Block &block, int64_t row, int64_t head) const {
        int64_t time = up(net.seq_len, PANEL) * PANEL;
        return reinterpret_cast<Number *>(block.keys) +
               (sequence_of(row) * net.n_head + head) * time * E;
    }

    int64_t channels() const { return up(E, CHANNELS) * CHANNELS; }

    Number *values_of(const Block &block, int64_t row, int64_t head) const {
        int64_t time = up(net.seq_len, PANEL) * PANEL;
        return reinterpret_cast<Number *>(block.values) +
               (sequence_of(row) * net.n_head + head) * time * channels();
    }

    // Put one head's key and value of one row into the cache.
    void keep(const Block &block, int64_t row, int64_t head) {
        int64_t at = position_of(row);
        Number *keys = keys_of(block, row, head), *values = values_of(block, row, head);
        const Number *k = &qkv[row * 3 * D + D + head * E], *v = k + D;
        // Where number k of a column stands among columns of which `width` lie side by side.
        auto place = [](int64_t k, int64_t column, int64_t width) {
            return (k / PER_WORD * width + column) * PER_WORD + k % PER_WORD;
        };
        for (int64_t e = 0; e < E; e++) {
            keys[at / PANEL * PANEL * E + place(e, at % PANEL, PANEL)] = k[e];
            values[place(at, e, channels())] = v[e];
        }
    }

    // One head of one row looks at every position up to its own.
    void attend(const Block &block, int64_t row, int64_t head, Own &own) {
        int64_t length = position_of(row) + 1;
        const Number *keys = keys_of(block, row, head), *values = values_of(block, row, head);
        const Number *q = &qkv[row * 3 * D + head * E];
        own.scores.resize(std::max<int64_t>(own.scores.size(), up(length, LANES)));
        Lanes *scores = own.scores.data();
        Lanes largest = Lanes{} - INFINITY;
        for (int64_t panel = 0; panel < length; panel += PANEL)
            multiply_columns<Type, 4>(
                words(keys + panel * E), PANEL, 0, up(std::min(PANEL, length - panel), LANES) * LANES,
                words(q), 1, E / PER_WORD, [&](int64_t, int64_t column, Lanes sums) {
                    Lanes score = sums * (1.0f / std::sqrt(float(E)));
                    int64_t left = length - panel - column;
                    for (int64_t i = left; i < LANES; i++) score[i] = -INFINITY;
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
        multiply_columns<Type, 4>(
            words(values), channels(), 0, channels(), words(weights), 1, up(length, PER_WORD),
            [&](int64_t, int64_t e, Lanes sums) {
                if (e < E)
                    store<Type>(
                        sums / divisor, std::min(LANES, E - e), &seen[row * D + head * E + e]);
            });
    }

    void attention(Own &own, const Block *block) {
        int64_t H = net.n_head;
        if (filled >= 0)  // later rows look at what earlier ones keep
            share(own, rows * H, [&](int64_t part) { keep(*block, part / H, part % H); });
        share(own, rows * H, [&](int64_t part) {
            int64_t row = part / H, head = part % H;
            if (filled < 0) keep(*block, row, head);
            attend(*block, row, head, own);
        });
    }

    void run(int64_t thread) {
        [[maybe_unused]] Tiles tiles;
        Own own{thread, {}, {}};
        auto add = [&](int64_t row, int64_t first, Lanes sums) {
            float *x = stream + row * padded + first;
            for (int64_t i = 0; i < std::min(LANES, D - first); i++) x[i] += sums[i];
        };
        share(own, rows, [&](int64_t row) { embed(row); });
        for (const Block *block = net.blocks; block < net.blocks + net.n_layer; block++) {
            linear(
                own, block->c_attn, 3 * D, D, rows, [&] { return normalise(own, block->norm_1); },
                [&](int64_t row, int64_t first, Lanes sums) {
                    store<Type>(sums, std::min(LANES, 3 * D - first), &qkv[row * 3 * D + first]);
                });
            attention(own, block);
            linear(own, block->c_proj, D, D, rows, [&] { return seen.data(); }, add);
            linear(
                own, block->c_fc, 4 * D, D, rows, [&] { return normalise(own, block->norm_2); },
                [&](int64_t row, int64_t first, Lanes sums) {
                    store<Type>(quick_gelu(sums), std::min(LANES, 4 * D - first),
                                &wide[row * 4 * D + first]);
                });
            linear(own, block->mlp_proj, D, 4 * D, rows, [&] { return wide.data(); }, add);
        }
        int64_t first_row = filled < 0 ? 0 : rows - 1;  // logits of the last one alone
        linear(
            own, net.head, net.n_colors, D, rows - first_row,
            [&] { return normalise(own, net.norm_f, first_row); },
            [&](int64_t row, int64_t first, Lanes sums) {
                std::memcpy(logits + row * net.n_colors + first, &sums,
                            std::min(LANES, net.n_colors - first) * sizeof(float));
            });
    }
};

template <class Type>
void decode(
    const Network *net, int64_t position, int64_t filled, int64_t rows, const int64_t *tokens,
    float *logits
) {
    auto step = std::make_shared<Step<Type>>(*net, position, filled, rows, tokens, logits);
    crew::own().run(net->n_threads, [step](int64_t thread) { step->run(thread); });
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
    decode<Float32>(net, position, -1, net->batch_size, tokens, logits);
}

void decode_bfloat16(const Network *net, int64_t position, const int64_t *tokens, float *logits) {
    decode<BFloat16>(net, position, -1, net->batch_size, tokens, logits);
}

// tokens (n,) begin the given sequence, behind `sos`; logits (K,) of the token after them.
void fill_float32(
    const Network *net, int64_t sequence, int64_t n, const int64_t *tokens, float *logits
) {
    decode<Float32>(net, 0, sequence, n + 1, tokens, logits);
}

void fill_bfloat16(
    const Network *net, int64_t sequence, int64_t n, const int64_t *tokens, float *logits
) {
    decode<BFloat16>(net, 0, sequence, n + 1, tokens, logits);
}
}
