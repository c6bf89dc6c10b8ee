// Attention of whole sequences and its gradient, for training on CPUs.
//
// Why not PyTorch's fused kernel: its backward pass is slow on a CPU, and it wants queries, keys and
// values in layouts that cost a copy each. Here one pair of sequence and head is one piece of work.
// It takes its columns of (B, T, 3 D) as the linear map left them, and holds BLOCK rows of scores at
// a time, never T x T. Each piece is summed in one order, so the thread count changes no bit.
//
// The forward pass holds rows of queries, whose lanes are keys. The backward pass holds rows of
// keys, whose lanes are queries, so that the gradients of keys and values are whole at once.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "lanes.h"
#include "tiles.h"

extern "C" {

// The order is that of native.py.
struct Shape {
    int64_t batch_size, n_head, seq_len, width, causal, n_threads;
};
}

namespace {

constexpr int64_t BLOCK = 32;
#define INLINE __attribute__((always_inline))
constexpr float LOG2_E = 1.44269504f;

// Aligned numbers that start as zeros; reading SIDE words from any of them is allowed.
template <class Number>
struct Buffer {
    std::vector<Lanes> lanes;
    Number *const data;
    explicit Buffer(int64_t n)
        : lanes(up(n * sizeof(Number), sizeof(Lanes)) + SIDE * 4 / sizeof(Lanes)),
          data(reinterpret_cast<Number *>(lanes.data())) {}
    const uint32_t *words() const { return reinterpret_cast<const uint32_t *>(data); }
    uint32_t *words() { return reinterpret_cast<uint32_t *>(data); }
};

// The work space of one thread; E is padded to `depth` and T to `time`, with zeros.
template <class Type>
struct Head {
    typedef typename Type::Number Number;
    static constexpr int64_t PER_WORD = Type::PER_WORD;

    const Shape &shape;
    const int64_t T, D, E, depth, time, depth_words;
    const float scale;
    int64_t row = 0, head = 0;  // the sequence and the head at hand

    explicit Head(const Shape &shape)
        : shape(shape), T(shape.seq_len), D(shape.width), E(D / shape.n_head),
          depth(padded_to(Type::by_tiles() ? 32 : CHANNELS)), time(up(T, PANEL) * PANEL),
          depth_words(depth / PER_WORD), scale(1.0f / std::sqrt(float(E))) {}

    int64_t padded_to(int64_t unit) const { return up(E, unit) * unit; }

    // Where this head's columns begin in part `part` of (B, T, parts * D).
    int64_t place(int64_t t, int64_t part, int64_t parts) const {
        return ((row * T + t) * parts + part) * D + head * E;
    }

    // (time, depth) from (B, T, parts * D).
    void take(const Number *from, int64_t part, int64_t parts, Buffer<Number> &rows) const {
        constexpr int64_t AT_ONCE = 32 / sizeof(Number);
        from += place(0, part, parts);
        Number *to = rows.data;
        for (int64_t t = 0; t < T; t++, from += parts * D, to += depth) {
            int64_t e = 0;  // copies of fixed length are two instructions, others a call
            for (; e + AT_ONCE <= E; e += AT_ONCE) std::memcpy(to + e, from + e, 32);
            if (e < E) std::memcpy(to + e, from + e, (E - e) * sizeof(Number));
        }
    }

    // [time / 64][depth][64]: lanes are positions.
    void as_panels(const Buffer<Number> &rows, Buffer<Number> &panels) const {
        const uint32_t *from = rows.words();
        uint32_t *to = panels.words();
        for (int64_t t = 0; t < time; t += SIDE)
            for (int64_t k = 0; k < depth_words; k += SIDE)
                transpose(from + t * depth_words + k, depth_words,
                          to + t / PANEL * PANEL * depth_words + k * PANEL + t % PANEL, PANEL,
                          std::min(SIDE, depth_words - k));
    }

