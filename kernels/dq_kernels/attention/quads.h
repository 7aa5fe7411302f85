// Products of codes in quads, summed in int32, in one thread: attention's two products where they run in integers.
// A quad is four codes that follow each other along the sum, the first in the low byte of a word. A is u8, B is s8.
#pragma once
#include <cstdint>

#include "float_linear/fgemm.h"
#include "simd/simd.h"

namespace dq {
namespace quads {

// One operand of one sample: code = clamp(rne(x * inverse), lowest, highest), centred; at most 255 apart.
struct Coder {
    float inverse;
    int32_t lowest;
    int32_t highest;
};

struct Kernels {
    const char* form;  // what multiplies codes
    int64_t rows;      // A and C are padded to a multiple of it
    int64_t words;     // A and B are padded to a multiple of so many quads along the sum, with zeros
    void (*begin)();   // around all products of a thread; may be null
    void (*end)();
    // Codes of a row less `lowest` (u8), padded with 0; their sum. `nan` is set where x holds one.
    int32_t (*row)(const float* x, int64_t depth, Coder coder, uint32_t* to, bool* nan);
    // B[k][n] from src[n * pitch + k]: codes less (lowest + 128), in panels as of fgemm.h; sums of each column.
    void (*pack_transposed)(const float* src, int64_t pitch, int64_t columns, int64_t depth, Coder coder,
                            uint32_t* packed, int32_t* sums, bool* nan);
    // B[k][n] from src[k * pitch + n], likewise; the sums are not asked for.
    void (*pack)(const float* src, int64_t pitch, int64_t columns, int64_t depth, Coder coder, uint32_t* packed,
                 bool* nan);
    // C = A B in int32; `depth` counts quads, padded; rows and columns are rounded up.
    void (*product)(const uint32_t* a, int64_t a_pitch, const uint32_t* packed, int64_t rows, int64_t columns,
                    int64_t depth, int32_t* c, int64_t c_pitch);
    // A row of scores to codes of its softmax, in place: S = raw + by_row + by_column[n] is an accumulator,
    // e = exp((S - max S) * factor), code = clamp(rne(e * share), 0, highest), where share is `inverse`, or that over
    // the sum of e where `normed`. The codes lie as quads where the row begins, padded with 0. Returns their sum.
    // `accumulators` may be null.
    int32_t (*softmax)(int32_t* row, int64_t columns, int32_t by_row, const int32_t* by_column, float factor,
                       float inverse, bool normed, int32_t highest, int32_t* accumulators);
};

extern const Kernels portable;
#if defined(__x86_64__)
extern const Kernels avx2;
extern const Kernels avx512;
extern const Kernels amx;  // see pairs.h
#endif
extern const Kernels amx_emulated;

const Kernels& kernels_of(int32_t isa);

}  // namespace quads
}  // namespace dq
