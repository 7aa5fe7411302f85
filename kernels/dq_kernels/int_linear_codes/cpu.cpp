// int_linear_codes: the integer product, each tile of its result turned into codes where it lies, in the first cache.
#include "codes.h"
#include "igemm/igemm.h"

namespace dq {
namespace {

#define DQ_KERNELS "int_linear_codes/rows.inc"
#include "simd/each.inc"

}  // namespace

void write_codes(const Follow& follow, const Strip& strip) {
    const dq_int_linear_codes_args& args = *follow.args;
    DQ_FOR_ISA(follow.isa, activate(args, strip))
    for (int64_t done = 0; done < strip.rows;) {
        const int64_t line = strip.line + done, sample = line / args.linear.rows;
        const int64_t rows = least(strip.rows - done, (sample + 1) * args.linear.rows - line);
        DQ_FOR_ISA(follow.isa, codes_of_sample(args, strip, done, rows, sample))
        done += rows;
    }
}

void int_linear_codes(Pool& pool, const dq_int_linear_codes_args& args) {
    const Follow follow = {&args, pool.isa()};
    igemm(pool, image_of(args.linear), &follow);
}

}  // namespace dq