    // Words over positions, [time / PER_WORD][depth]: lanes are channels. float32 has them already.
    const uint32_t *as_words(const Buffer<Number> &rows, Buffer<Number> &space) const {
        if constexpr (PER_WORD == 2) {
            uint32_t *words = space.words();
            for (int64_t t = 0; t < time / 2; t++)
                for (int64_t e = 0; e < depth; e += LANES)
                    *reinterpret_cast<Words *>(words + t * depth + e) = Type::pairs_of(
                        rows.data + 2 * t * depth + e, rows.data + (2 * t + 1) * depth + e);
            return words;
        }
        return rows.words();
    }

    // Stores lanes from channel e on of position t, if there are such.
    void put(Lanes x, int64_t t, int64_t e, int64_t part, int64_t parts, Number *to) const {
        if (t >= T || e >= E) return;
        to += place(t, part, parts) + e;
        if (E - e >= LANES)  // of fixed length this is one instruction
            store<Type>(x, LANES, to);
        else
            store<Type>(x, E - e, to);
    }
};

Lanes counted_from(int64_t first) {
    Lanes result;
    for (int64_t i = 0; i < LANES; i++) result[i] = float(first + i);
    return result;
}

template <class Type>
struct Forward : Head<Type> {
    typedef typename Type::Number Number;
    using Base = Head<Type>;
    using Base::D, Base::T, Base::depth, Base::depth_words, Base::shape, Base::time;

    // Of a row of scores: rows that lie a power of two apart would push each other from the cache.
    const int64_t stride = time + CHANNELS * 2;
    Buffer<Number> rows, queries, keys, values, weights;
    Buffer<float> scores;
    const uint32_t *value_words = nullptr;
    Lanes totals[BLOCK];

    explicit Forward(const Shape &shape)
        : Base(shape), rows(time * depth), queries(time * depth), keys(time * depth),
          values(time * depth), weights(BLOCK * stride), scores(BLOCK * stride) {}

    void run(const Number *qkv, Number *output, float *log_sums) {
        this->take(qkv, 0, 3, queries);
        this->take(qkv, 1, 3, rows);
        this->as_panels(rows, keys);
        this->take(qkv, 2, 3, rows);
        value_words = this->as_words(rows, values);
        for (int64_t first = 0; first < T; first += BLOCK) block(first, output, log_sums);
    }

    // Queries from `first` on.
    void block(int64_t first, Number *output, float *log_sums) {
        int64_t n_keys = shape.causal ? first + BLOCK : time;
        float to_base_2 = this->scale * LOG2_E;
        for (int64_t panel = 0; panel < n_keys; panel += PANEL)
            Type::product(keys.words() + panel * depth_words, PANEL, std::min(PANEL, n_keys - panel),
                          queries.words() + first * depth_words, depth_words, BLOCK, depth_words,
                          [&](int64_t r, int64_t column, Lanes one, Lanes other) INLINE {
                              Lanes *to = reinterpret_cast<Lanes *>(scores.data + r * stride + panel + column);
                              to[0] = one * to_base_2;
                              to[stride / LANES] = other * to_base_2;
                          });
        for (int64_t r = 0; r < BLOCK; r++) {
            int64_t seen = shape.causal ? std::min(first + r + 1, T) : T;
            float log_sum = softmax(r, seen, n_keys);
            if (first + r < T)
                log_sums[(this->row * shape.n_head + this->head) * T + first + r] = log_sum;
        }
        Type::product(value_words, depth, depth, weights.words(), stride / Base::PER_WORD, BLOCK,
                      n_keys / Base::PER_WORD,
                      [&](int64_t r, int64_t e, Lanes one, Lanes other) INLINE {
                          this->put(one * totals[r], first + r, e, 0, 1, output);
                          this->put(other * totals[r + 1], first + r + 1, e, 0, 1, output);
                      });
    }

