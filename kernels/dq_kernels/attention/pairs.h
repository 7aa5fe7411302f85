// Products of bfloat16 in pairs, summed in float32, in one thread: attention's two products where they run in it.
// A pair is two values that follow each other along the sum, the first in the low half of a word.
#pragma once
#include <cstdint>

#include "float_linear/fgemm.h"
#include "simd/simd.h"

namespace dq {
namespace pairs {

constexpr int64_t kDepth = fgemm::kDepth / 2;  // of one call, in pairs
constexpr int64_t kPitch = 144;                // of A in pairs

// 32 queries and some keys, for which the first product is taken with a column for each query. What a block of 32 keys
// takes stays in half of the first cache, the other half of which may be another thread's.
constexpr int64_t kGroup = 32;
constexpr int64_t kWidestTurned = 96;  // features of a head; wider ones are faster by whole products

struct Group {
    const uint32_t* q;       // [words, 32]
    const uint32_t* packed;  // of each 32 keys: [32, words], then of their values [width, 16]
    int64_t keys;
    int64_t words;        // of a query, padded
    int64_t width;        // of a head; out and the values have it padded
    float* scores;        // [32, 32]
    uint32_t* weights;    // [16, 32]
    float *level, *sum;   // [32]
    float* out;           // [width, 32]
    bool first;           // of the keys: nothing is in `out`, level is -3e38, sum is 0
};

// How a group is attended to.
struct Turned {
    void (*queries)(const float* src, int64_t pitch, int64_t rows, int64_t depth, float scale, uint32_t* to);
    void (*keys)(const float* src, int64_t pitch, int64_t keys, int64_t depth, uint32_t* to);
    void (*values)(const float* src, int64_t pitch, int64_t keys, int64_t features, uint32_t* to);
    void (*group)(const Group&);
    void (*quotients)(const float* out, const float* sum, int64_t rows, int64_t width, float* y, int64_t y_pitch);
};

struct Kernels {
    const char* form;  // what multiplies a pair, in words
    int64_t rows;      // A and C are padded to a multiple of it
    int64_t words;     // A and B are padded to a multiple of so many pairs along the sum, with zeros
    void (*begin)();   // around all products of a thread; may be null
    void (*end)();
    // Pairs of `depth` values, each times `scale` in float32 and then rounded to nearest even, padded with 0. Up to a
    // vector's width of zeros is written behind them.
    void (*pairs_of)(const float* src, int64_t depth, float scale, uint32_t* to);
    // As in fgemm.h; `depth` counts values, `packed` holds a pair where B has one value.
    void (*pack_transposed)(const float* src, int64_t pitch, int64_t columns, int64_t depth, uint32_t* packed);
    void (*pack)(const float* src, int64_t pitch, int64_t columns, int64_t depth, uint32_t* packed);
    // C = A B, or C += A B; `depth` counts pairs, padded. Of each the second product is added first, and by tiles the
    // first products of 16 pairs are summed for themselves, and the second.
    void (*product)(const uint32_t* a, const uint32_t* packed, int64_t rows, int64_t columns, int64_t depth, float* c,
                    int64_t c_pitch, bool accumulate);
    // One block of columns of an online softmax of scores in units of log 2: p = 2^(s - max) in pairs. The sum is of
    // values before they are rounded.
    void (*softmax)(float* s, int64_t rows, int64_t columns, float* max, float* sum, float* shrink, uint32_t* p);
    const Turned* turned;  // of heads of up to kWidestTurned features; null: one product after the other
};

extern const Kernels portable;
#if defined(__x86_64__)
extern const Kernels avx2;
extern const Kernels avx512;
extern const Kernels avx512_bf16;
extern const Kernels amx;  // in the library where the compiler knows tiles and bfloat16
#endif
extern const Kernels amx_emulated;

const Kernels& kernels_of(int32_t isa);

}  // namespace pairs
}  // namespace dq
