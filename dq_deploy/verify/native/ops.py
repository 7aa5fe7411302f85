"""Single operations of a native program, run by themselves: what codes are of, and a layer on inputs of one's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from dq_kernels.cpu import structs
from dq_kernels.cpu.library import aligned_empty

from dq_deploy.native.cpu import reference_product
from dq_deploy.native.cpu.executor import CpuExecutor, Plan
from dq_deploy.native.observe.layer_values import out_rows
from dq_deploy.native.program.program import Op
from dq_deploy.numerics import quantize_centred, table_at
from dq_deploy.numerics.arrays import F32, Array
from dq_deploy.numerics.geometry import padded
from dq_deploy.record import Layer, Part


def codes_of(layer: Layer, part: Part, rows: F32, step: Array) -> Array:
    """Stored codes c + z - q_min of [B, rows, C], by the numerics."""
    centred = quantize_centred(
        rows,
        pre=part.pre,
        scale=part.scale,
        zero_point=part.zero_point,
        q_min=layer.q_min,
        q_max=layer.q_max,
        step=step,
        channel_axis=2,
    )
    stored: Array = centred + (table_at(part.zero_point, step) - layer.q_min).reshape(-1, 1, 1)
    return stored


def float_values(executor: CpuExecutor, plan: Plan, index: int, op: Op) -> F32:
    """Run an operation that writes codes; float32 [B, rows, C] of what they are."""
    if op.kind == "quantize":
        value: F32 = plan.memory.array(op.reads["x"]).copy()
        executor.context.call(op.kind, plan.structs[index])
        return value
    if "y" in op.writes:
        executor.context.call(op.kind, plan.structs[index])
        return np.array(plan.memory.array(op.writes["y"]))
    batch, rows, channels = op.reads["x"].sizes
    made = np.empty((batch, rows, channels // 2 if op.kind == "geglu_quantize" else channels), np.float32)
    args = _copied(plan.structs[index])
    args.y, args.y_pitch = made.ctypes.data, made.shape[2]
    executor.context.call(op.kind, args)
    return made


def buckets_of(runner: Any, feeds: Mapping[str, Array]) -> Array:
    """The step bucket an opened engine, on either device, finds for each sample: int [B]."""
    executor, batch = runner.executor, len(feeds["timestep"])
    if isinstance(executor, CpuExecutor):
        plan = executor.plan_of(feeds)
        executor.fill(plan, feeds)
        return plan.bound.steps[batch].copy()
    made = executor.prepared_of(feeds)
    executor.fill(made, feeds)
    made.functions[0]()  # finds the buckets, on the device
    return np.asarray(made.steps[batch].cpu().numpy())


def _copied(struct: Any) -> Any:
    return type(struct).from_buffer_copy(struct)


@dataclass(frozen=True, kw_only=True)
class LayerPiece:
    """One part of a layer in a program.

    Attributes:
        op: its product.
        struct: of that product for a batch of one; None where no kernel takes it.
        shape: of one sample of its input, as the numerics take it, without the zeros put around it.
    """

    op: Op
    struct: Any
    shape: tuple[int, ...]


def pieces_of(executor: CpuExecutor) -> dict[tuple[str, int], LayerPiece]:
    """The parts of every integer layer, by module path and number."""
    plan = executor.plan(1)
    found = {}
    for index, op in enumerate(plan.program.ops):
        if op.kind not in ("int_linear", "int_conv2d"):
            continue
        _, rows, channels = op.reads["codes"].sizes
        shape = (rows, channels) if op.kind == "int_linear" else (channels, *op.attributes["in_size"])
        found[op.attributes["layer"], op.attributes["part"]] = LayerPiece(
            op=op, struct=plan.structs.get(index), shape=shape
        )
    return found


def run_piece(executor: CpuExecutor, piece: LayerPiece, x: F32, buckets: Array) -> tuple[F32, Array, Array]:
    """Quantize inputs and multiply them, by the kernels that run in the engine.

    Args:
        executor: of the engine.
        piece: which part.
        x: float32 [B, *shape].
        buckets: [B] step buckets.

    Returns:
        The input with the zeros put around it, centred codes int32 in its shape, accumulators int32.
    """
    op = piece.op
    own = executor.constants[op.attributes["layer"], op.attributes["part"]]
    image = op.kind == "int_conv2d"
    rows = np.ascontiguousarray(x.transpose(0, 2, 3, 1) if image else x, np.float32)
    rows = rows.reshape(len(x), -1, rows.shape[-1])
    batch, count, channels = rows.shape
    pitch = op.reads["codes"].strides[1]
    step = np.ascontiguousarray(buckets, np.int32)
    codes = aligned_empty((batch, count, pitch), np.uint8)
    codes[...] = 0
    flag = np.zeros(1, np.int32)
    out = structs.CodeOutput(own.quantizer(), codes.ctypes.data, 0, channels, pitch)
    quantize = structs.QuantizeArgs(rows.ctypes.data, step.ctypes.data, flag.ctypes.data, batch, count, channels, out)
    executor.context.call("quantize", quantize)
    total = _accumulators(executor, piece, codes, step)
    centred = codes[:, :, :channels].astype(np.int32)
    centred -= (table_at(own.zero_point, step) - own.layer.q_min).reshape(-1, 1, 1)
    if not image:
        return x, centred, total
    height, width = op.attributes["in_size"]
    centred = centred.reshape(batch, height, width, channels).transpose(0, 3, 1, 2)
    total = total.reshape(batch, *op.attributes["out_size"], -1).transpose(0, 3, 1, 2)
    return padded(x, op.padded), padded(centred, op.padded), total


def _accumulators(executor: CpuExecutor, piece: LayerPiece, codes: Array, step: Array) -> Array:
    """Canonical accumulators [B, rows, C_out]."""
    op = piece.op
    own = executor.constants[op.attributes["layer"], op.attributes["part"]]
    if piece.struct is None:
        return reference_product.accumulators(own, op, codes[:, :, : op.reads["codes"].sizes[2]], step)
    total = np.empty((len(codes), out_rows(op), own.layer.out_channels), np.int32)
    bare = np.empty(total.shape, np.float32)
    args = _copied(piece.struct)
    epilogue = _copied(args.epilogue)
    epilogue.previous = epilogue.row = epilogue.residual = None
    epilogue.y, epilogue.y_pitch = bare.ctypes.data, bare.shape[2]
    epilogue.accumulators = total.ctypes.data
    args.epilogue, args.batch = epilogue, len(codes)
    args.codes, args.step = codes.ctypes.data, step.ctypes.data
    executor.context.call(op.kind, args)
    return total
