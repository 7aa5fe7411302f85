"""One layer in TensorRT's form, run on ONNX Runtime without optimizations, and held to the numerics."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime

from dq_deploy import numerics
from dq_deploy.graph.pass_contract import run_passes
from dq_deploy.graph.passes.cleanup import RemoveUnused
from dq_deploy.graph.passes.float_types import FloatTypes
from dq_deploy.graph.passes.tensorrt_layers import TensorRtLayers
from dq_deploy.verify.layers.outputs import float_product_slack
from dq_deploy.verify.onnx.integer_products import integer_product_nodes
from tests.graph.passes.single_layer import EngineRun, float_model, record_of


def tensorrt_model(layer, size, *, conv="gemm", float_type="float32", steps=3):
    """The layer's graph as a proto, and its manifest entry."""
    layers = TensorRtLayers(record_of(layer, steps), conv=conv, pixels_as_rows=True)
    types = FloatTypes(float_type, {}, layers.entries)
    model = run_passes(float_model(layer, size), [layers, RemoveUnused(), types, RemoveUnused()]).model
    return ir.to_proto(model), layers.entries[0]


def run_tensorrt(layer, x, timestep, *, conv="gemm", float_type="float32", steps=3) -> EngineRun:
    """Run it with its codes and the twins of its products as extra outputs."""
    size = x.shape[2:] if layer.kind == "conv2d" else x.shape[1:-1]
    proto, entry = tensorrt_model(layer, size, conv=conv, float_type=float_type, steps=steps)
    nodes = {node.name: node for node in proto.graph.node}
    for part in entry.parts:
        proto.graph.node.extend(integer_product_nodes(part, nodes[part.node]))
        for name in (part.codes, part.accumulator):
            proto.graph.output.add().name = name
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    outputs = [o.name for o in session.get_outputs()]
    values = session.run(outputs, {"x": x, "timestep": timestep.astype(np.float32)})
    return EngineRun(values=dict(zip(outputs, values, strict=True)), entry=entry)


def without_border(codes, padding):
    """Codes inside the padding that the form put around the float tensor, and those of the border."""
    top, left, bottom, right = padding
    inside = np.zeros(codes.shape[2:], bool)
    inside[top : codes.shape[2] - bottom, left : codes.shape[3] - right] = True
    return codes[:, :, top : codes.shape[2] - bottom, left : codes.shape[3] - right], codes[:, :, ~inside]


def check(layer, x, timestep, *, conv="gemm", output=True, steps=3) -> EngineRun:
    """Codes and accumulators bit for bit; the float output within what a float sum of the product may be off by."""
    run = run_tensorrt(layer, x, timestep, conv=conv, steps=steps)
    step = numerics.step_bucket(timestep, record_of(layer, steps).step_edges)
    expected = numerics.integer_layer(layer, x, step)
    for index, part in enumerate(run.entry.parts):
        held = run.values[part.codes]
        assert held.dtype == np.int8
        table = layer.parts[index].zero_point + part.offset_shift if part.offset is None else [part.offset]
        offset = numerics.table_at(np.asarray(table), step).astype(np.int64)
        if any(part.codes_padding):
            held, border = without_border(held, part.codes_padding)
            np.testing.assert_array_equal(border, np.broadcast_to(offset[:, None, None], border.shape))
        shift = offset.reshape((-1,) + (1,) * (held.ndim - 1))
        np.testing.assert_array_equal(held.astype(np.int64) - shift, expected.codes[index])
        total = expected.accumulators[index].astype(np.int64)
        axis = 1 if layer.kind == "conv2d" else total.ndim - 1
        sums = layer.parts[index].q_weight(0).reshape(layer.out_channels, -1).sum(axis=1, dtype=np.int64)
        total = total + offset.reshape((-1,) + (1,) * (total.ndim - 1)) * numerics.per_channel(sums, total.ndim, axis)
        if part.layout == "nhwc":
            total = total.reshape(*total.shape[:2], -1).transpose(0, 2, 1)
        got = run.values[part.accumulator]
        np.testing.assert_array_equal(got.astype(np.int64), total)
        assert (got == np.rint(got)).all()
    if not output:
        return run
    slack = (
        float_product_slack(layer, [bool(part.weight) for part in run.entry.parts], step)
        + np.abs(expected.output).max() * 2.0**-20
    )
    gap = np.abs(run.values["y"].astype(np.float64) - expected.output)
    assert (gap.reshape(len(step), -1).max(axis=1, initial=0) <= slack).all()
    return run
