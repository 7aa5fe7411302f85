// int_linear: the integer product of a 1x1 window on an image one row high.
#include "igemm/igemm.h"

namespace dq {

dq_int_conv2d_args image_of(const dq_int_linear_args& args) {
    dq_int_conv2d_args image = {};
    image.codes = args.codes;
    image.weights = args.weights;
    image.step = args.step;
    image.batch = args.batch;
    image.height = image.out_height = 1;
    image.width = image.out_width = args.rows;
    image.channels = args.channels;
    image.code_pitch = args.code_pitch;
    image.out_channels = args.out_channels;
    image.kernel_h = image.kernel_w = image.stride_h = image.stride_w = image.dilation_h = image.dilation_w = 1;
    image.quantizer = args.quantizer;
    image.epilogue = args.epilogue;
    return image;
}

void int_linear(Pool& pool, const dq_int_linear_args& args) { igemm(pool, image_of(args)); }

}  // namespace dq
