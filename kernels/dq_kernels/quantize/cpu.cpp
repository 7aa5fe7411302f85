// Codes of a float tensor: a task is some rows of one sample.
#include "codes.h"

namespace dq {
namespace {

#define DQ_KERNELS "quantize/rows.inc"
#include "simd/each.inc"

}  // namespace

void quantize(Pool& pool, const dq_quantize_args& args) {
    if (args.rows == 0) return;
    const int64_t rows = task_rows(args.batch, args.rows, args.out.channels, pool.threads());
    const int64_t blocks = ceil_div(args.rows, rows);
    pool.each(args.batch * blocks, [&](int64_t index, int32_t) {
        const int64_t sample = index / blocks, row = index % blocks * rows;
        DQ_FOR_ISA(pool.isa(), rows_of_sample(args, sample, row, least(rows, args.rows - row)))
    });
}

}  // namespace dq