    // Weights of row r, whose division waits in `totals`; returns the logarithm (to base 2, as the
    // scores are) of their sum.
    float softmax(int64_t r, int64_t seen, int64_t n_keys) {
        float *x = scores.data + r * stride;
        Number *w = weights.data + r * stride;
        int64_t end = up(seen, LANES) * LANES;
        for (int64_t i = seen; i < end; i++) x[i] = -INFINITY;
        Lanes largest = load(x), total{};
        for (int64_t i = LANES; i < end; i += LANES)
            largest = load(x + i) > largest ? load(x + i) : largest;
        float top = max_of(largest);
        for (int64_t i = 0; i < end; i += LANES) {
            Lanes weight = power_of_2(load(x + i) - top);
            total += weight;
            store<Type>(weight, LANES, w + i);
        }
        std::memset(w + end, 0, (n_keys - end) * sizeof(Number));
        float sum = sum_of(total);
        totals[r] = Lanes{} + 1.0f / sum;
        return top + std::log2(sum);
    }
};

template <class Type>
struct Backward : Head<Type> {
    typedef typename Type::Number Number;
    using Base = Head<Type>;
    using Base::D, Base::E, Base::PER_WORD, Base::T;
    using Base::depth, Base::depth_words, Base::shape, Base::time;

    // Queries at a time. In registers sums may go to memory often, so the weights of few queries stay
    // in the fastest cache; by tiles they may not, so all queries are summed over at once.
    const int64_t chunk = Type::by_tiles() ? time : PANEL;
    Buffer<Number> queries, keys, values, grads;  // (time, depth)
    Buffer<Number> query_panels, query_space, grad_panels, grad_space, key_columns, key_space;
    Buffer<Number> weights, d_scores;         // (BLOCK, chunk)
    Buffer<uint32_t> pairs;                   // d_scores as words that hold PER_WORD keys
    Buffer<float> d_queries;                  // [time / 64][depth][64]
    Buffer<float> d_keys, d_values;           // (BLOCK, depth)
    Buffer<float> log_sums, common;           // (time,)
    const uint32_t *query_words = nullptr, *grad_words = nullptr, *key_words = nullptr;
    Lanes held[BLOCK * PANEL / LANES];

    explicit Backward(const Shape &shape)
        : Base(shape), queries(time * depth), keys(time * depth), values(time * depth),
          grads(time * depth), query_panels(time * depth), query_space(time * depth),
          grad_panels(time * depth), grad_space(time * depth), key_columns(time * depth),
          key_space(time * depth),
          weights(BLOCK * chunk), d_scores(BLOCK * chunk), pairs(BLOCK * chunk),
          d_queries(depth * time), d_keys(BLOCK * depth), d_values(BLOCK * depth), log_sums(time),
          common(time) {}

    void run(const Number *grad, const Number *qkv, const Number *output, const float *sums,
             Number *d_qkv) {
        this->take(output, 0, 1, queries);
        this->take(grad, 0, 1, grads);
        for (int64_t t = 0; t < time; t++) {
            // 2^(x - infinity) is 0: what is only there to fill a panel weighs nothing.
            log_sums.data[t] =
                t < T ? sums[(this->row * shape.n_head + this->head) * T + t] : INFINITY;
            common.data[t] = t < T ? shared_part(t) : 0.0f;
        }
        this->take(qkv, 0, 3, queries);
        this->take(qkv, 1, 3, keys);
        this->take(qkv, 2, 3, values);
        this->as_panels(queries, query_panels);
        this->as_panels(grads, grad_panels);
        query_words = this->as_words(queries, query_space);
        grad_words = this->as_words(grads, grad_space);
        key_words = this->as_words(keys, key_space);
        constexpr int64_t WORDS = BLOCK / PER_WORD;  // [time / BLOCK][depth][words of a block]
        for (int64_t t = 0; t < time / PER_WORD; t += SIDE)
            for (int64_t e = 0; e < depth; e += SIDE)
                transpose(key_words + t * depth + e, depth,
                          key_columns.words() + (t / WORDS * depth + e) * WORDS + t % WORDS, WORDS,
                          std::min(SIDE, depth - e));
        std::memset(d_queries.data, 0, depth * time * sizeof(float));
        for (int64_t first = 0; first < T; first += BLOCK) block(first, d_qkv);
        for (int64_t t = 0; t < T; t += SIDE) put_queries(t, d_qkv);
    }

    // The part of the softmax's gradient that all keys of query t share; `queries` holds outputs.
    float shared_part(int64_t t) const {
        Lanes sum{};
        for (int64_t e = t * depth; e < (t + 1) * depth; e += LANES)
            sum += Type::widened(queries.data + e) * Type::widened(grads.data + e);
        return sum_of(sum);
    }

