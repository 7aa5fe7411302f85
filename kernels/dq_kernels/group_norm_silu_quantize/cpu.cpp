// Group norm, SiLU and codes: a task is some groups of one sample, which stay in cache from pass to pass.
#include "codes.h"

namespace dq {
namespace {

constexpr int64_t kTileFloats = 4096;     // of y between the last two passes: half of the smallest L1
constexpr int64_t kLineChannels = 16;     // floats of a cache line
constexpr int64_t kWideChannels = 64;     // fewer in a task leave too little to do side by side
constexpr int64_t kNormTaskValues = 4096;
constexpr int64_t kTaskBytes = 2 << 20;   // narrower tasks cost more in page walks than they save in cache

// Per-channel arrays of one task, in a thread's scratch memory.
struct Channels {
    float* low;    // later the mean
    float* high;   // later a = rstd * gamma
    float* scale;  // power of two that makes integers of values
    float* beta;
    int32_t* wrapped;
    int32_t* missing;
    int64_t* sum;
    float* tile;  // rows of y before their codes are made
};

inline int64_t padded(int64_t width) { return ceil_div(width, kLineChannels) * kLineChannels; }

inline Channels carve(void* scratch, int64_t width) {
    const int64_t wide = padded(width);
    float* at = static_cast<float*>(scratch);
    Channels found;
    found.low = at;
    found.high = at + wide;
    found.scale = at + 2 * wide;
    found.beta = at + 3 * wide;
    found.wrapped = reinterpret_cast<int32_t*>(at + 4 * wide);
    found.missing = reinterpret_cast<int32_t*>(at + 5 * wide);
    found.sum = reinterpret_cast<int64_t*>(at + 6 * wide);
    found.tile = at + 8 * wide;
    // lanes behind the last channel compute with these
    for (int64_t i = width; i < wide; i++) found.scale[i] = found.beta[i] = found.high[i] = 0.0f;
    return found;
}

#define DQ_KERNELS "group_norm_silu_quantize/rows.inc"
#include "simd/each.inc"

// Groups of one task: as many as fill cache lines, fit the cache and leave each thread two tasks.
int64_t task_groups(const dq_group_norm_silu_quantize_args& args, int32_t threads) {
    const int64_t each = args.channels / args.groups, group_values = args.rows * each;
    int64_t line = 1;
    while (line < kLineChannels && line * each % kLineChannels != 0) line *= 2;
    int64_t smallest = ceil_div(kNormTaskValues, group_values);
    if (args.batch * args.channels >= threads * kWideChannels) smallest = most(smallest, ceil_div(kWideChannels, each));
    const int64_t fitting = kTaskBytes / (4 * group_values);
    const int64_t shared = threads == 1 ? args.groups : args.groups * args.batch / (int64_t{2} * threads);
    const int64_t wanted = ceil_div(most(least(shared, fitting), smallest), line) * line;
    return least(most(wanted, 1), args.groups);
}

}  // namespace

void group_norm_silu_quantize(Pool& pool, const dq_group_norm_silu_quantize_args& args) {
    if (args.rows == 0 || args.channels == 0) return;
    const int64_t each = args.channels / args.groups, groups = task_groups(args, pool.threads());
    const int64_t blocks = ceil_div(args.groups, groups);
    pool.each(args.batch * blocks, [&](int64_t index, int32_t thread) {
        const int64_t sample = index / blocks, group = index % blocks * groups;
        const int64_t width = least(groups, args.groups - group) * each;
        DQ_FOR_ISA(pool.isa(), channels_of_sample(args, sample, group * each, width, pool.scratch(thread)))
    });
}

}  // namespace dq
