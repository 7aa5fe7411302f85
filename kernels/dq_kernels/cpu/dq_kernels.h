// The C interface of the CPU kernels: plain structs, one for each op, and a list of calls that runs in one go.
// dq_kernels/cpu/structs.py mirrors it field by field; dq_struct_bytes lets the loader compare the sizes.
//
// Tensors are float32 or uint8, channels last. A pitch is the distance of two pixels (or rows) in elements.
// Codes are stored as u = c + zero_code, with c the centred code and zero_code = z[t] - q_min: 0 .. q_max - q_min.
#pragma once
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define DQ_EXPORT __attribute__((visibility("default")))

// DQ_AMX_EMULATED is DQ_AMX's own source with plain C++ in place of each tile instruction: for tests, on any CPU.
enum dq_isa {
    DQ_PORTABLE = 0,
    DQ_AVX2 = 1,
    DQ_AVX_VNNI = 2,
    DQ_AVX512_VNNI = 3,
    DQ_AMX = 4,
    DQ_AMX_EMULATED = 5,
    DQ_ISAS = 6
};
#define DQ_TILE_REACH 1920  // bytes behind packed int8 weights that AMX may read: 15 groups of 4 channels

// Why an instruction set is not offered here.
enum dq_isa_refusal {
    DQ_OFFERED = 0,
    DQ_NOT_IN_CPU = 1,
    DQ_NOT_IN_SYSTEM = 2,     // the operating system does not keep its registers
    DQ_NOT_PERMITTED = 3,     // the operating system refused this process the tiles
    DQ_NOT_COMPILED = 4,      // the compiler that built this library does not know it
    DQ_ONLY_IN_TESTS = 5      // opened by name, never chosen
};

enum dq_op {
    DQ_QUANTIZE = 0,
    DQ_GROUP_NORM_SILU_QUANTIZE = 1,
    DQ_LAYER_NORM_QUANTIZE = 2,
    DQ_GEGLU_QUANTIZE = 3,
    DQ_INT_LINEAR = 4,
    DQ_INT_CONV2D = 5,
    DQ_ELEMENTWISE = 6,
    DQ_ATTENTION = 7,
    DQ_FLOAT_LINEAR = 8,
    DQ_FLOAT_CONV2D = 9,
    DQ_INT_LINEAR_CODES = 10,
    DQ_OPS = 11
};

// Activation quantizer of one input-channel part; tables have `steps` rows, 1 for a static one.
typedef struct dq_quantizer {
    const float* pre;            // [channels]
    const float* inverse_scale;  // [steps]
    const float* scale;          // [steps]
    const int32_t* zero_point;   // [steps]
    int32_t steps;
    int32_t q_min;
    int32_t q_max;
    int32_t reserved;
} dq_quantizer;

// Where the codes of one part go: channels [first, first + channels) of the float tensor.
typedef struct dq_code_output {
    dq_quantizer quantizer;
    uint8_t* codes;  // [batch, rows, pitch]; bytes channels..pitch of a row are written as 0
    int64_t first;
    int64_t channels;
    int64_t pitch;
} dq_code_output;

// codes of x, a part at a time.
typedef struct dq_quantize_args {
    const float* x;       // [batch, rows, x_pitch]
    const int32_t* step;  // [batch] step bucket of each sample
    int32_t* nan_seen;    // set to 1 if x holds a NaN; may be null
    int64_t batch;
    int64_t rows;
    int64_t x_pitch;
    dq_code_output out;
} dq_quantize_args;

// y = act(group_norm(x)); codes of y for 0 to 3 consumers; y itself where it is asked for.
typedef struct dq_group_norm_silu_quantize_args {
    const float* x;      // [batch, rows, x_pitch]
    const float* gamma;  // [channels], may be null: ones
    const float* beta;   // [channels], may be null: zeros
    float* y;            // [batch, rows, y_pitch], may be null
    const int32_t* step;
    int32_t* nan_seen;
    int64_t batch;
    int64_t rows;
    int64_t channels;
    int64_t groups;
    int64_t x_pitch;
    int64_t y_pitch;
    double eps;
    int32_t silu;   // 1: y = v * sigmoid(v), 0: y = v
    int32_t parts;  // 0 to 3 of `out`; each may cover any channels
    dq_code_output out[3];
} dq_group_norm_silu_quantize_args;

