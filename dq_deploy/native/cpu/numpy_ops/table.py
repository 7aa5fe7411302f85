"""All operations in numpy by their names in torch."""

from __future__ import annotations

from dq_deploy.native.cpu.numpy_ops import (
    complex_numbers,
    indexing,
    making,
    norms,
    pointwise,
    pooling,
    products,
    reductions,
    resampling,
)
from dq_deploy.native.cpu.numpy_ops.made import NumpyOp, Table

TABLE: Table = {
    **pointwise.OPS,
    **reductions.OPS,
    **making.OPS,
    **indexing.OPS,
    **products.OPS,
    **norms.OPS,
    **pooling.OPS,
    **resampling.OPS,
    **complex_numbers.OPS,
}


def numpy_op(name: str) -> NumpyOp | None:
    """The function for an operation, or None.

    Args:
        name: torch's, with the overload: `sum.dim_IntList`.
    """
    return TABLE.get(name) or TABLE.get(name.split(".")[0])
