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

// Aligned numbers that start as zeros.
template <class Number>
struct Buffer {
    std::vector<Lanes> lanes;
    Number *const data;
    explicit Buffer(int64_t n)
        : lanes(up(n * sizeof(Number), sizeof(Lanes))),
          data(reinterpret_cast<Number *>(lanes.data())) {}
    const uint32_t *words() const { return reinterpret_cast<const uint32_t *>(data); }
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
          depth(up(E, Type::DEPTH) * Type::DEPTH), time(up(T, PANEL) * PANEL),
          depth_words(depth / PER_WORD), scale(1.0f / std::sqrt(float(E))) {}

    // Where this head's columns begin in part `part` of (B, T, parts * D).
    int64_t place(int64_t t, int64_t part, int64_t parts) const {
        return ((row * T + t) * parts + part) * D + head * E;
    }

    // (time, depth) from (B, T, parts * D).
    void take(const Number *from, int64_t part, int64_t parts, Buffer<Number> &rows) const {
        for (int64_t t = 0; t < T; t++)
            std::memcpy(rows.data + t * depth, from + place(t, part, parts), E * sizeof(Number));
    }

    // [time / 64][depth][64]: lanes are positions.
    void as_panels(const Buffer<Number> &rows, Buffer<Number> &panels) const {
        const uint32_t *from = rows.words();
        uint32_t *to = reinterpret_cast<uint32_t *>(panels.data);
        for (int64_t panel = 0; panel < time; panel += PANEL)
            for (int64_t t = 0; t < PANEL; t++)
                for (int64_t k = 0; k < depth_words; k++)
                    to[panel * depth_words + k * PANEL + t] = from[(panel + t) * depth_words + k];
    }

    // Words over positions, [time][depth]: lanes are channels.
    void as_words(const Buffer<Number> &rows, Buffer<Number> &words) const {
        interleave(rows.data, time, depth, reinterpret_cast<uint32_t *>(words.data));
    }

    // (n_rows, n) as words that hold one number of PER_WORD rows: (n_rows / PER_WORD, n).
    static void interleave(const Number *rows, int64_t n_rows, int64_t n, uint32_t *words) {
        for (int64_t r = 0; r < n_rows / PER_WORD; r++)
            for (int64_t i = 0; i < n; i++)
                if constexpr (PER_WORD == 1)
                    words[r * n + i] = bits_of<uint32_t>(rows[r * n + i]);
                else
                    words[r * n + i] =
                        rows[2 * r * n + i] | uint32_t(rows[(2 * r + 1) * n + i]) << 16;
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

    Buffer<Number> rows, queries, keys, values, weights;
    Buffer<float> scores;
    Lanes totals[BLOCK];

    explicit Forward(const Shape &shape)
        : Base(shape), rows(time * depth), queries(time * depth), keys(time * depth),
          values(time * depth), weights(BLOCK * time), scores(BLOCK * time) {}

    void run(const Number *qkv, Number *output, float *log_sums) {
        this->take(qkv, 0, 3, queries);
        this->take(qkv, 1, 3, rows);
        this->as_panels(rows, keys);
        this->take(qkv, 2, 3, rows);
        this->as_words(rows, values);
        for (int64_t first = 0; first < T; first += BLOCK) block(first, output, log_sums);
    }

    // Queries from `first` on.
    void block(int64_t first, Number *output, float *log_sums) {
        int64_t n_keys = shape.causal ? up(first + BLOCK, PANEL) * PANEL : time;
        for (int64_t panel = 0; panel < n_keys; panel += PANEL)
            Type::product(keys.words() + panel * depth_words, PANEL, PANEL,
                          queries.words() + first * depth_words, BLOCK, depth_words,
                          [&](int64_t r, int64_t column, Lanes sums) {
                              float *to = scores.data + r * n_keys + panel + column;
                              *reinterpret_cast<Lanes *>(to) = sums * this->scale;
                          });
        for (int64_t r = 0; r < BLOCK; r++) {
            int64_t seen = shape.causal ? std::min(first + r + 1, T) : T;
            float log_sum = softmax(r, seen, n_keys);
            if (first + r < T)
                log_sums[(this->row * shape.n_head + this->head) * T + first + r] = log_sum;
        }
        Type::product(values.words(), depth, depth, weights.words(), BLOCK, n_keys / Base::PER_WORD,
                      [&](int64_t r, int64_t e, Lanes sums) {
                          this->put(sums * totals[r], first + r, e, 0, 1, output);
                      });
    }

    // Weights of row r, whose division waits in `totals`; returns the logarithm of their sum.
    float softmax(int64_t r, int64_t seen, int64_t n_keys) {
        float *x = scores.data + r * n_keys;
        Number *w = weights.data + r * n_keys;
        int64_t end = up(seen, LANES) * LANES;
        for (int64_t i = seen; i < end; i++) x[i] = -INFINITY;
        Lanes largest = load(x), total{};
        for (int64_t i = LANES; i < end; i += LANES)
            largest = load(x + i) > largest ? load(x + i) : largest;
        float top = max_of(largest);
        for (int64_t i = 0; i < end; i += LANES) {
            Lanes weight = exponential(load(x + i) - top);
            total += weight;
            store<Type>(weight, LANES, w + i);
        }
        std::memset(w + end, 0, (n_keys - end) * sizeof(Number));
        float sum = sum_of(total);
        totals[r] = Lanes{} + 1.0f / sum;
        return top + std::log(sum);
    }
};

template <class Type>
struct Backward : Head<Type> {
    typedef typename Type::Number Number;
    using Base = Head<Type>;
    using Base::D, Base::E, Base::PER_WORD, Base::T;
    using Base::depth, Base::depth_words, Base::shape, Base::time;