    // Gradients of SIDE queries from t on, which lie across lanes until here.
    void put_queries(int64_t t, Number *d_qkv) {
        for (int64_t e = 0; e < depth; e += SIDE) {
            alignas(64) float turned[SIDE][SIDE];
            transpose(d_queries.words() + of_panel(t, e), PANEL,
                      reinterpret_cast<uint32_t *>(turned), SIDE, SIDE);
            for (int64_t j = 0; j < SIDE; j++)
                for (int64_t i = 0; i < SIDE; i += LANES)
                    this->put(load(turned[j] + i) * this->scale, t + j, e + i, 0, 3, d_qkv);
        }
    }

    // Where channel e of position t stands among panels.
    int64_t of_panel(int64_t t, int64_t e) const {
        return t / PANEL * PANEL * depth + e * PANEL + t % PANEL;
    }

    // Keys and values from `first` on, which the queries from there on see.
    void block(int64_t first, Number *d_qkv) {
        std::memset(d_keys.data, 0, BLOCK * depth * sizeof(float));
        std::memset(d_values.data, 0, BLOCK * depth * sizeof(float));
        for (int64_t t = shape.causal ? first : 0, end; t < time; t = end) {
            end = std::min(t / chunk * chunk + chunk, time);
            part(first, t, end);
        }
        for (int64_t r = 0; r < BLOCK; r++)
            for (int64_t e = 0; e < depth; e += LANES) {
                this->put(load(d_keys.data + r * depth + e) * this->scale, first + r, e, 1, 3, d_qkv);
                this->put(load(d_values.data + r * depth + e), first + r, e, 2, 3, d_qkv);
            }
    }

    // What the queries from `begin` to before `end` add to the gradients.
    void part(int64_t first, int64_t begin, int64_t end) {
        for (int64_t t = begin, next; t < end; t = next) {
            next = std::min(t / PANEL * PANEL + PANEL, end);
            hold_weights(first, t, next - t, t - begin);
            hold_d_scores(first, t, next - t, t - begin);
        }
        int64_t n_words = (end - begin) / PER_WORD, stride = chunk / PER_WORD;
        add_rows(grad_words + begin / PER_WORD * depth, weights.words(), stride, n_words, d_values);
        add_rows(query_words + begin / PER_WORD * depth, d_scores.words(), stride, n_words, d_keys);
        const uint32_t *d_score_pairs = PER_WORD == 1 ? d_scores.words() : pairs.words();
        Type::product(d_score_pairs, chunk, end - begin, key_columns.words() + first * depth_words,
                      BLOCK / PER_WORD, depth, BLOCK / PER_WORD,
                      [&](int64_t e, int64_t column, Lanes one, Lanes other) INLINE {
                          Lanes *to = reinterpret_cast<Lanes *>(d_queries.data +
                                                                of_panel(begin + column, e));
                          to[0] += one;
                          to[PANEL / LANES] += other;
                      });
    }

    // sums (BLOCK, depth) grow by x (BLOCK, words) times matrix (words, depth).
    void add_rows(const uint32_t *matrix, const uint32_t *x, int64_t stride, int64_t n_words,
                  Buffer<float> &sums) {
        Type::product(matrix, depth, depth, x, stride, BLOCK, n_words,
                      [&](int64_t r, int64_t e, Lanes one, Lanes other) INLINE {
                          float *to = sums.data + r * depth + e;
                          *reinterpret_cast<Lanes *>(to) += one;
                          *reinterpret_cast<Lanes *>(to + depth) += other;
                      });
    }

