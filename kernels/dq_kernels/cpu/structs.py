"""The argument structs of dq_kernels.h, field by field, and the numbers of its ops and instruction sets."""

from __future__ import annotations

import ctypes as c

POINTER = c.c_void_p
ISAS = ("portable", "avx2", "avx_vnni", "avx512_vnni", "amx", "amx_emulated")
"""By number, as `enum dq_isa`; which of them a CPU runs is asked of the library."""
EMULATED = "amx_emulated"
"""The source of `amx` with plain C++ in place of each tile instruction: for tests, on any CPU; never chosen."""
REFUSALS = (
    "",
    "which this CPU does not have",
    "whose registers the operating system does not keep (Linux 5.16 or newer does)",
    "which the operating system refused to this process",
    "which the compiler that built the kernels does not know (g++ 11 and clang 12 do)",
    "",
)
"""Why an instruction set is not offered, by number, as `enum dq_isa_refusal`; empty where it can be opened."""


def _struct(name: str, fields: list[tuple[str, type]]) -> type[c.Structure]:
    return type(name, (c.Structure,), {"_fields_": fields, "__doc__": f"`dq_{name}` of dq_kernels.h."})


def _fields(kind: type, names: str) -> list[tuple[str, type]]:
    return [(name, kind) for name in names.split()]


_I64, _I32 = c.c_int64, c.c_int32

Quantizer = _struct(
    "quantizer", [*_fields(POINTER, "pre inverse_scale scale zero_point"), *_fields(_I32, "steps q_min q_max reserved")]
)
CodeOutput = _struct(
    "code_output", [("quantizer", Quantizer), ("codes", POINTER), *_fields(_I64, "first channels pitch")]
)
QuantizeArgs = _struct(
    "quantize_args", [*_fields(POINTER, "x step nan_seen"), *_fields(_I64, "batch rows x_pitch"), ("out", CodeOutput)]
)
GroupNormSiluQuantizeArgs = _struct(
    "group_norm_silu_quantize_args",
    [
        *_fields(POINTER, "x gamma beta y step nan_seen"),
        *_fields(_I64, "batch rows channels groups x_pitch y_pitch"),
        ("eps", c.c_double),
        *_fields(_I32, "silu parts"),
        ("out", CodeOutput * 3),
    ],
)
LayerNormQuantizeArgs = _struct(
    "layer_norm_quantize_args",
    [
        *_fields(POINTER, "x gamma beta y step nan_seen"),
        *_fields(_I64, "batch rows channels x_pitch y_pitch"),
        ("eps", c.c_double),
        *_fields(_I32, "parts reserved"),
        ("out", CodeOutput * 3),
    ],
)
GegluQuantizeArgs = _struct(
    "geglu_quantize_args",
    [
        *_fields(POINTER, "x y step nan_seen"),
        *_fields(_I64, "batch rows channels x_pitch y_pitch"),
        *_fields(_I32, "parts reserved"),
        ("out", CodeOutput),
    ],
)
Epilogue = _struct(
    "epilogue",
    [
        *_fields(POINTER, "weight_scale previous bias row residual y accumulators"),
        *_fields(_I64, "row_pitch residual_pitch y_pitch bias_pitch"),
    ],
)
IntLinearArgs = _struct(
    "int_linear_args",
    [
        *_fields(POINTER, "codes weights step"),
        *_fields(_I64, "batch rows channels code_pitch out_channels"),
        ("quantizer", Quantizer),
        ("epilogue", Epilogue),
    ],
)
_WINDOW = _fields(_I32, "kernel_h kernel_w stride_h stride_w pad_top pad_left dilation_h dilation_w")
IntConv2dArgs = _struct(
    "int_conv2d_args",
    [
        *_fields(POINTER, "codes weights step"),
        *_fields(_I64, "batch height width channels code_pitch out_channels out_height out_width"),
        *_WINDOW,
        ("quantizer", Quantizer),
        ("epilogue", Epilogue),
    ],
)
ELEMENTWISE_KINDS = (
    *("copy", "add", "sub", "mul", "div", "silu", "gelu", "gelu_tanh", "sigmoid", "tanh", "relu"),
    *("add_scalar", "mul_scalar", "div_scalar"),
)
ElementwiseArgs = _struct(
    "elementwise_args",
    [
        *_fields(POINTER, "a b y"),
        *_fields(_I64 * 6, "size a_stride b_stride y_stride"),
        ("kind", _I32),
        ("scalar", c.c_float),
    ],
)
PRECISIONS = ("float32", "bf16", "int8")
"""What attention's two products take: float32, values rounded to bfloat16, or codes; a place is the number in
`enum dq_precision`. Sums are float32 in the first two and int32 in the third, the softmax is float32 in all."""
AttentionCodes = _struct(
    "attention_codes",
    [
        *((role, Quantizer) for role in "qkvp"),
        *_fields(POINTER, "step nan_seen scores weights sums"),
        *_fields(_I32, "normed reserved"),
    ],
)
IntLinearCodesArgs = _struct(
    "int_linear_codes_args",
    [
        ("linear", IntLinearArgs),
        *_fields(POINTER, "nan_seen"),
        *_fields(_I32, "activation gated"),
        ("out", CodeOutput),
    ],
)
GATED_CHANNELS = 32
"""Of which a gated `int_linear_codes` takes a multiple; DQ_GATED_CHANNELS."""
AttentionArgs = _struct(
    "attention_args",
    [
        *_fields(POINTER, "q k v y"),
        *_fields(_I64, "batch heads q_rows kv_rows head_dim"),
        *_fields(_I64 * 3, "q_stride k_stride v_stride y_stride"),
        ("scale", c.c_float),
        ("precision", _I32),
        ("codes", AttentionCodes),
    ],
)
FloatLinearArgs = _struct(
    "float_linear_args",
    [
        *_fields(POINTER, "x weights bias y"),
        *_fields(_I64, "rows channels out_channels x_pitch y_pitch rows_of_sample"),
    ],
)
FloatConv2dArgs = _struct(
    "float_conv2d_args",
    [
        *_fields(POINTER, "x weights bias y"),
        *_fields(_I64, "batch height width channels out_channels out_height out_width x_pitch y_pitch"),
        *_WINDOW,
        *_fields(_I32, "conv_groups reserved"),
    ],
)
PackedHead = _struct(
    "packed_head",
    [
        *_fields(_I32, "isa columns form pairs bits code_span"),
        *_fields(_I64, "out_channels positions channels groups panels sums weights step_bytes zeros"),
    ],
)
"""What packed weights begin with: `Packed` of igemm.h."""
ProductForm = _struct("product_form", _fields(_I32, "isa memory_bits pairs reserved"))
Call = _struct("call", [*_fields(_I32, "op reserved"), ("args", POINTER)])

OPS: dict[str, type[c.Structure]] = {
    "quantize": QuantizeArgs,
    "group_norm_silu_quantize": GroupNormSiluQuantizeArgs,
    "layer_norm_quantize": LayerNormQuantizeArgs,
    "geglu_quantize": GegluQuantizeArgs,
    "int_linear": IntLinearArgs,
    "int_conv2d": IntConv2dArgs,
    "elementwise": ElementwiseArgs,
    "attention": AttentionArgs,
    "float_linear": FloatLinearArgs,
    "float_conv2d": FloatConv2dArgs,
    "int_linear_codes": IntLinearCodesArgs,
}
"""Argument struct of each op; its place is its number in `enum dq_op`."""
