// Vectors of numbers, and the product that everything here is made of.
//
// All products have one form: as many results as a register has lanes grow side by side,
//     result[lane] = sum over k of matrix[k][lane] * x[k],
// so that no sum goes across lanes and memory is read from front to back. A word of 32 bits is one
// float32, or two consecutive k in bfloat16. This is also what the tiles of AMX read: 16 rows of x
// at once.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif
#if defined(__AMX_BF16__) && defined(__AMX_TILE__) && defined(__linux__)
#define HAS_TILES
#include <sys/syscall.h>
#include <unistd.h>
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
constexpr int64_t LINE = 16;  // words that memory hands over together
constexpr int64_t CHANNELS = 16;  // cached values are padded to a multiple of this
constexpr float NORM_EPS = 1e-5f;

typedef float Lanes __attribute__((vector_size(LANES * 4)));
typedef int32_t Ints __attribute__((vector_size(LANES * 4)));
typedef uint32_t Words __attribute__((vector_size(LANES * 4)));
typedef uint16_t Halves __attribute__((vector_size(LANES * 2)));

// f(0) ... f(N - 1), where each number is a constant. A loop would do, but compilers unroll it only after
// they have decided that an array which it indexes lies in memory, and then store each sum every time.
template <class F, int... I>
inline __attribute__((always_inline)) void each_of(F &f, std::integer_sequence<int, I...>) {
    (f(std::integral_constant<int, I>()), ...);
}

template <int N, class F>
inline __attribute__((always_inline)) void each(F f) {
    each_of(f, std::make_integer_sequence<int, N>());
}

template <class To, class From>
To bits_of(From value) {
    static_assert(sizeof(To) == sizeof(From));
    To result;
    std::memcpy(&result, &value, sizeof(To));
    return result;
}

// sum + a * b, rounded once wherever the processor can. Left to the compiler, a loop over one row and
// one over four would round differently: tuned for Zen, GCC fuses only some of them.
inline Lanes fused(Lanes a, Lanes b, Lanes sum) {
#if defined(__AVX512F__)
    return (Lanes)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)sum);
#elif defined(__AVX2__) && defined(__FMA__)
    return (Lanes)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)sum);
#elif defined(__ARM_NEON) && defined(__aarch64__)
    return (Lanes)vfmaq_f32((float32x4_t)sum, (float32x4_t)a, (float32x4_t)b);
#else
    return sum + a * b;
#endif
}

struct Float32 {
    static constexpr int64_t PER_WORD = 1;
    typedef float Number;
    static Lanes rounded(Lanes x) { return x; }
    static Lanes add_product(Lanes sum, Words w, uint32_t x) {
        return fused((Lanes)w, bits_of<float>(x) - Lanes{}, sum);
    }
};