    Buffer<Number> queries, keys, values, grads;  // (time, depth)
    Buffer<Number> query_panels, query_words, grad_panels, grad_words, key_columns;
    Buffer<Number> weights, d_scores, pairs;  // (BLOCK, queries)
    Buffer<float> d_queries;                  // (depth, time)
    Buffer<float> log_sums, common;           // (time,)
    Lanes held[BLOCK * PANEL / LANES];

    explicit Backward(const Shape &shape)
        : Base(shape), queries(time * depth), keys(time * depth), values(time * depth),
          grads(time * depth), query_panels(time * depth), query_words(time * depth),
          grad_panels(time * depth), grad_words(time * depth), key_columns(time * depth),
          weights(BLOCK * time), d_scores(BLOCK * time), pairs(BLOCK * time),
          d_queries(depth * time), log_sums(time), common(time) {}

    void run(const Number *grad, const Number *qkv, const Number *output, const float *sums,
             Number *d_qkv) {
        this->take(qkv, 0, 3, queries);
        this->take(qkv, 1, 3, keys);
        this->take(qkv, 2, 3, values);
        this->take(grad, 0, 1, grads);
        this->as_panels(queries, query_panels);
        this->as_words(queries, query_words);
        this->as_panels(grads, grad_panels);
        this->as_words(grads, grad_words);
        for (int64_t t = 0; t < time; t++)  // [time / BLOCK][depth][BLOCK]
            for (int64_t e = 0; e < depth; e++)
                key_columns.data[t / BLOCK * BLOCK * depth + e * BLOCK + t % BLOCK] =
                    keys.data[t * depth + e];
        std::memset(d_queries.data, 0, depth * time * sizeof(float));
        for (int64_t t = 0; t < time; t++) {
            bool inside = t < T;
            // e^(x - infinity) is 0: what is only there to fill a panel weighs nothing.
            log_sums.data[t] =
                inside ? sums[(this->row * shape.n_head + this->head) * T + t] : INFINITY;
            common.data[t] = inside ? shared_part(t, output) : 0.0f;
        }
        for (int64_t first = 0; first < T; first += BLOCK) block(first, d_qkv);
        for (int64_t t = 0; t < T; t += LANES) put_queries(t, d_qkv);
    }

