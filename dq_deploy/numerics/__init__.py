"""The numerics: the definition of truth that every engine is compared with, in numpy.

Nothing here imports an engine or torch.
"""

from __future__ import annotations

from dq_deploy.numerics.arrays import F32, I32
from dq_deploy.numerics.codes import (
    bias_codes,
    dequantize,
    pack_nibbles,
    requantize,
    requantize_accumulator,
    shifted_accumulator,
    unpack_nibbles,
    worst_pair_product,
)
from dq_deploy.numerics.geometry import NO_PADDING, Padding, Window
from dq_deploy.numerics.layer import (
    ACCUMULATOR_LIMIT,
    FLOAT32_EXACT,
    LayerLike,
    LayerResult,
    PartLike,
    accumulate_conv2d,
    accumulate_linear,
    bias_of_samples,
    channel_axis_of,
    im2col,
    integer_layer,
    is_static,
    per_channel,
    per_sample,
    quantize_centred,
    reciprocal,
    rescale,
    rne,
    row_steps,
    step_bucket,
    table_at,
)

__all__ = [
    "ACCUMULATOR_LIMIT",
    "F32",
    "FLOAT32_EXACT",
    "I32",
    "NO_PADDING",
    "LayerLike",
    "LayerResult",
    "Padding",
    "PartLike",
    "Window",
    "accumulate_conv2d",
    "accumulate_linear",
    "bias_codes",
    "bias_of_samples",
    "channel_axis_of",
    "dequantize",
    "im2col",
    "integer_layer",
    "is_static",
    "pack_nibbles",
    "per_channel",
    "per_sample",
    "quantize_centred",
    "reciprocal",
    "requantize",
    "requantize_accumulator",
    "rescale",
    "rne",
    "row_steps",
    "shifted_accumulator",
    "step_bucket",
    "table_at",
    "unpack_nibbles",
    "worst_pair_product",
]