// y = layer_norm(x) over the channels of each row; codes likewise, up to 3 consumers of the same y.
typedef struct dq_layer_norm_quantize_args {
    const float* x;
    const float* gamma;
    const float* beta;
    float* y;
    const int32_t* step;
    int32_t* nan_seen;
    int64_t batch;
    int64_t rows;
    int64_t channels;
    int64_t x_pitch;
    int64_t y_pitch;
    double eps;
    int32_t parts;  // 0 to 3 of `out`; each may cover any channels
    int32_t reserved;
    dq_code_output out[3];
} dq_layer_norm_quantize_args;

// y = value * gelu(gate), value = x[..., :channels], gate = x[..., channels:2*channels].
typedef struct dq_geglu_quantize_args {
    const float* x;  // [batch, rows, x_pitch], 2 * channels wide
    float* y;
    const int32_t* step;
    int32_t* nan_seen;
    int64_t batch;
    int64_t rows;
    int64_t channels;
    int64_t x_pitch;
    int64_t y_pitch;
    int32_t parts;  // 0 or 1
    int32_t reserved;
    dq_code_output out;
} dq_geglu_quantize_args;

// What an integer product does with its accumulator A, in this order, all float32:
// v = A * (s[t] * s_w[n]);  v = previous + v;  v = v + bias[t, n];  v = v + row[b, n];  y = residual + v.
typedef struct dq_epilogue {
    const float* weight_scale;  // [out_channels]
    const float* previous;      // sum of the parts before this one, pitch y_pitch; may be null
    const float* bias;          // [out_channels], or where bias_pitch is not 0 [steps of the quantizer, bias_pitch]; may be null
    const float* row;           // [batch, row_pitch], may be null
    const float* residual;      // [batch, pixels, residual_pitch], may be null
    float* y;                   // [batch, pixels, y_pitch], may be null where accumulators is not; may be `previous`
    int32_t* accumulators;      // [batch, pixels, out_channels] canonical A, may be null
    int64_t row_pitch;
    int64_t residual_pitch;
    int64_t y_pitch;
    int64_t bias_pitch;  // 0: one row for all steps, else a row of `bias` for each
} dq_epilogue;

typedef struct dq_int_linear_args {
    const uint8_t* codes;  // [batch, rows, code_pitch]
    const void* weights;   // of dq_pack_weights
    const int32_t* step;
    int64_t batch;
    int64_t rows;
    int64_t channels;
    int64_t code_pitch;
    int64_t out_channels;
    dq_quantizer quantizer;
    dq_epilogue epilogue;
} dq_int_linear_args;

// Padding is by the sample's zero_code, which must lie in 0 .. 255.
typedef struct dq_int_conv2d_args {
    const uint8_t* codes;  // [batch, height, width, code_pitch]
    const void* weights;
    const int32_t* step;
    int64_t batch;
    int64_t height;
    int64_t width;
    int64_t channels;
    int64_t code_pitch;
    int64_t out_channels;
    int64_t out_height;
    int64_t out_width;
    int32_t kernel_h;
    int32_t kernel_w;
    int32_t stride_h;
    int32_t stride_w;
    int32_t pad_top;
    int32_t pad_left;
    int32_t dilation_h;
    int32_t dilation_w;
    dq_quantizer quantizer;
    dq_epilogue epilogue;
} dq_int_conv2d_args;

enum dq_elementwise_kind {
    DQ_COPY = 0,      // a
    DQ_ADD = 1,       // a + b
    DQ_SUB = 2,       // a - b
    DQ_MUL = 3,       // a * b
    DQ_DIV = 4,       // a / b
    DQ_SILU = 5,      // a * sigmoid(a)
    DQ_GELU = 6,      // a * 0.5 * erfc(-a / sqrt 2)
    DQ_GELU_TANH = 7,
    DQ_SIGMOID = 8,
    DQ_TANH = 9,
    DQ_RELU = 10,
    DQ_ADD_SCALAR = 11,  // a + scalar
    DQ_MUL_SCALAR = 12,  // a * scalar
    DQ_DIV_SCALAR = 13   // a / scalar
};

