"""One layer as a float graph, turned integer and run: the smallest thing the passes can be held to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import onnxruntime

from dq_deploy import numerics
from dq_deploy.graph.pass_contract import run_passes
from dq_deploy.graph.passes.cleanup import RemoveUnused
from dq_deploy.graph.trace import MODULE_KEY
from dq_deploy.manifest.values import ManifestLayer
from dq_deploy.record import Layer, Part, Record, edges_from_timesteps

FLOAT = ir.TensorType(ir.DataType.FLOAT)


WEIGHT_ZEROS = {
    "uint8 codes, any uint8 zero point": (8, (-128, 127)),
    "one-sided channels": (8, (-300, 300)),
    "far from the codes": (8, (700, 800)),
    "four bits beyond": (4, (-200, -130)),
}
"""Weight bits and range of weight zero points with which codes less zero point do not fit int8."""


def wide_layers(
    what: str, kind: str, activations: tuple[int, bool], *, widths: tuple[int, ...] = (33, 4)
) -> Iterator[tuple[Layer, np.ndarray]]:
    """Layers of one of `WEIGHT_ZEROS`, with usual and with extreme weights, and inputs of five samples."""
    bits, zeros = WEIGHT_ZEROS[what]
    rng = np.random.default_rng(3)
    more = {"padding": (1, 1, 1, 1)} if kind == "conv2d" else {}
    for extreme in (False, True):
        layer = random_layer(
            rng,
            kind=kind,
            weight_bits=bits,
            weight_zeros=zeros,
            activation_bits=activations[0],
            symmetric=activations[1],
            widths=widths,
            outputs=9,
            extreme=extreme,
            **more,
        )
        assert not all(part.fits_int8 for part in layer.parts)
        shape = (5, layer.in_channels, 6, 5) if kind == "conv2d" else (5, 4, layer.in_channels)
        yield layer, rng.normal(0, 6, shape).astype(np.float32)


def random_layer(rng: np.random.Generator, *, kind: str = "conv2d", **fields) -> Layer:
    """A layer with random weights and quantizers; `fields` override geometry and bits.

    `weight_zeros` is the least and the greatest weight zero point.
    """
    weight_bits = fields.pop("weight_bits", 4)
    activation_bits = fields.pop("activation_bits", 8)
    symmetric = fields.pop("symmetric", False)
    widths = fields.pop("widths", (5,))
    outputs = fields.pop("outputs", 6)
    kernel = fields.pop("kernel", (3, 3)) if kind == "conv2d" else ()
    steps = fields.pop("steps", 3)
    extreme = fields.pop("extreme", False)
    zeros = fields.pop("weight_zeros", (0, 0))
    low, high = -(2 ** (weight_bits - 1)), 2 ** (weight_bits - 1)
    q_min = -(2 ** (activation_bits - 1)) if symmetric else 0
    q_max = q_min + 2**activation_bits - 1
    parts = []
    for width in widths:
        shape = (1, outputs, width, *kernel)
        code = rng.choice([low, high - 1], shape) if extreme else rng.integers(low, high, shape)
        z = np.zeros(steps, np.int32) if symmetric else rng.integers(0, q_max + 1, steps).astype(np.int32)
        parts.append(
            Part(
                pre=rng.uniform(0.5, 2, width).astype(np.float32),
                scale=rng.uniform(0.01, 0.1, steps).astype(np.float32),
                zero_point=z,
                w_code=code.astype(np.int8),
                w_zero_point=rng.integers(zeros[0], zeros[1] + 1, (1, outputs)).astype(np.int32),
                weight_scale=rng.uniform(0.01, 0.1, (1, outputs)).astype(np.float32),
            )
        )
    return Layer(
        name="layer",
        kind=kind,
        weight_bits=weight_bits,
        activation_bits=activation_bits,
        q_min=q_min,
        q_max=q_max,
        parts=tuple(parts),
        bias=rng.normal(size=outputs).astype(np.float32),
        out_scale=rng.uniform(0.5, 1, steps).astype(np.float32),
        out_zero_point=rng.integers(100, 156, steps).astype(np.int32),
        **fields,
    )


def record_of(layer: Layer, steps: int = 3) -> Record:
    """A record of this layer alone; steps are 0, 100, 200, ..."""
    timesteps = np.arange(steps, dtype=np.float32) * 100
    return Record(
        family="unet2d",
        layers={layer.name: layer},
        timesteps=timesteps,
        step_edges=edges_from_timesteps(timesteps),
        float_parameters={},
        model_config={},
    )


def float_model(layer: Layer, size: tuple[int, ...], leading: str = "B") -> ir.Model:
    """The layer as the tracer writes it.

    Args:
        layer: which.
        size: (H, W) for a convolution, the middle axes for a linear.
        leading: size of the leading axis, in words.
    """
    weight = np.concatenate([p.q_weight(0).astype(np.float32) for p in layer.parts], axis=1)
    conv = layer.kind == "conv2d"
    shape = [leading, layer.in_channels, *size] if conv else [leading, *size, layer.in_channels]
    x = ir.Value(name="x", type=FLOAT, shape=ir.Shape(shape))
    timestep = ir.Value(name="timestep", type=FLOAT, shape=ir.Shape(["B"]))
    array = weight if conv else np.ascontiguousarray(weight.T)
    w = ir.Value(name="w", type=FLOAT, shape=ir.Shape(array.shape), const_value=ir.tensor(array, name="w"))
    attributes = {}
    if conv:
        attributes = {
            "strides": list(layer.stride),
            "pads": list(layer.padding),
            "dilations": list(layer.dilation),
            "group": layer.groups,
            "kernel_shape": list(layer.kernel),
        }
    node = ir.node("Conv" if conv else "MatMul", [x, w], attributes=attributes)
    node.metadata_props[MODULE_KEY] = layer.name
    y = node.outputs[0]
    y.name, y.type = "y", FLOAT
    if conv:
        sample = np.zeros((1, layer.in_channels, *size), np.int32)
        out = numerics.accumulate_conv2d(
            sample[:, : layer.parts[0].w_code.shape[2] * layer.groups],
            layer.parts[0].q_weight(0),
            layer.window,
            groups=layer.groups,
        )
        y.shape = ir.Shape([leading, *out.shape[1:]])
    graph = ir.Graph([x, timestep], [y], nodes=[node], initializers=[w], opset_imports={"": 21}, name="one")
    return ir.Model(graph, ir_version=10)


@dataclass(frozen=True, kw_only=True)
class EngineRun:
    """What the engine computed: outputs by tensor name, and the manifest entry of the layer."""

    values: dict[str, np.ndarray]
    entry: ManifestLayer


def run_integer(layer: Layer, x: np.ndarray, timestep: np.ndarray, layers_pass_of, steps: int = 3) -> EngineRun:
    """Apply a layer pass to the float graph and run it with the codes and accumulators as extra outputs."""
    size = x.shape[2:] if layer.kind == "conv2d" else x.shape[1:-1]
    layers = layers_pass_of(record_of(layer, steps))
    leading = "B" if len(x) == len(timestep) else f"{len(x) // len(timestep)}*B"
    model = run_passes(float_model(layer, size, leading), [layers, RemoveUnused()]).model
    entry = layers.entries[0]
    proto = ir.to_proto(model)
    names = [name for p in entry.parts for name in (p.codes, p.accumulator) if name]
    names += [entry.output_codes] if entry.output_codes else []
    for name in names:
        proto.graph.output.add().name = name
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    outputs = [o.name for o in session.get_outputs()]
    values = session.run(outputs, {"x": x, "timestep": timestep.astype(np.float32)})
    return EngineRun(values=dict(zip(outputs, values, strict=True)), entry=entry)


def assert_codes_and_accumulators_equal(
    layer: Layer, x: np.ndarray, timestep: np.ndarray, run: EngineRun, steps: int = 3
) -> None:
    """Bit for bit against numerics; prints the first bad coordinate through numpy's own message."""
    step = numerics.step_bucket(timestep, record_of(layer, steps).step_edges)
    expected = numerics.integer_layer(layer, x, step)
    step = numerics.row_steps(step, len(x))
    for index, part in enumerate(run.entry.parts):
        codes = run.values[part.codes].astype(np.int64)
        if part.codes_padding is not None:
            top, left, bottom, right = part.codes_padding
            codes = codes[:, :, top : codes.shape[2] - bottom, left : codes.shape[3] - right]
        codes = codes.reshape(expected.codes[index].shape)  # rows and columns may be one axis
        z = layer.parts[index].zero_point[step].reshape((-1,) + (1,) * (codes.ndim - 1))
        held = expected.codes[index] + (z if part.offset is None else part.offset)
        np.testing.assert_array_equal(codes, held)
        if part.accumulator is None:
            continue
        total = expected.accumulators[index].astype(np.int64)
        if layer.kind == "conv2d" and part.layout != "nchw":
            total = total.reshape(*total.shape[:2], -1).transpose(0, 2, 1)
        if part.accumulator_holds == "shifted":
            sums = layer.parts[index].q_weight(0).reshape(layer.out_channels, -1).sum(axis=1, dtype=np.int64)
            total = total + layer.parts[index].zero_point[step].reshape((-1,) + (1,) * (total.ndim - 1)) * sums
        got = run.values[part.accumulator].reshape(total.shape)
        np.testing.assert_array_equal(got.view(np.int32), total.astype(np.float32).view(np.int32))
