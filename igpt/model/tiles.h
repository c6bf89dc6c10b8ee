// The product of lanes.h for whole blocks: 32 rows, by the processor's matrix unit (AMX) if it has
// one.

#pragma once

#include "lanes.h"

namespace {

#ifdef HAS_TILES
// emit(row, first column, sums); rows and columns are multiples of 32, words of 16.
template <class Emit>
void tile_product(const uint32_t *matrix, int64_t stride, int64_t n_columns, const uint32_t *x,
                  int64_t n_rows, int64_t n_words, Emit emit) {
    alignas(64) float sums[4][TILE_ROWS * TILE_WORDS];
    settle();
    for (int64_t row = 0; row < n_rows; row += 2 * TILE_ROWS)
        for (int64_t column = 0; column < n_columns; column += 2 * TILE_WORDS) {
            _tile_zero(0);
            _tile_zero(1);
            _tile_zero(2);
            _tile_zero(3);
            const uint32_t *top = x + row * n_words, *bottom = top + TILE_ROWS * n_words;
            for (int64_t k = 0; k < n_words; k += TILE_WORDS) {
                const uint32_t *left = matrix + k * stride + column;
                _tile_loadd(4, top + k, n_words * 4);
                _tile_loadd(5, left, stride * 4);
                _tile_loadd(6, bottom + k, n_words * 4);
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
                for (int64_t r = 0; r < TILE_ROWS; r++)
                    emit(row + tile / 2 * TILE_ROWS + r, column + tile % 2 * TILE_WORDS,
                         load(sums[tile] + r * TILE_WORDS));
        }
}
#endif

struct Float32Blocks : Float32 {
    static constexpr int64_t DEPTH = 16;  // what the width of a head is padded to
    static float value(float x) { return x; }

    template <class Emit>
    static void product(const uint32_t *matrix, int64_t stride, int64_t n_columns,
                        const uint32_t *x, int64_t n_rows, int64_t n_words, Emit emit) {
        multiply_columns<Float32, 1>(matrix, stride, 0, n_columns, x, n_rows, n_words, emit);
    }
};

struct BFloat16Blocks : BFloat16 {
    static constexpr int64_t DEPTH = 32;
    static float value(uint16_t x) { return bits_of<float>(uint32_t(x) << 16); }

    template <class Emit>
    static void product(const uint32_t *matrix, int64_t stride, int64_t n_columns,
                        const uint32_t *x, int64_t n_rows, int64_t n_words, Emit emit) {
#ifdef HAS_TILES
        if (have_tiles()) return tile_product(matrix, stride, n_columns, x, n_rows, n_words, emit);
#endif
        multiply_columns<BFloat16, 1>(matrix, stride, 0, n_columns, x, n_rows, n_words, emit);
    }
};

}  // namespace
