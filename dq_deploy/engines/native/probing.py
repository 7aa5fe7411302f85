"""What every layer saw and computed in one step: the same kernels, one op at a time, with their insides written out."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dq_deploy.engines.native import reference_product
from dq_deploy.engines.native.cpu_executor import CpuExecutor, Plan
from dq_deploy.engines.native.layer_constants import LayerConstants
from dq_deploy.engines.native.program import Op, View
from dq_deploy.numerics import table_at

Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class LayerTrace:
    """One integer layer in one step; axes are the layer's own, [B, C, H, W] or [B, rows, C].

    Attributes:
        inputs: of each part, float32, with the zeros the denoiser puts around an image.
        codes: of each part, centred, int32.
        accumulators: of each part, canonical, int32.
        output: float32, before the row and the residual that the same kernel adds.
    """

    inputs: tuple[Array, ...]
    codes: tuple[Array, ...]
    accumulators: tuple[Array, ...]
    output: Array


@dataclass(frozen=True, kw_only=True)
class _Product:
    codes: Array
    accumulators: Array
    output: Array
    padded: tuple[int, ...]
    size: tuple[int, ...]


def probe(
    executor: CpuExecutor, feeds: Mapping[str, Array], layers: Collection[str] | None = None
) -> tuple[dict[str, Array], dict[str, LayerTrace]]:
    """Run one step and write down every layer.

    Args:
        executor: of the engine.
        feeds: inputs by name.
        layers: those that are looked at, or None for all.

    Returns:
        Outputs by name, and the layers by module path. The outputs are those of `CpuExecutor.run`, bit for bit.
    """
    plan = executor.plan(len(feeds["timestep"]))
    executor.fill(plan, feeds)
    seen: dict[tuple[Any, ...], Array] = {}
    products: dict[tuple[str, int], _Product] = {}
    sources: dict[tuple[str, int], Array] = {}
    hosts = iter(piece for piece in plan.pieces if callable(piece))
    for index, op in enumerate(plan.program.ops):
        if op.kind in ("int_linear", "int_conv2d") and (layers is None or op.attributes["layer"] in layers):
            name, part = op.attributes["layer"], op.attributes["part"]
            sources[name, part] = seen[_codes_key(op.reads["codes"])]
            products[name, part] = _observed(executor, plan, index, op)
        if index not in plan.structs:
            next(hosts)()
            continue
        outs = op.attributes.get("outs", ())
        if any(layers is None or out["layer"] in layers for out in outs):
            _note_codes(executor, plan, index, op, seen)
        else:
            executor.context.call(op.kind, plan.structs[index])
    executor.check_nan(plan)
    outputs = {n: np.ascontiguousarray(plan.memory.array(v)).copy() for n, v in plan.program.outputs.items()}
    names = dict.fromkeys(name for name, _ in products)
    return outputs, {name: _layer(executor, name, products, sources, plan.bound.step) for name in names}


def _copied(struct: Any) -> Any:
    return type(struct).from_buffer_copy(struct)


def _codes_key(view: View) -> tuple[Any, ...]:
    return (view.buffer, view.offset, view.sizes)


def _note_codes(executor: CpuExecutor, plan: Plan, index: int, op: Op, seen: dict[tuple[Any, ...], Array]) -> None:
    """Run an op that writes codes and keep the float value each of them is of."""
    if op.kind == "quantize":
        value = plan.memory.array(op.reads["x"]).copy()
        executor.context.call(op.kind, plan.structs[index])
    else:
        args = _copied(plan.structs[index])
        batch, rows, channels = op.reads["x"].sizes
        value = np.empty((batch, rows, channels // 2 if op.kind == "geglu_quantize" else channels), np.float32)
        if "y" in op.writes:
            executor.context.call(op.kind, plan.structs[index])
            value[...] = plan.memory.array(op.writes["y"])
        else:
            args.y, args.y_pitch = value.ctypes.data, value.shape[2]
            executor.context.call(op.kind, args)
    for place, out in enumerate(op.attributes["outs"]):
        slice_ = value[:, :, out["first"] : out["first"] + out["channels"]]
        seen[_codes_key(op.writes[f"codes{place}"])] = slice_.copy()


def _observed(executor: CpuExecutor, plan: Plan, index: int, op: Op) -> _Product:
    """Codes, accumulators and bare output of a product; the program's own memory is not touched."""
    own = executor.constants[op.attributes["layer"], op.attributes["part"]]
    codes = plan.memory.array(op.reads["codes"]).copy()
    rows = _out_rows(op)
    bare = np.empty((codes.shape[0], rows, own.layer.out_channels), np.float32)
    total = np.empty(bare.shape, np.int32)
    if own.reason:
        total[...] = reference_product.accumulators(own, op, codes, plan.bound.step)
        plain = replace(op, reads={"codes": op.reads["codes"]})
        y = reference_product.output(own, plain, {"codes": codes}, plan.bound.step)
        bare[...] = y.transpose(0, 2, 3, 1).reshape(bare.shape) if own.layer.kind == "conv2d" else y.reshape(bare.shape)
    else:
        args = _copied(plan.structs[index])
        epilogue = _copied(args.epilogue)
        epilogue.previous = epilogue.row = epilogue.residual = None
        epilogue.y, epilogue.y_pitch = bare.ctypes.data, bare.shape[2]
        epilogue.accumulators = total.ctypes.data
        args.epilogue = epilogue
        executor.context.call(op.kind, args)
    return _Product(
        codes=codes,
        accumulators=total,
        output=bare,
        padded=tuple(op.attributes["padded"]),
        size=tuple(op.attributes.get("in_size", ())) + tuple(op.attributes.get("out_size", ())),
    )


