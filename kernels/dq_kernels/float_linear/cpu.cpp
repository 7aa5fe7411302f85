// Linear layers that stay in float32.
#include <cstring>

#include "float_linear/blocks.h"

namespace dq {
namespace fgemm {

const Kernels& kernels_of(int32_t isa) {
#if defined(__x86_64__)
    if (isa == DQ_AVX512_VNNI || isa == DQ_AMX) return avx512;
    if (isa == DQ_AVX2 || isa == DQ_AVX_VNNI) return avx2;
#endif
    (void)isa;
    return portable;
}

}  // namespace fgemm

namespace {

constexpr int64_t kFewRows = 6;       // up to here a packed weight is used too seldom to be worth it
constexpr int64_t kDotColumns = 32;

// Each weight is read once for all rows: products along the channels, of a row the same whatever the other rows.
void few_rows(Pool& pool, const fgemm::Kernels& kernels, const dq_float_linear_args& args) {
    const int64_t tasks = (args.out_channels + kDotColumns - 1) / kDotColumns;
    pool.each(tasks, [&](int64_t task, int32_t) {
        const int64_t n = task * kDotColumns, columns = std::min(kDotColumns, args.out_channels - n);
        kernels.dots(args.x, args.x_pitch, args.rows, args.weights + n * args.channels, columns, args.channels,
                     args.bias == nullptr ? nullptr : args.bias + n, args.y + n, args.y_pitch);
    });
}

}  // namespace

void float_linear(Pool& pool, const dq_float_linear_args& args) {
    const fgemm::Kernels& kernels = fgemm::kernels_of(pool.isa());
    if (args.rows_of_sample <= kFewRows) return few_rows(pool, kernels, args);
    const fgemm::Product product{args.rows,    args.out_channels, args.channels, args.weights,
                                 args.bias,    args.y,            args.y_pitch};
    const auto tiles = fgemm::tiles_of(args.rows, args.out_channels, 1, pool.threads());
    const auto collect = [&](int64_t row, int64_t rows, int64_t first, int64_t depth, float* a) {
        for (int64_t i = 0; i < rows; i++) {
            std::memcpy(a + i * fgemm::kPitch, args.x + (row + i) * args.x_pitch + first,
                        static_cast<size_t>(depth) * sizeof(float));
        }
    };
    pool.each(tiles.down * tiles.across, [&](int64_t task, int32_t thread) {
        fgemm::multiply_tile(kernels, product, tiles, task % tiles.down, task / tiles.down,
                             static_cast<float*>(pool.scratch(thread)), collect);
    });
}

}  // namespace dq
