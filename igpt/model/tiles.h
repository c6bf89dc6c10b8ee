// The product of lanes.h for whole blocks, whose rows come in pairs: by the processor's matrix unit
// (AMX) if it has one, else in as many registers as hold sums at once.

#pragma once

#include "lanes.h"

namespace {

// Registers of columns side by side, and rows that grow together: all sums stay in registers.
#if defined(__AVX512F__)
constexpr int WIDE = 2, TALL = 8;
#elif defined(__AVX2__)
constexpr int WIDE = 2, TALL = 6;
#elif defined(__aarch64__)
constexpr int WIDE = 4, TALL = 4;
#else
constexpr int WIDE = 2, TALL = 4;
#endif

// The first n columns of SIDE x SIDE words become rows. All of them are read.
constexpr int64_t SIDE = 16;

inline void transpose(const uint32_t *from, int64_t stride, uint32_t *to, int64_t to_stride, int64_t n) {
#if defined(__AVX512F__)
    __m512 a[SIDE], b[SIDE];
    each<SIDE>([&](auto i) { a[i] = _mm512_loadu_ps(from + i * stride); });
    each<SIDE / 4>([&](auto q) {  // 4 x 4 words within each quarter of a register
        __m512 low = _mm512_unpacklo_ps(a[4 * q], a[4 * q + 1]);
        __m512 high = _mm512_unpackhi_ps(a[4 * q], a[4 * q + 1]);
        __m512 low_2 = _mm512_unpacklo_ps(a[4 * q + 2], a[4 * q + 3]);
        __m512 high_2 = _mm512_unpackhi_ps(a[4 * q + 2], a[4 * q + 3]);
        b[4 * q] = _mm512_shuffle_ps(low, low_2, 0x44);
        b[4 * q + 1] = _mm512_shuffle_ps(low, low_2, 0xee);
        b[4 * q + 2] = _mm512_shuffle_ps(high, high_2, 0x44);
        b[4 * q + 3] = _mm512_shuffle_ps(high, high_2, 0xee);
    });
    each<SIDE / 4>([&](auto i) {  // then 4 x 4 quarters
        __m512 even = _mm512_shuffle_f32x4(b[i], b[4 + i], 0x88);
        __m512 odd = _mm512_shuffle_f32x4(b[i], b[4 + i], 0xdd);
        __m512 even_2 = _mm512_shuffle_f32x4(b[8 + i], b[12 + i], 0x88);
        __m512 odd_2 = _mm512_shuffle_f32x4(b[8 + i], b[12 + i], 0xdd);
        a[i] = _mm512_shuffle_f32x4(even, even_2, 0x88);
        a[4 + i] = _mm512_shuffle_f32x4(odd, odd_2, 0x88);
        a[8 + i] = _mm512_shuffle_f32x4(even, even_2, 0xdd);
        a[12 + i] = _mm512_shuffle_f32x4(odd, odd_2, 0xdd);
    });
    each<SIDE>([&](auto i) {
        if (i < n) _mm512_storeu_ps(to + i * to_stride, a[i]);
    });
#else
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < SIDE; j++) to[i * to_stride + j] = from[j * stride + i];
#endif
}

// Keeps the compiler from reading a number anew for each of its uses, which takes sums' registers.
inline void in_register([[maybe_unused]] Words &w) {
#if defined(__AVX2__)
    asm("" : "+x"(w));
#endif
}

// emit(row, column, sums of that row, sums of the next) for R rows and C registers of columns.
template <class Type, int C, int R, class Emit>
inline __attribute__((always_inline)) void multiply_block(
    const uint32_t *matrix, int64_t stride, int64_t column, const uint32_t *x, int64_t x_stride,
    int64_t row, int64_t n_words, Emit &emit
) {
    Lanes sums[R][C] = {};
    const uint32_t *left = matrix + column, *top = x + row * x_stride;
    for (int64_t k = 0; k < n_words; k++, left += stride, top++) {
        Words w[C];
        each<C>([&](auto c) {
            w[c] = *reinterpret_cast<const Words *>(left + c * LANES);
            in_register(w[c]);
        });
        each<R * C>([&](auto i) {
            constexpr int r = i / C, c = i % C;
            sums[r][c] = Type::add_product(sums[r][c], w[c], top[r * x_stride]);
        });
    }
    each<R / 2 * C>([&](auto i) {
        constexpr int r = i / C * 2, c = i % C;
        emit(row + r, column + c * LANES, sums[r][c], sums[r + 1][c]);
    });
}

template <class Type, int C, class Emit>
void multiply_blocks(
    const uint32_t *matrix, int64_t stride, int64_t column, const uint32_t *x, int64_t x_stride,
    int64_t n_rows, int64_t n_words, Emit &emit
) {
    int64_t row = 0;
    for (; row + TALL <= n_rows; row += TALL)
        multiply_block<Type, C, TALL>(matrix, stride, column, x, x_stride, row, n_words, emit);
    for (; row < n_rows; row += 2)
        multiply_block<Type, C, 2>(matrix, stride, column, x, x_stride, row, n_words, emit);
}