    // Softmax weights of keys (rows) for n queries (lanes) of one panel, which go to column `at`.
    void hold_weights(int64_t first, int64_t begin, int64_t n, int64_t at) {
        bool on_diagonal = shape.causal && begin < first + BLOCK;
        Lanes to_base_2 = Lanes{} + this->scale * LOG2_E;
        Type::product(query_panels.words() + begin / PANEL * PANEL * depth_words + begin % PANEL,
                      PANEL, n, keys.words() + first * depth_words, depth_words, BLOCK, depth_words,
                      [&](int64_t r, int64_t column, Lanes one, Lanes other) INLINE {
                          int64_t t = begin + column;
                          Lanes minus = -load(&log_sums.data[t]);
                          one = power_of_2(fused(one, to_base_2, minus));
                          other = power_of_2(fused(other, to_base_2, minus));
                          if (on_diagonal) {
                              Lanes query = counted_from(t - first - r);
                              one = query < 0.0f ? Lanes{} : one;
                              other = query < 1.0f ? Lanes{} : other;
                          }
                          Lanes *to = held + (r * PANEL + column) / LANES;
                          to[0] = one;
                          to[PANEL / LANES] = other;
                          store<Type>(one, LANES, weights.data + r * chunk + at + column);
                          store<Type>(other, LANES, weights.data + (r + 1) * chunk + at + column);
                      });
    }

    // Gradients of their scores, but for the scale.
    void hold_d_scores(int64_t first, int64_t begin, int64_t n, int64_t at) {
        Type::product(grad_panels.words() + begin / PANEL * PANEL * depth_words + begin % PANEL,
                      PANEL, n, values.words() + first * depth_words, depth_words, BLOCK, depth_words,
                      [&](int64_t r, int64_t column, Lanes one, Lanes other) INLINE {
                          Lanes shared = load(&common.data[begin + column]);
                          const Lanes *weight = held + (r * PANEL + column) / LANES;
                          one = weight[0] * (one - shared);
                          other = weight[PANEL / LANES] * (other - shared);
                          Number *to = d_scores.data + r * chunk + at + column;
                          store<Type>(one, LANES, to);
                          store<Type>(other, LANES, to + chunk);
                          if constexpr (PER_WORD == 2)
                              Type::store_pairs(one, other,
                                                pairs.data + r / 2 * chunk + at + column);
                      });
    }
};

// Runs `work` for every pair of sequence and head.
template <class Pass, class Work>
void for_every_head(const Shape &shape, Work work) {
#pragma omp parallel num_threads(shape.n_threads)
    {
        Tiles tiles;
        Pass pass(shape);
#pragma omp for schedule(dynamic)
        for (int64_t pair = 0; pair < shape.batch_size * shape.n_head; pair++) {
            pass.row = pair / shape.n_head;
            pass.head = pair % shape.n_head;
            work(pass);
        }
    }
}

template <class Type, class Number = typename Type::Number>
void forward(const Shape *shape, const void *qkv, void *output, float *log_sums) {
    for_every_head<Forward<Type>>(*shape, [&](Forward<Type> &pass) {
        pass.run(static_cast<const Number *>(qkv), static_cast<Number *>(output), log_sums);
    });
}

template <class Type, class Number = typename Type::Number>
void backward(const Shape *shape, const void *grad, const void *qkv, const void *output,
              const float *log_sums, void *d_qkv) {
    for_every_head<Backward<Type>>(*shape, [&](Backward<Type> &pass) {
        pass.run(static_cast<const Number *>(grad), static_cast<const Number *>(qkv),
                 static_cast<const Number *>(output), log_sums, static_cast<Number *>(d_qkv));
    });
}

}  // namespace

extern "C" {

// qkv (B, T, 3 D) to output (B, T, D) and the logarithms of the softmax's sums, (B, H, T).
void attend_float32(const Shape *shape, const void *qkv, void *output, float *log_sums) {
    forward<Float32Blocks>(shape, qkv, output, log_sums);
}

void attend_bfloat16(const Shape *shape, const void *qkv, void *output, float *log_sums) {
    forward<BFloat16Blocks>(shape, qkv, output, log_sums);
}

// grad (B, T, D), with what `attend` took and gave, to the gradient of qkv.
void attend_backward_float32(const Shape *shape, const void *grad, const void *qkv,
                             const void *output, const float *log_sums, void *d_qkv) {
    backward<Float32Blocks>(shape, grad, qkv, output, log_sums, d_qkv);
}

void attend_backward_bfloat16(const Shape *shape, const void *grad, const void *qkv,
                              const void *output, const float *log_sums, void *d_qkv) {
    backward<BFloat16Blocks>(shape, grad, qkv, output, log_sums, d_qkv);
}
}
