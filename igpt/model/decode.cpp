// Tokens through the network: GPT.extend for CPUs.
//
// Why not PyTorch's operators: with one token each is over in microseconds, so that calling them
// costs more than they do, and their sums run in an order that depends on the batch size. Here every
// number is summed in one order, whatever the batch and the thread count: an image comes out the
// same, bit for bit, alone or in a batch.
//
// The form of every product is that of lanes.h. Weights lie in panels of 64 outputs,
// [outputs / 64][k][64], cached keys in panels of 64 positions, [T / 64][k][64], and cached values
// whole, [k][channels], k being positions there.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "crew.h"
#include "lanes.h"

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
    // Sequences that begin alike hold their first positions, `shared` of them (a multiple of 64), once:
    // in the cache of their owner.
    int64_t shared;
    const int64_t *owners;  // (batch_size,)
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
#if defined(__AVX2__)
        if (end - first == PANEL && n > 1)
            return multiply_panel<Type>(weights, words(x), n, n_words, with_bias);
        if (end - first == PANEL)
            return multiply_rows<Type, PANEL / LANES, 1>(
                weights, PANEL, 0, words(x), n, n_words, with_bias);
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

    Number *keys_of(const Block &block, int64_t sequence, int64_t head) const {
        int64_t time = up(net.seq_len, PANEL) * PANEL;
        return reinterpret_cast<Number *>(block.keys) + (sequence * net.n_head + head) * time * E;
    }

    int64_t channels() const { return up(E, CHANNELS) * CHANNELS; }

    Number *values_of(const Block &block, int64_t sequence, int64_t head) const {
        int64_t time = up(net.seq_len, PANEL) * PANEL;
        return reinterpret_cast<Number *>(block.values) +
               (sequence * net.n_head + head) * time * channels();
    }

    // Put one head's key and value of one row into the cache. Where two values share a word, the first
    // writes 0 for the second: that has weight 0 until it is there, but memory may hold what is no number.
    void keep(const Block &block, int64_t row, int64_t head) {
        int64_t at = position_of(row), sequence = sequence_of(row);
        const Number *k = &qkv[row * 3 * D + D + head * E], *v = k + D;
        auto *key = reinterpret_cast<uint32_t *>(keys_of(block, sequence, head)) +
                    at / PANEL * PANEL * E / PER_WORD + at % PANEL;
        for (int64_t i = 0; i < E / PER_WORD; i++)
            std::memcpy(key + i * PANEL, k + i * PER_WORD, sizeof(uint32_t));
        auto *value = reinterpret_cast<uint32_t *>(values_of(block, sequence, head)) +
                      at / PER_WORD * channels();
        if constexpr (PER_WORD == 1)
            std::memcpy(value, v, E * sizeof(uint32_t));
        else if (at % PER_WORD == 0)
            for (int64_t e = 0; e < E; e++) value[e] = v[e];
        else
            for (int64_t e = 0; e < E; e++) value[e] = (value[e] & 0xffff) | uint32_t(v[e]) << 16;
    }

    // One head of one row looks at every position up to its own. While keys are read, values are fetched, and
    // then the keys that the next row will look at.
    void attend(const Block &block, int64_t row, int64_t head, Own &own) {
        int64_t length = position_of(row) + 1, sequence = sequence_of(row);
        int64_t shared = filled < 0 ? net.shared : 0, owner = filled < 0 ? net.owners[row] : filled;
        const uint32_t *keys = words(keys_of(block, sequence, head));
        const uint32_t *values = words(values_of(block, sequence, head));
        const uint32_t *next_keys = words(keys_of(block, sequence_of((row + 1) % rows), head));
        const uint32_t *shared_keys = words(keys_of(block, owner, head));
        const uint32_t *shared_values = words(values_of(block, owner, head));
        const Number *q = &qkv[row * 3 * D + head * E];
        own.scores.resize(std::max<int64_t>(own.scores.size(), up(length, LANES)));
        Lanes *scores = own.scores.data();
        Lanes largest = Lanes{} - INFINITY;
        const float scale = 1.0f / std::sqrt(float(E));
        for (int64_t panel = 0; panel < length; panel += PANEL)
            multiply_columns<Type, 4>(
                (panel < shared ? shared_keys : keys) + panel * E / PER_WORD, PANEL, 0,
                up(std::min(PANEL, length - panel), LANES) * LANES, words(q), 1, E / PER_WORD,
                [&](int64_t, int64_t column, Lanes sums) {
                    Lanes score = sums * scale;
                    int64_t left = length - panel - column;
                    if (left < LANES)
                        for (int64_t i = left; i < LANES; i++) score[i] = -INFINITY;
                    scores[(panel + column) / LANES] = score;
                    largest = score > largest ? score : largest;
                },
                {nullptr, 0, values - keys});

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
            values, channels(), 0, channels(), words(weights), 1, up(length, PER_WORD),
            [&](int64_t, int64_t e, Lanes sums) {
                if (e < E)
                    store<Type>(
                        sums / divisor, std::min(LANES, E - e), &seen[row * D + head * E + e]);
            },
            {shared_values, shared / PER_WORD, next_keys - values});
    }

    void attention(Own &own, const Block *block) {
        int64_t H = net.n_head;
        if (filled >= 0)  // later rows look at what earlier ones keep; what shares words is one thread's
            share(own, up(rows, PER_WORD) * H, [&](int64_t part) {
                int64_t first = part / H * PER_WORD;
                for (int64_t row = first; row < std::min(first + PER_WORD, rows); row++)
                    keep(*block, row, part % H);
            });
        // Head by head, so that what sequences share is still near when the next one reads it.
        share(own, rows * H, [&](int64_t part) {
            int64_t row = part % rows, head = part / rows;
            if (filled < 0) keep(*block, row, head);
            attend(*block, row, head, own);
        });
    }

    void run(int64_t thread) {
        [[maybe_unused]] Tiles tiles;
        Own own{thread, {}, {}};
        auto add = [&](int64_t row, int64_t first, Lanes sums) {
            float *x = stream + row * padded + first;
            if (first + LANES <= D)
                *reinterpret_cast<Lanes *>(x) += sums;
            else
                for (int64_t i = 0; i < D - first; i++) x[i] += sums[i];
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

// Reads memory as decoding does, for measuring how fast this machine can: multiples of 64 bytes.
int64_t read_all(const uint32_t *memory, int64_t n_bytes, int64_t n_threads) {
    constexpr int64_t PART = 1 << 16;
    struct Reading {
        crew::Phases phases;
        std::atomic<int64_t> sum{0};
        explicit Reading(int64_t n_threads) : phases(1, n_threads) {}
    };
    auto reading = std::make_shared<Reading>(n_threads);
    int64_t n_words = n_bytes / 4;
    crew::own().run(n_threads, [=](int64_t thread) {
        reading->phases.share(0, thread, up(n_words, PART), [&](int64_t part) {
            const uint32_t *end = memory + std::min((part + 1) * PART, n_words);
            Words sums[4] = {};
            for (const uint32_t *at = memory + part * PART; at + 4 * LANES <= end; at += 4 * LANES)
                for (int i = 0; i < 4; i++)
                    sums[i] ^= *reinterpret_cast<const Words *>(at + i * LANES);
            reading->sum += (sums[0] ^ sums[1] ^ sums[2] ^ sums[3])[0];
        });
    });
    return reading->sum;
}

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