// Rows are even; columns are a multiple of LANES.
template <class Type, class Emit>
void lane_product(const uint32_t *matrix, int64_t stride, int64_t n_columns, const uint32_t *x,
                  int64_t x_stride, int64_t n_rows, int64_t n_words, Emit emit) {
    int64_t column = 0;
    for (; column + WIDE * LANES <= n_columns; column += WIDE * LANES)
        multiply_blocks<Type, WIDE>(matrix, stride, column, x, x_stride, n_rows, n_words, emit);
    for (; column < n_columns; column += LANES)
        multiply_blocks<Type, 1>(matrix, stride, column, x, x_stride, n_rows, n_words, emit);
}

#ifdef HAS_TILES
// The same; rows and columns are multiples of 32, words of 16.
template <class Emit>
void tile_product(const uint32_t *matrix, int64_t stride, int64_t n_columns, const uint32_t *x,
                  int64_t x_stride, int64_t n_rows, int64_t n_words, Emit emit) {
    alignas(64) float sums[4][TILE_ROWS * TILE_WORDS];
    settle();
    for (int64_t row = 0; row < n_rows; row += 2 * TILE_ROWS)
        for (int64_t column = 0; column < n_columns; column += 2 * TILE_WORDS) {
            _tile_zero(0);
            _tile_zero(1);
            _tile_zero(2);
            _tile_zero(3);
            const uint32_t *top = x + row * x_stride, *bottom = top + TILE_ROWS * x_stride;
            for (int64_t k = 0; k < n_words; k += TILE_WORDS) {
                const uint32_t *left = matrix + k * stride + column;
                _tile_loadd(4, top + k, x_stride * 4);
                _tile_loadd(5, left, stride * 4);
                _tile_loadd(6, bottom + k, x_stride * 4);
                _tile_loadd(7, left + TILE_WORDS, stride * 4);
                _tile_dpbf16ps(0, 4, 5);
                _tile_dpbf16ps(1, 4, 7);
                _tile_dpbf16ps(2, 6, 5);
                _tile_dpbf16ps(3, 6, 7);
            }
            _tile_stored(0, sums[0], 64);
            _tile_stored(1, sums[1], 64);
            _tile_stored(2, sums[2], 64);
            _tile_stored(3, sums[3], 64);
            settle();
            for (int tile = 0; tile < 4; tile++)
                for (int64_t r = 0; r < TILE_ROWS; r += 2) {
                    const float *at = sums[tile] + r * TILE_WORDS;
                    emit(row + tile / 2 * TILE_ROWS + r, column + tile % 2 * TILE_WORDS, load(at),
                         load(at + TILE_WORDS));
                }
        }
}
#endif

// What differs between the number types beside their products.
struct Float32Blocks : Float32 {
    static bool by_tiles() { return false; }
    static Lanes widened(const float *x) { return load(x); }

    template <class Emit>
    static void product(const uint32_t *matrix, int64_t stride, int64_t n_columns,
                        const uint32_t *x, int64_t x_stride, int64_t n_rows, int64_t n_words,
                        Emit emit) {
        lane_product<Float32>(matrix, stride, n_columns, x, x_stride, n_rows, n_words, emit);
    }
};

struct BFloat16Blocks : BFloat16 {
    static bool by_tiles() { return have_tiles(); }
    static Lanes widened(const uint16_t *x) {
        return (Lanes)(__builtin_convertvector(*reinterpret_cast<const Halves *>(x), Words) << 16);
    }
    // Words that hold one number of either row: of two rows in memory, and of two in registers.
    static Words pairs_of(const uint16_t *first, const uint16_t *second) {
        Words high = __builtin_convertvector(*reinterpret_cast<const Halves *>(second), Words);
        return __builtin_convertvector(*reinterpret_cast<const Halves *>(first), Words) | high << 16;
    }
    static void store_pairs(Lanes first, Lanes second, uint32_t *to) {
        Words low = __builtin_convertvector(rounded(first), Words);
        Words high = __builtin_convertvector(rounded(second), Words);
        *reinterpret_cast<Words *>(to) = low | high << 16;
    }

    template <class Emit>
    static void product(const uint32_t *matrix, int64_t stride, int64_t n_columns,
                        const uint32_t *x, int64_t x_stride, int64_t n_rows, int64_t n_words,
                        Emit emit) {
#ifdef HAS_TILES
        if (have_tiles())
            return tile_product(matrix, stride, n_columns, x, x_stride, n_rows, n_words, emit);
#endif
        lane_product<BFloat16>(matrix, stride, n_columns, x, x_stride, n_rows, n_words, emit);
    }
};

}  // namespace