// A linear layer whose result only a quantizer reads, as it is or through an activation: with v the y of DQ_INT_LINEAR,
// codes of y = activation(v) or, gated, of y = v[..., :n] * gelu(v[..., n:]). Of the epilogue y, previous and
// accumulators are null: v is written nowhere.
typedef struct dq_int_linear_codes_args {
    dq_int_linear_args linear;
    int32_t* nan_seen;   // may be null
    int32_t activation;  // enum dq_elementwise_kind, one that reads one value; DQ_COPY: none
    int32_t gated;       // 1: out_channels are 2 n, n a multiple of DQ_GATED_CHANNELS
    dq_code_output out;
} dq_int_linear_codes_args;
#define DQ_GATED_CHANNELS 32  // a panel of weights is never wider

// y[i] = kind(a[i], b[i]) over up to 6 axes with strides in elements; a stride of 0 repeats a value.
typedef struct dq_elementwise_args {
    const float* a;
    const float* b;
    float* y;
    int64_t size[6];
    int64_t a_stride[6];
    int64_t b_stride[6];
    int64_t y_stride[6];
    int32_t kind;
    float scalar;
} dq_elementwise_args;

// What attention's two products are computed in; sums are float32 in the first two, int32 in the third.
enum dq_precision { DQ_FLOAT32 = 0, DQ_BFLOAT16 = 1, DQ_INT8 = 2 };

// What DQ_INT8 takes besides, with `scale` of the call's float softmax:
//   A = sum cq ck;  e = exp((A - max A) * (s_q s_k scale));  P = e / sum e
//   normed: cp = clamp(rne(P / s_p), 0, q_max);  y = sum cp cv * (s_p s_v)
//   else:   cp = clamp(rne(e / s_p), 0, q_max);  y = sum cp cv * (s_v / sum cp)
// `pre` of the quantizers is not read. The table of p has zero points and q_min 0.
typedef struct dq_attention_codes {
    dq_quantizer q;
    dq_quantizer k;
    dq_quantizer v;
    dq_quantizer p;
    const int32_t* step;  // [batch]
    int32_t* nan_seen;    // may be null
    int32_t* scores;      // [batch, heads, q_rows, kv_rows] A, may be null
    uint8_t* weights;     // the same of cp, may be null
    int32_t* sums;        // [batch, heads, q_rows, head_dim] sum cp cv, may be null
    int32_t normed;
    int32_t reserved;
} dq_attention_codes;

// y = softmax(scale * q k^T) v for each batch and head; strides in elements, head_dim contiguous.
typedef struct dq_attention_args {
    const float* q;
    const float* k;
    const float* v;
    float* y;
    int64_t batch;
    int64_t heads;
    int64_t q_rows;
    int64_t kv_rows;
    int64_t head_dim;
    int64_t q_stride[3];  // batch, head, row
    int64_t k_stride[3];
    int64_t v_stride[3];
    int64_t y_stride[3];
    float scale;
    int32_t precision;  // enum dq_precision
    dq_attention_codes codes;
} dq_attention_args;

// y = x w^T + bias
typedef struct dq_float_linear_args {
    const float* x;        // [rows, x_pitch]
    const float* weights;  // [out_channels, channels]
    const float* bias;     // may be null
    float* y;              // [rows, y_pitch]
    int64_t rows;
    int64_t channels;
    int64_t out_channels;
    int64_t x_pitch;
    int64_t y_pitch;
    int64_t rows_of_sample;  // which decide in what order products are summed, so that the batch does not
} dq_float_linear_args;