def _out_rows(op: Op) -> int:
    if op.kind == "int_linear":
        return int(op.reads["codes"].sizes[1])
    height, width = op.attributes["out_size"]
    return int(height * width)


def _layer(
    executor: CpuExecutor,
    name: str,
    products: Mapping[tuple[str, int], _Product],
    sources: Mapping[tuple[str, int], Array],
    step: Array,
) -> LayerTrace:
    parts = [(products[key], sources[key], executor.constants[key]) for key in sorted(products) if key[0] == name]
    output = parts[0][0].output
    layer = parts[0][2].layer
    for product, _, _ in parts[1:]:
        # the bias came with the last part; the parts' own terms are added first
        bare = product.output if layer.bias is None else _without_bias(product, layer, executor, name, step)
        output = (output + bare).astype(np.float32)
    if len(parts) > 1 and layer.bias is not None:
        output = (output + layer.bias).astype(np.float32)
    return LayerTrace(
        inputs=tuple(_as_image(source, product, fill=0.0) for product, source, _ in parts),
        codes=tuple(_as_image(_centred(product.codes, own, step), product, fill=0) for product, _, own in parts),
        accumulators=tuple(_as_output(product.accumulators, product) for product, _, _ in parts),
        output=_as_output(output, parts[0][0]),
    )


def _without_bias(product: _Product, layer: Any, executor: CpuExecutor, name: str, step: Array) -> Array:
    own = executor.constants[name, len(layer.parts) - 1]
    factor = table_at(own.scale, step)[:, None] * own.weight_scale[None, :]
    return (product.accumulators.astype(np.float32) * factor.astype(np.float32)[:, None, :]).astype(np.float32)


def _centred(codes: Array, own: LayerConstants, step: Array) -> Array:
    zero = (table_at(own.zero_point, step) - own.layer.q_min).reshape(-1, 1, 1)
    return (codes.astype(np.int32) - zero).astype(np.int32)


def _as_image(values: Array, product: _Product, *, fill: float) -> Array:
    """[B, rows, C] as [B, C, H, W] with the zeros around it, where the layer is a convolution."""
    if not product.size:
        return values
    height, width = product.size[:2]
    image = values.reshape(values.shape[0], height, width, -1).transpose(0, 3, 1, 2)
    top, left, bottom, right = product.padded
    if any(product.padded):
        image = np.pad(image, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=fill)
    return np.ascontiguousarray(image)


def _as_output(values: Array, product: _Product) -> Array:
    if not product.size:
        return values
    height, width = product.size[2:]
    return np.ascontiguousarray(values.reshape(values.shape[0], height, width, -1).transpose(0, 3, 1, 2))