struct BFloat16 {
    static constexpr int64_t PER_WORD = 2;
    typedef uint16_t Number;
    static Halves rounded(Lanes x) {  // to nearest, ties to even
#ifdef __AVX512BF16__
        return (Halves)_mm512_cvtneps_pbh((__m512)x);
#else
        Words bits = (Words)x;
        return __builtin_convertvector((bits + 0x7fff + ((bits >> 16) & 1)) >> 16, Halves);
#endif
    }
    static Lanes add_product(Lanes sum, Words w, uint32_t x) {
#ifdef __AVX512BF16__
        return (Lanes)_mm512_dpbf16_ps((__m512)sum, (__m512bh)w, (__m512bh)_mm512_set1_epi32(x));
#else
        sum = fused((Lanes)(w << 16), bits_of<float>(x << 16) - Lanes{}, sum);
        return fused((Lanes)(w & 0xffff0000u), bits_of<float>(x & 0xffff0000u) - Lanes{}, sum);
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

// 2^x to 2e-7 of its value, for x up to 127; 0 below -126.
inline Lanes power_of_2(Lanes x) {
    constexpr float MAGIC = 12582912.0f;  // 1.5 * 2^23: adding it leaves x, rounded, in the low bits
    Lanes moved = x + MAGIC, f = x - (moved - MAGIC);  // f from -1/2 to 1/2
    Lanes p = fused(f, Lanes{} + 1.54035304e-4f, Lanes{} + 1.33335581e-3f);
    p = fused(f, p, Lanes{} + 9.61812911e-3f);
    p = fused(f, p, Lanes{} + 5.55041087e-2f);
    p = fused(f, p, Lanes{} + 2.40226507e-1f);
    p = fused(f, p, Lanes{} + 6.93147181e-1f);
    p = fused(f, p, Lanes{} + 1.0f);
    return x < -126.0f ? Lanes{} : (Lanes)((Words)p + ((Words)moved << 23));
}

Lanes quick_gelu(Lanes x) { return x / (1.0f + exponential(x * -1.702f)); }

inline float sum_of(Lanes x) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps((__m512)x);
#else
    float sum = 0;
    for (int64_t i = 0; i < LANES; i++) sum += x[i];
    return sum;
#endif
}

inline float max_of(Lanes x) {
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps((__m512)x);
#else
    float largest = x[0];
    for (int64_t i = 1; i < LANES; i++) largest = std::max(largest, x[i]);
    return largest;
#endif
}

// Stores the first `count` lanes, rounded; all of them where there are that many, which is one instruction
// and no call.
template <class Type>
inline __attribute__((always_inline)) void store(Lanes x, int64_t count, typename Type::Number *out) {
    auto numbers = Type::rounded(x);
    if (count >= LANES)
        std::memcpy(out, &numbers, LANES * sizeof(*out));
    else
        std::memcpy(out, &numbers, count * sizeof(*out));
}

// Where else a product finds things: the first `n` rows k of the matrix, a multiple of STRANDS, where they do
// not lie before the others; and `ahead` words behind each of the others one that is needed next, which is
// fetched meanwhile (0: nothing).
struct Elsewhere {
    const uint32_t *first_rows = nullptr;
    int64_t n = 0, ahead = 0;
};

// sums[c][r]: the columns of register c times row r of x; `stride` words lie between rows k. Each sum
// grows in STRANDS, every STRANDS-th k, so that few sums need not wait for each addition.
template <class Type, int C, int R, int STRANDS>
inline __attribute__((always_inline)) void multiply(
    Lanes (&sums)[C][R], const uint32_t *matrix, int64_t stride, const uint32_t *x, int64_t n_words,
    int64_t column, Elsewhere elsewhere
) {
    Lanes strands[STRANDS][C][R] = {};
    // Not inlined, which compilers may find too long, it would keep the sums in memory.
    auto add = [&](const uint32_t *from, int64_t k, int64_t ahead, auto strand)
        __attribute__((always_inline)) {
        each<C>([&](auto c) __attribute__((always_inline)) {
            const uint32_t *at = from + k * stride + column + c * LANES;
            Words w = *reinterpret_cast<const Words *>(at);
            if (ahead) __builtin_prefetch(at + ahead, 0, 2);  // into the second cache
            each<R>([&](auto r) __attribute__((always_inline)) {
                strands[strand][c][r] =
                    Type::add_product(strands[strand][c][r], w, x[r * n_words + k]);
            });
        });
    };
    int64_t k = 0;
    for (; k < elsewhere.n; k += STRANDS)
        each<STRANDS>([&](auto strand) __attribute__((always_inline)) {
            add(elsewhere.first_rows, k + strand, 0, strand);
        });
    for (; k + STRANDS <= n_words; k += STRANDS)
        each<STRANDS>([&](auto strand) __attribute__((always_inline)) {
            add(matrix, k + strand, elsewhere.ahead, strand);
        });
    for (; k < n_words; k++) add(matrix, k, 0, std::integral_constant<int, 0>());
    each<C * R>([&](auto i) {
        constexpr int c = i / R, r = i % R;
        sums[c][r] = strands[0][c][r];
        each<STRANDS - 1>([&](auto strand) { sums[c][r] += strands[strand + 1][c][r]; });
    });
}

// emit(row, first column, sums) for C registers of columns and every row.
template <class Type, int C, int STRANDS, class Emit>
void multiply_rows(
    const uint32_t *matrix, int64_t stride, int64_t column, const uint32_t *x, int64_t n_rows,
    int64_t n_words, Emit &emit, Elsewhere elsewhere = {}
) {
    constexpr int R = std::max(1, SUMS / C / STRANDS);
    int64_t row = 0;
    for (; row + R <= n_rows; row += R) {
        Lanes sums[C][R];
        multiply<Type, C, R, STRANDS>(
            sums, matrix, stride, x + row * n_words, n_words, column, elsewhere);
        for (int r = 0; r < R; r++)
            for (int c = 0; c < C; c++) emit(row + r, column + c * LANES, sums[c][r]);
    }
    for (; row < n_rows; row++) {
        Lanes sums[C][1];
        multiply<Type, C, 1, STRANDS>(
            sums, matrix, stride, x + row * n_words, n_words, column, elsewhere);
        for (int c = 0; c < C; c++) emit(row, column + c * LANES, sums[c][0]);
    }
}

// The same for all columns from `column` to before `end`, which are multiples of LANES.
template <class Type, int STRANDS, class Emit>
void multiply_columns(
    const uint32_t *matrix, int64_t stride, int64_t column, int64_t end, const uint32_t *x,
    int64_t n_rows, int64_t n_words, Emit emit, Elsewhere elsewhere = {}
) {
    for (; column + 4 * LANES <= end; column += 4 * LANES)
        multiply_rows<Type, 4, STRANDS>(
            matrix, stride, column, x, n_rows, n_words, emit, elsewhere);
    for (; column + 2 * LANES <= end; column += 2 * LANES)
        multiply_rows<Type, 2, STRANDS>(
            matrix, stride, column, x, n_rows, n_words, emit, elsewhere);
    for (; column < end; column += LANES)
        multiply_rows<Type, 1, STRANDS>(
            matrix, stride, column, x, n_rows, n_words, emit, elsewhere);
}

// sums[r][c] += columns c times row r of x over n words k, held in registers meanwhile. Every so many k one
// of the panel's rows at `ahead` is fetched, so that memory is asked for evenly.
template <class Type, int C, int R>
inline __attribute__((always_inline)) void add_block(
    Lanes *sums, const uint32_t *matrix, const uint32_t *x, int64_t n_words, int64_t n,
    const uint32_t *ahead, int64_t every
) {
    constexpr int64_t STRIDE = PANEL / LANES;
    Lanes own[R][C];
    each<R * C>([&](auto i) { own[i / C][i % C] = sums[i / C * STRIDE + i % C]; });
    for (int64_t k = 0, left = every; k < n; k++) {
        if (--left == 0) {
            each<C * LANES / LINE>([&](auto i) { __builtin_prefetch(ahead + i * LINE); });
            ahead += PANEL;
            left = every;
        }
        Words columns[C];
        each<C>([&](auto c) {
            columns[c] = *reinterpret_cast<const Words *>(matrix + k * PANEL + c * LANES);
        });
        each<R>([&](auto r) {
            uint32_t number = x[r * n_words + k];
            each<C>([&](auto c) { own[r][c] = Type::add_product(own[r][c], columns[c], number); });
        });
    }
    each<R * C>([&](auto i) { sums[i / C * STRIDE + i % C] = own[i / C][i % C]; });
}

// multiply_columns for a whole panel and several rows: 6 rows of 4 registers fill the 32 of AVX-512, 6 of 2
// the 16 of AVX2. BLOCK words k of the panel stay in the nearest cache for all rows while later ones are on
// their way. Each sum grows in the order of k, as in multiply_columns: the bits are the same.
template <class Type, class Emit>
void multiply_panel(
    const uint32_t *panel, const uint32_t *x, int64_t n_rows, int64_t n_words, Emit emit
) {
    constexpr int64_t BLOCK = 32, AHEAD = 2 * BLOCK, ROWS = 24, COLUMNS = PANEL / LANES;
    constexpr int C = LANES == 16 ? 4 : 2;
    for (int64_t first = 0; first < n_rows; first += ROWS) {
        int64_t rows = std::min(ROWS, n_rows - first), every = up(rows, 6);
        Lanes sums[ROWS * COLUMNS] = {};
        for (int64_t k = 0; k < n_words; k += BLOCK) {
            int64_t n = std::min(BLOCK, n_words - k);
            for (int64_t c = 0; c < COLUMNS; c += C) {
                const uint32_t *matrix = panel + k * PANEL + c * LANES;
                const uint32_t *ahead = matrix + AHEAD * PANEL;
                int64_t row = 0;
                auto add = [&](auto size) {
                    constexpr int R = size;
                    for (; row + R <= rows; row += R, ahead += n / every * PANEL)
                        add_block<Type, C, R>(
                            sums + row * COLUMNS + c, matrix, x + (first + row) * n_words + k,
                            n_words, n, ahead, every);
                };
                add(std::integral_constant<int, 6>());
                add(std::integral_constant<int, 4>());
                add(std::integral_constant<int, 2>());
                add(std::integral_constant<int, 1>());
            }
        }
        for (int64_t i = 0; i < rows * COLUMNS; i++)
            emit(first + i / COLUMNS, i % COLUMNS * LANES, sums[i]);
    }
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

// What the compiler holds in registers goes to memory: it does not know that tiles are read there.
inline void settle() { asm volatile("" ::: "memory"); }

// A thread's tiles while it works. Afterwards they are shaped as before: PyTorch's own products on
// this thread remember how they left them.
class Tiles {
    const bool mine = have_tiles();
    alignas(64) uint8_t before[64] = {};

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
bool have_tiles() { return false; }
struct Tiles {};
#endif

}  // namespace
