// Convolutions that stay in float32: the product of float_linear on rows collected from windows of the image.
#include <cstring>

#include "float_linear/blocks.h"

namespace dq {
namespace {

// Channels [first, first + depth) of the window of each output pixel, in the weights' order (kh, kw, channel).
void collect_windows(const dq_float_conv2d_args& args, int64_t group, int64_t row, int64_t rows, int64_t first,
                     int64_t depth, float* a) {
    const int64_t channels = args.channels / args.conv_groups;
    for (int64_t i = 0; i < rows; i++, a += fgemm::kPitch) {
        const int64_t pixel = row + i, x = pixel % args.out_width, line = pixel / args.out_width;
        const int64_t top = line % args.out_height * args.stride_h - args.pad_top;
        const int64_t left = x * args.stride_w - args.pad_left;
        const float* image = args.x + line / args.out_height * args.height * args.width * args.x_pitch;
        int64_t position = first / channels, channel = first % channels;
        for (int64_t k = 0; k < depth; position++, channel = 0) {
            const int64_t count = std::min(channels - channel, depth - k);
            const int64_t y_in = top + position / args.kernel_w * args.dilation_h;
            const int64_t x_in = left + position % args.kernel_w * args.dilation_w;
            if (y_in < 0 || y_in >= args.height || x_in < 0 || x_in >= args.width) {
                std::memset(a + k, 0, static_cast<size_t>(count) * sizeof(float));
            } else {
                const float* from = image + (y_in * args.width + x_in) * args.x_pitch + group * channels + channel;
                std::memcpy(a + k, from, static_cast<size_t>(count) * sizeof(float));
            }
            k += count;
        }
    }
}

}  // namespace

void float_conv2d(Pool& pool, const dq_float_conv2d_args& args) {
    const fgemm::Kernels& kernels = fgemm::kernels_of(pool.isa());
    const int64_t rows = args.batch * args.out_height * args.out_width, groups = args.conv_groups;
    const int64_t columns = args.out_channels / groups;
    const int64_t depth = args.channels / groups * args.kernel_h * args.kernel_w;
    const auto tiles = fgemm::tiles_of(rows, columns, groups, pool.threads());
    const int64_t per_group = tiles.down * tiles.across;
    pool.each(groups * per_group, [&](int64_t task, int32_t thread) {
        const int64_t group = task / per_group, tile = task % per_group;
        const fgemm::Product product{rows,
                                     columns,
                                     depth,
                                     args.weights + group * columns * depth,
                                     args.bias == nullptr ? nullptr : args.bias + group * columns,
                                     args.y + group * columns,
                                     args.y_pitch};
        const auto collect = [&](int64_t row, int64_t count, int64_t first, int64_t k, float* a) {
            collect_windows(args, group, row, count, first, k, a);
        };
        fgemm::multiply_tile(kernels, product, tiles, tile % tiles.down, tile / tiles.down,
                             static_cast<float*>(pool.scratch(thread)), collect);
    });
}

}  // namespace dq
