"""Integer products that no kernel takes, by the numerics: exact, slow, and named as such in the attestation."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from dq_deploy.errors import InputError
from dq_deploy.native.program.layer_constants import LayerConstants
from dq_deploy.native.program.program import Op
from dq_deploy.numerics import (
    accumulate_conv2d,
    accumulate_linear,
    bias_of_samples,
    channel_axis_of,
    row_steps,
    table_at,
)
from dq_deploy.numerics.arrays import Array


def accumulators(own: LayerConstants, op: Op, codes: Array, step: Array) -> NDArray[np.int32]:
    """Canonical accumulators, channels last: int32 [B, rows, C_out].

    Args:
        own: the layer part.
        op: its product.
        codes: stored codes [B, rows, C].
        step: [B].
    """
    layer, part = own.layer, own.layer.parts[own.index]
    zero = (table_at(part.zero_point, step) - layer.q_min).reshape(-1, 1, 1)
    centred = codes.astype(np.int32) - zero
    group = table_at(part.group_of_step, step)
    samples = []
    for sample, g in zip(centred, group, strict=True):
        if layer.kind == "linear":
            samples.append(accumulate_linear(sample, part.q_weight(int(g))))
            continue
        image = sample.reshape(*op.attributes["in_size"], -1).transpose(2, 0, 1)[None]
        outside = (part.zero_point < layer.q_min) | (part.zero_point > layer.q_max)
        if any(op.padded) and outside.any():
            raise InputError(
                f"layer {layer.name} pads by codes outside {layer.q_min}..{layer.q_max}, expected zero points inside; "
                "export the record to onnxruntime instead"
            )
        window = layer.window.padded_by(op.padded)
        product = accumulate_conv2d(image, part.q_weight(int(g)), window, groups=layer.groups)[0]
        samples.append(product.transpose(1, 2, 0).reshape(-1, layer.out_channels))
    return np.stack(samples)


def output(own: LayerConstants, op: Op, reads: Mapping[str, Array], step: Array) -> Array:
    """What the product writes, in the axes of its `y`."""
    part = own.layer.parts[own.index]
    total = accumulators(own, op, reads["codes"], step)
    weight_scale = part.weight_scale[table_at(part.group_of_step, step)]
    factor = (table_at(part.scale, step)[:, None] * weight_scale).astype(np.float32)
    y: Array = (total.astype(np.float32) * factor[:, None, :]).astype(np.float32)
    like = op.writes["y"].sizes
    if own.layer.kind == "conv2d":
        y = y.reshape(like[0], like[2], like[3], like[1]).transpose(0, 3, 1, 2)
    else:
        y = y.reshape(like)
    if "previous" in reads:
        y = (reads["previous"] + y).astype(np.float32)
    if op.attributes["final"] and own.bias is not None:
        axis = channel_axis_of(own.layer.kind, y.ndim)
        bias = bias_of_samples(own.bias, y.ndim, axis, row_steps(step, len(y), static=True))
        y = (y + bias).astype(np.float32)
    if "row" in reads:
        y = (y + reads["row"][:, :, None, None]).astype(np.float32)
    if "residual" in reads:
        y = (reads["residual"] + y).astype(np.float32)
    return y
