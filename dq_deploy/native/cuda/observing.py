"""What every layer saw and computed in one step on a GPU: the same kernels, op by op, their insides written out."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch

from dq_deploy.engines.capabilities import LayerValues
from dq_deploy.native.cuda.executor import CudaExecutor, Prepared
from dq_deploy.native.cuda.float32 import without_tf32
from dq_deploy.native.observe.layer_values import (
    ObservedProduct,
    codes_key,
    is_wanted,
    layer_values,
    split_columns,
    wanted_codes,
)
from dq_deploy.native.program.program import Op
from dq_deploy.numerics.arrays import Array

STORED_AT = 128
"""A GPU stores the code u as the int8 u - 128."""


def observed_run(
    executor: CudaExecutor, feeds: Mapping[str, Array], layers: Collection[str] | None = None
) -> tuple[dict[str, Array], dict[str, LayerValues]]:
    """Run one step without the graph and write down every layer; see `native.observe.observing.observed_run`."""
    made = executor.prepared_of(feeds)
    executor.fill(made, feeds)
    wanted = wanted_codes(made.memory.program, layers)
    sources: dict[tuple[Any, ...], Array] = {}
    products: dict[tuple[str, int], ObservedProduct] = {}
    made.functions[0]()
    for op, function in zip(made.memory.program.ops, made.functions[1:], strict=True):
        if is_wanted(op, layers):
            products |= split_columns(_observed(executor, made, op, sources[codes_key(op.reads["codes"])]))
        if any(codes_key(view) in wanted for view in op.writes.values()):
            value = _value(executor, made, op)
            for place, out in enumerate(op.attributes["outs"]):
                piece = value[:, :, out["first"] : out["first"] + out["channels"]]
                sources[codes_key(op.writes[f"codes{place}"])] = piece.copy()
        with without_tf32():
            function()
    executor.check_nan(made)
    return executor.outputs(made), layer_values(
        executor.record, products, made.steps[len(feeds["timestep"])].cpu().numpy()
    )


def _numpy(value: torch.Tensor) -> Array:
    array: Array = value.detach().float().cpu().numpy() if value.is_floating_point() else value.cpu().numpy()
    return array.copy()


def _value(executor: CudaExecutor, made: Prepared, op: Op) -> Array:
    """The float32 value an op takes its codes of, computed by the op itself."""
    if op.kind == "quantize":
        return _numpy(made.memory.value(op.reads["x"]))
    run, y = executor.observed_codes(op, made)
    run()
    return _numpy(y)


def _observed(executor: CudaExecutor, made: Prepared, op: Op, source: Array) -> ObservedProduct:
    codes = _numpy(made.memory.tensor(op.reads["codes"])).astype(np.int32) + STORED_AT
    run, total, y = executor.observed_product(op, made)
    run()
    return ObservedProduct(source=source, codes=codes, accumulators=_numpy(total), output=_numpy(y), op=op)
