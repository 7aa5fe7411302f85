// GEGLU and codes: a task is some rows of one sample, a tile of y at a time.
#include "codes.h"

namespace dq {
namespace {

constexpr int64_t kTileFloats = 2048;  // of y between its computation and its codes

#define DQ_KERNELS "geglu_quantize/rows.inc"
#include "simd/each.inc"

}  // namespace

void geglu_quantize(Pool& pool, const dq_geglu_quantize_args& args) {
    if (args.rows == 0 || args.channels == 0) return;
    const int64_t rows = task_rows(args.batch, args.rows, args.channels, pool.threads());
    const int64_t blocks = ceil_div(args.rows, rows);
    pool.each(args.batch * blocks, [&](int64_t index, int32_t thread) {
        const int64_t sample = index / blocks, row = index % blocks * rows;
        float* tile = static_cast<float*>(pool.scratch(thread));
        DQ_FOR_ISA(pool.isa(), rows_of_sample(args, sample, row, least(rows, args.rows - row), tile))
    });
}

}  // namespace dq