typedef struct dq_float_conv2d_args {
    const float* x;        // [batch, height, width, x_pitch]
    const float* weights;  // [out_channels, kernel_h, kernel_w, channels / conv_groups]
    const float* bias;     // may be null
    float* y;              // [batch, out_height, out_width, y_pitch]
    int64_t batch;
    int64_t height;
    int64_t width;
    int64_t channels;
    int64_t out_channels;
    int64_t out_height;
    int64_t out_width;
    int64_t x_pitch;
    int64_t y_pitch;
    int32_t kernel_h;
    int32_t kernel_w;
    int32_t stride_h;
    int32_t stride_w;
    int32_t pad_top;
    int32_t pad_left;
    int32_t dilation_h;
    int32_t dilation_w;
    int32_t conv_groups;
    int32_t reserved;
} dq_float_conv2d_args;

typedef struct dq_call {
    int32_t op;  // enum dq_op
    int32_t reserved;
    const void* args;
} dq_call;

typedef struct dq_context dq_context;

// Instruction sets this CPU and this operating system run, as bits 1 << enum dq_isa.
DQ_EXPORT int32_t dq_known_isas(void);
// enum dq_isa_refusal of one instruction set.
DQ_EXPORT int32_t dq_refusal_of_isa(int32_t isa);
// Whether this CPU has the bfloat16 instructions of AVX-512 and the library was compiled with them.
DQ_EXPORT int32_t dq_has_bfloat16(void);
// Whether products of bfloat16 by tiles (amx-bf16) are there besides; the permission for tiles is not asked for.
DQ_EXPORT int32_t dq_has_bfloat16_tiles(void);
// What multiplies attention's operands there, in words; `precision` is of enum dq_precision.
DQ_EXPORT const char* dq_attention_form(int32_t isa, int32_t precision);
// Whether keys and values of a head fit a thread's scratch as codes.
DQ_EXPORT int32_t dq_attention_codes_fit(int64_t kv_rows, int64_t head_dim);
// Size of an op's argument struct, for the loader to compare; -1 for an unknown op.
DQ_EXPORT int64_t dq_struct_bytes(int32_t op);
// A pool of threads and the instruction set its kernels use; null where the CPU lacks it or no thread starts.
DQ_EXPORT dq_context* dq_open(int32_t threads, int32_t isa);
DQ_EXPORT void dq_close(dq_context* context);
// Run calls in order; 0, or 1 + the index of the first call that names no op. Not to be entered twice at a time.
DQ_EXPORT int64_t dq_run(dq_context* context, const dq_call* calls, int64_t count);
// The same, writing the nanoseconds of each call to `nanoseconds`.
DQ_EXPORT int64_t dq_run_timed(dq_context* context, const dq_call* calls, int64_t count, int64_t* nanoseconds);

// Weights w_q as int8 [out_channels, positions, channels] packed for one instruction set's access order. A buffer
// holds its own header, aligned to 64 bytes: form, bits kept, sums of each output channel.
// `weight_zero`, [out_channels] or null, is taken from each weight: w_q = weights - weight_zero need not fit int8.
// `code_span` is q_max - q_min of the activations: it decides how many pairs may be summed in int16.
DQ_EXPORT int64_t dq_packed_bytes(int32_t isa, int64_t out_channels, int64_t positions, int64_t channels,
                                  const int8_t* weights, const int32_t* weight_zero, int32_t code_span);
DQ_EXPORT void dq_pack_weights(int32_t isa, int64_t out_channels, int64_t positions, int64_t channels,
                               const int8_t* weights, const int32_t* weight_zero, int32_t code_span, void* packed);
// How packed weights are held and multiplied, as values that a verdict may rest on.
typedef struct {
    int32_t isa;          // enum dq_isa
    int32_t memory_bits;  // of a weight in memory: 4 or 8
    int32_t pairs;        // products of two codes summed in int16 before they are widened; 0: none are
    int32_t reserved;
} dq_product_form;
DQ_EXPORT void dq_form_of_product(const void* packed, dq_product_form* form);
DQ_EXPORT int64_t dq_form_bytes(void);
// The form of packed weights in words ("vpdpbusd, int4 in memory"), NUL-terminated; bytes written, or needed.
DQ_EXPORT int64_t dq_packed_form(const void* packed, char* text, int64_t bytes);

#ifdef __cplusplus
}
#endif
