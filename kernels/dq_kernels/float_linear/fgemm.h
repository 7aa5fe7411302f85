// A float32 product of blocks in one thread, with fused multiply-adds: what the three float ops with sums share.
// An element is summed over k in order, in pieces of kDepth, whatever the block sizes: they may depend on threads.
#pragma once
#include <cstdint>

namespace dq {
namespace fgemm {

constexpr int64_t kDepth = 256;   // of one call; a longer sum is continued by `accumulate`
constexpr int64_t kPitch = 272;   // of A in floats: rows do not fall on the same cache set
constexpr int64_t kRows = 12;     // A and C are padded to a multiple of it
constexpr int64_t kColumns = 32;  // C is padded to a multiple of it

inline int64_t round_up(int64_t value, int64_t to) { return (value + to - 1) / to * to; }

struct Kernels {
    // B[k][n] from src[n * pitch + k] (weights, keys) and from src[k * pitch + n] (values), packed for `product`;
    // `packed` is aligned to 64 bytes and holds depth * round_up(columns, kColumns) floats.
    void (*pack_transposed)(const float* src, int64_t pitch, int64_t columns, int64_t depth, float* packed);
    void (*pack)(const float* src, int64_t pitch, int64_t columns, int64_t depth, float* packed);
    // C = A B, or C += A B; rows and columns are rounded up, A has kPitch, C is aligned to 64 bytes.
    void (*product)(const float* a, const float* packed, int64_t rows, int64_t columns, int64_t depth, float* c,
                    int64_t c_pitch, bool accumulate);
    // One block of columns of an online softmax, in place: s = exp(s - max); keeps each row's max and sum, and
    // returns in `shrink` what earlier sums are to be multiplied by. Columns up to kColumns' multiple are written.
    void (*softmax)(float* s, int64_t rows, int64_t columns, float* max, float* sum, float* shrink);
    // y[r][n] = x[r] . w[n] for few rows, weights read once in their own order.
    void (*dots)(const float* x, int64_t x_pitch, int64_t rows, const float* w, int64_t columns, int64_t depth,
                 const float* bias, float* y, int64_t y_pitch);
};

extern const Kernels portable;
#if defined(__x86_64__)
extern const Kernels avx2;
extern const Kernels avx512;
#endif

const Kernels& kernels_of(int32_t isa);

}  // namespace fgemm
}  // namespace dq
