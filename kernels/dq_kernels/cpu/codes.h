// What every op that writes codes shares outside its vector code: a row of the tables, rows spread over threads.
#pragma once
#include "context.h"
#include "simd/simd.h"

namespace dq {
namespace {

constexpr int64_t kTaskValues = 16384;  // fewer in one task cost more to hand out than to compute

// A quantizer at one sample's step: v = x * (pre * inverse), clamped to [low, high]; u = rne(v) + zero.
struct CodeRange {
    const float* pre;
    float inverse;
    float low;
    float high;
    int32_t zero;
};

inline CodeRange code_range(const dq_quantizer& q, const int32_t* step, int64_t sample) {
    const int64_t t = q.steps > 1 ? step[sample] : 0;
    const int32_t z = q.zero_point[t];
    return {q.pre, q.inverse_scale[t], static_cast<float>(q.q_min - z), static_cast<float>(q.q_max - z), z - q.q_min};
}

inline void mark_nan(int32_t* nan_seen) {
    if (nan_seen != nullptr) __atomic_store_n(nan_seen, 1, __ATOMIC_RELAXED);
}

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Rows of one task, so that each thread gets a few tasks and none of them is too small.
inline int64_t task_rows(int64_t batch, int64_t rows, int64_t channels, int32_t threads) {
    const int64_t smallest = ceil_div(kTaskValues, most(channels, 1));
    const int64_t wanted = threads == 1 ? rows : ceil_div(batch * rows, int64_t{4} * threads);
    return least(most(most(smallest, wanted), 1), most(rows, 1));
}

}  // namespace
}  // namespace dq
