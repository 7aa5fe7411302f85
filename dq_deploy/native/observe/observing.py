"""What every layer saw and computed in one step: the same CPU kernels, one op at a time, their insides written out."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from dq_deploy.engines.capabilities import LayerValues
from dq_deploy.native.cpu import reference_product
from dq_deploy.native.cpu.executor import TIMESTEP, CpuExecutor, Plan, outputs_of
from dq_deploy.native.observe.layer_values import (
    ObservedProduct,
    codes_key,
    is_wanted,
    layer_values,
    out_rows,
    wanted_codes,
)
from dq_deploy.native.program.program import Op
from dq_deploy.numerics.arrays import Array


def observed_run(
    executor: CpuExecutor, feeds: Mapping[str, Array], layers: Collection[str] | None = None
) -> tuple[dict[str, Array], dict[str, LayerValues]]:
    """Run one step and write down every layer.

    Args:
        executor: of the engine.
        feeds: inputs by name.
        layers: those that are looked at, or None for all.

    Returns:
        Outputs by name, and the layers by module path. The outputs are those of `CpuExecutor.run`, bit for bit.
    """
    with executor.lock:
        plan = executor.plan_of(feeds)
        executor.fill(plan, feeds)
        wanted = wanted_codes(plan.program, layers)
        sources: dict[tuple[Any, ...], Array] = {}
        products: dict[tuple[str, int], ObservedProduct] = {}
        hosts = iter(piece for piece in plan.pieces if callable(piece))
        for index, op in enumerate(plan.program.ops):
            if is_wanted(op, layers):
                key = (op.attributes["layer"], op.attributes["part"])
                products[key] = _observed(executor, plan, index, op, sources[codes_key(op.reads["codes"])])
            if index not in plan.structs:
                next(hosts)()
            elif any(codes_key(view) in wanted for view in op.writes.values()):
                _note_codes(executor, plan, index, op, sources)
            else:
                executor.context.call(op.kind, plan.structs[index])
            executor.call_at_once(plan, index)
        executor.check_nan(plan)
        return outputs_of(plan), layer_values(executor.record, products, plan.bound.steps[len(feeds[TIMESTEP])])


def _copied(struct: Any) -> Any:
    return type(struct).from_buffer_copy(struct)


def _note_codes(executor: CpuExecutor, plan: Plan, index: int, op: Op, sources: dict[tuple[Any, ...], Array]) -> None:
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
        piece = value[:, :, out["first"] : out["first"] + out["channels"]]
        sources[codes_key(op.writes[f"codes{place}"])] = piece.copy()


def _observed(executor: CpuExecutor, plan: Plan, index: int, op: Op, source: Array) -> ObservedProduct:
    """Codes, accumulators and bare output of a product; the program's own memory is not touched."""
    own = executor.constants[op.attributes["layer"], op.attributes["part"]]
    codes = plan.memory.array(op.reads["codes"]).copy()
    bare = np.empty((codes.shape[0], out_rows(op), own.layer.out_channels), np.float32)
    total = np.empty(bare.shape, np.int32)
    if own.reason:
        total[...] = reference_product.accumulators(own, op, codes, plan.bound.step_of(op.reads["codes"]))
        plain = replace(op, reads={"codes": op.reads["codes"]})
        y = reference_product.output(own, plain, {"codes": codes}, plan.bound.step_of(op.reads["codes"]))
        bare[...] = y.transpose(0, 2, 3, 1).reshape(bare.shape) if own.layer.kind == "conv2d" else y.reshape(bare.shape)
    else:
        args = _copied(plan.structs[index])
        epilogue = _copied(args.epilogue)
        epilogue.previous = epilogue.row = epilogue.residual = None
        epilogue.y, epilogue.y_pitch = bare.ctypes.data, bare.shape[2]
        epilogue.accumulators = total.ctypes.data
        args.epilogue = epilogue
        executor.context.call(op.kind, args)
    return ObservedProduct(source=source, codes=codes, accumulators=total, output=bare, op=op)
