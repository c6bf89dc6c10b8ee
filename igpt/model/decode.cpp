// One new token for every sequence of a batch: the T = 1 case of GPT.extend, for CPUs.
//
// Why not PyTorch's operators: at one token a step each is over in microseconds, so calling them
// costs more than they do, and their sums run in an order that depends on the batch size. Here every
// number is summed in one order whatever the batch or the thread count, so that an image is the
// same bit for bit alone or in a batch.
//
// All products have one form. A matrix is stored as panels of 16 rows, and within a panel column by
// column, so that 16 results grow side by side without a final sum across lanes:
//     panel[k][lane], result[lane] = sum over k of panel[k][lane] * x[k]
// One 32-bit word is one float32 number or two consecutive k in bfloat16. Weights have a row for each
// output; cached keys one for each position; cached values one for each channel, k being positions.

#include <cmath>
#include <cstdint>
#include <cstring>
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

namespace {

constexpr int LANES = 16;
#ifdef __AVX512F__
constexpr int PANELS = 4;  // with 4 rows, 16 of 32 registers hold sums
#else
constexpr int PANELS = 1;
#endif
constexpr int ROWS = 4;

typedef float Lanes __attribute__((vector_size(64)));
typedef uint32_t Bits __attribute__((vector_size(64)));

struct Float32 {
    static constexpr int PER_WORD = 1;
    static uint32_t pack(const float *x) {
        uint32_t word;
        std::memcpy(&word, x, 4);
        return word;
    }
    static void store(uint32_t *words, int64_t, int, float x) { std::memcpy(words, &x, 4); }
    static Lanes add_product(Lanes sum, Bits w, uint32_t x) {
        float number;
        std::memcpy(&number, &x, 4);
        return sum + (Lanes)w * number;
    }
};

struct BFloat16 {
    static constexpr int PER_WORD = 2;
    static uint32_t round(float x) {  // to nearest, ties to even
        uint32_t bits;
        std::memcpy(&bits, &x, 4);
        return (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    }
    static uint32_t pack(const float *x) { return round(x[0]) | round(x[1]) << 16; }
    static void store(uint32_t *word, int64_t, int half, float x) {
        uint32_t keep = half ? 0xffffu : 0xffff0000u;
        *word = (*word & keep) | round(x) << (16 * half);
    }
    static Lanes add_product(Lanes sum, Bits w, uint32_t x) {
#ifdef __AVX512BF16__
        return (Lanes)_mm512_dpbf16_ps((__m512)sum, (__m512bh)w, (__m512bh)_mm512_set1_epi32(x));
#else
        uint32_t low = x << 16, high = x & 0xffff0000u;
        float first, second;
        std::memcpy(&first, &low, 4);
        std::memcpy(&second, &high, 4);
        sum = sum + (Lanes)(w << 16) * first;
        return sum + (Lanes)(w & 0xffff0000u) * second;
#endif
    }
};
