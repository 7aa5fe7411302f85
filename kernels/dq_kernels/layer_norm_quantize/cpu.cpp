// Layer norm and codes: a task is some rows of one sample, a few rows at a time.
#include "codes.h"

namespace dq {
namespace {

constexpr int kTileRows = 8;           // whose scalar steps overlap
constexpr int64_t kTileFloats = 8192;  // of x in a tile, where a row has fewer: it stays in L1 between the passes

#define DQ_KERNELS "layer_norm_quantize/rows.inc"
#include "simd/each.inc"

}  // namespace

void layer_norm_quantize(Pool& pool, const dq_layer_norm_quantize_args& args) {
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
