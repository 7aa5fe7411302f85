// The integer product behind int_linear and int_conv2d: one indirect GEMM, with kernels for each instruction set.
//
// A tile is up to `rows` output pixels times one panel of `columns` output channels. For each window position a tile
// has one pointer a row, to the codes of the input pixel or, outside the image, to a row of the sample's zero code.
// Convolutions of any window, stride and dilation and linear layers are then the same loop.
//
// Packed weights: [panel][position][group of 4 channels][column][4], int8; where all lie in [-8, 7] two a byte: the
// 2 * columns bytes of a group hold the first half of its columns in the low nibbles, the second in the high ones.
#pragma once
#include "context.h"

namespace dq {

constexpr int kMaxRows = 16;     // of a tile
constexpr int64_t kFarBytes = 2 << 20;  // of a result, which is then written past the caches
constexpr int kMaxColumns = 32;  // of a panel

enum Form : int32_t {
    kInt8 = 0,  // int8 in memory, used in place
    kInt4 = 1,  // two a byte, unpacked in scratch
    kWide = 2   // int8 in memory, widened to int16 in scratch
};

// Head of packed weights; sums of each column's weights follow at 64 bytes' distance, then their zero points where
// there are any, then the panels. With zero points the stored weights are codes w, and what is multiplied is w - zero:
//     sum c (w - zero) = sum u w - zero * sum u - zero_code * sum (w - zero)        u = c + zero_code
// so that weights of any zero point take the kernels of bytes, and a sum of the codes of each row besides.
struct Packed {
    int32_t isa;
    int32_t columns;  // of a panel
    int32_t form;     // Form
    int32_t pairs;    // products of two codes summed in int16 before they are widened; 0: none are
    int32_t bits;     // the fewest that hold every weight
    int32_t code_span;
    int64_t out_channels;
    int64_t positions;
    int64_t channels;
    int64_t groups;      // of 4 channels
    int64_t panels;      // of `columns` output channels
    int64_t sums;        // bytes from this head to int32 [panels * columns]
    int64_t weights;     // bytes from this head to the first panel
    int64_t step_bytes;  // of one group of one panel, in memory
    int64_t zeros;       // bytes from this head to int32 [panels * columns], the zero points of the weights; 0: none
};

// One tile times a part of one panel: adds to (or, first, sets) sums[rows][columns].
struct Multiply {
    const uint8_t* const* rows;  // [positions][rows of the tile]
    const void* weights;         // [positions][groups][columns][4] as the kernel takes them
    int32_t* sums;
    int64_t positions;
    int64_t groups;
    int32_t pairs;
    bool first;
};

// The epilogue of a tile. Rows lie `..._pitch` elements apart; arrays by column are padded to the panel's width.
struct Finish {
    const int32_t* sums;         // [count][columns of a panel]
    const int32_t* weight_sums;  // by column
    const float* weight_scale;   // by column
    const float* bias;           // by column, may be null
    const float* const* biases;  // by row, each of `columns`, in place of `bias`; may be null
    const int32_t* zero_code;    // by row
    const float* scale;          // by row
    const float* const* row;     // by row, each of `columns`; may be null
    const float* previous;       // may be null
    const float* residual;       // may be null
    float* y;                    // may be null
    int32_t* accumulators;       // may be null
    int64_t y_pitch;             // of previous, too
    int64_t residual_pitch;
    int64_t accumulators_pitch;
    int32_t count;    // of rows
    int32_t columns;  // that exist
    bool together;    // all rows are of one sample and all columns exist; only y is asked for, nothing is added up
    bool past_caches;  // y is written past the caches; rows of it are whole lines of 64 bytes then
};

struct TileKernels;
using MultiplyRows = void (*)(const Multiply&);

// What an instruction set brings. Tables of `multiply` are by number of rows, 1 to `rows`.
struct Kernels {
    int32_t rows;
    int32_t columns;
    int32_t int4_bytes;  // that an unpacked kInt4 weight takes: 1, or 2 where `unpack` makes int16 of it
    const MultiplyRows* multiply;
    const MultiplyRows* multiply_int4;  // of kInt4 weights as they are in memory; may be null
    const MultiplyRows* multiply_wide;  // of kWide weights; null where no weights are packed so
    void (*unpack)(const uint8_t* packed, void* panel, int64_t groups);  // kInt4 to int8, or int16
    void (*widen)(const int8_t* packed, void* panel, int64_t groups);    // kWide to int16; may be null
    void (*finish)(const Finish&);
    const TileKernels* tiles = nullptr;  // set where the product goes by matrix tiles, and `multiply` is null
    const Kernels& (*of_few)() = nullptr;  // with `tiles`: those that take few pixels, of the same packed weights
};

const Kernels& kernels_of(int32_t isa);
const Kernels& portable_kernels();
const Kernels& avx2_kernels();
const Kernels& avx_vnni_kernels();
const Kernels& avx512_vnni_kernels();

// Some rows of a linear layer's result and some of its columns, that are turned into codes instead of written.
struct Strip {
    float* y;           // [rows][pitch]
    const float* gate;  // the gates of these values, likewise; null where there are none
    int64_t pitch;
    int64_t line;  // the first row, of all samples
    int64_t rows;
    int64_t channel;  // the first column
    int64_t width;    // in columns, at most `pitch`
};

// What is done with the result of `int_linear_codes`.
struct Follow {
    const dq_int_linear_codes_args* args;
    int32_t isa;

    bool gated() const { return args->gated != 0; }
};

void write_codes(const Follow& follow, const Strip& strip);

// A linear layer is a 1x1 convolution of a 1 x rows image.
dq_int_conv2d_args image_of(const dq_int_linear_args& args);

// With `follow` the result is not written but given to `write_codes`, strip by strip. Of a gated one the panels of a
// value and of its gate are multiplied one after the other. Not by matrix tiles.
void igemm(Pool& pool, const dq_int_conv2d_args& args, const Follow* follow = nullptr);

}  // namespace dq