    // Gradients of LANES queries from t on, which lie across lanes until here.
    void put_queries(int64_t t, Number *d_qkv) {
        for (int64_t e = 0; e < depth; e += LANES) {
            alignas(64) float turned[LANES][LANES];
            for (int64_t i = 0; i < LANES; i++)
                for (int64_t j = 0; j < LANES; j++)
                    turned[j][i] = d_queries.data[(e + i) * time + t + j];
            for (int64_t j = 0; j < LANES; j++)
                this->put(load(turned[j]), t + j, e, 0, 3, d_qkv);
        }
    }

    // The part of the softmax's gradient that all keys of query t share.
    float shared_part(int64_t t, const Number *output) const {
        const Number *one = output + this->place(t, 0, 1), *other = grads.data + t * depth;
        float sum = 0;
        for (int64_t e = 0; e < E; e++) sum += Type::value(one[e]) * Type::value(other[e]);
        return sum;
    }

    // Keys and values from `first` on; the queries that see them begin with a whole panel.
    void block(int64_t first, Number *d_qkv) {
        int64_t begin = shape.causal ? first / PANEL * PANEL : 0, n = time - begin;
        for (int64_t panel = begin; panel < time; panel += PANEL) {
            hold_weights(first, panel, begin, n);
            hold_d_scores(first, panel, begin, n);
        }
        Base::interleave(d_scores.data, BLOCK, n, reinterpret_cast<uint32_t *>(pairs.data));
        Type::product(grad_words.words() + begin * depth_words, depth, depth, weights.words(), BLOCK,
                      n / PER_WORD, [&](int64_t r, int64_t e, Lanes sums) {
                          this->put(sums, first + r, e, 2, 3, d_qkv);
                      });
        Type::product(query_words.words() + begin * depth_words, depth, depth, d_scores.words(),
                      BLOCK, n / PER_WORD, [&](int64_t r, int64_t e, Lanes sums) {
                          this->put(sums, first + r, e, 1, 3, d_qkv);
                      });
        Type::product(pairs.words(), n, n, key_columns.words() + first * depth_words, depth,
                      BLOCK / PER_WORD, [&](int64_t e, int64_t column, Lanes sums) {
                          float *to = d_queries.data + e * time + begin + column;
                          *reinterpret_cast<Lanes *>(to) += sums;
                      });
    }

    // Softmax weights of keys (rows) for one panel of queries (lanes).
    void hold_weights(int64_t first, int64_t panel, int64_t begin, int64_t n) {
        bool on_diagonal = shape.causal && panel < first + BLOCK;
        Type::product(query_panels.words() + panel * depth_words, PANEL, PANEL,
                      keys.words() + first * depth_words, BLOCK, depth_words,
                      [&](int64_t r, int64_t column, Lanes sums) {
                          int64_t t = panel + column;
                          Lanes weight = exponential(sums * this->scale - load(&log_sums.data[t]));
                          if (on_diagonal)
                              weight = counted_from(t) < float(first + r) ? Lanes{} : weight;
                          held[(r * PANEL + column) / LANES] = weight;
                          store<Type>(weight, LANES, weights.data + r * n + t - begin);
                      });
    }

    // Gradients of their scores.
    void hold_d_scores(int64_t first, int64_t panel, int64_t begin, int64_t n) {
        Type::product(grad_panels.words() + panel * depth_words, PANEL, PANEL,
                      values.words() + first * depth_words, BLOCK, depth_words,
                      [&](int64_t r, int64_t column, Lanes sums) {
                          int64_t t = panel + column;
                          Lanes weight = held[(r * PANEL + column) / LANES];
                          Lanes gradient = weight * (sums - load(&common.data[t])) * this->scale;
                          store<Type>(gradient, LANES, d_scores.data + r * n + t - begin);
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
