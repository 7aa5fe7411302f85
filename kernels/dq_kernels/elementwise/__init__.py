"""Elementwise operations, copies and broadcasts over strided float32 arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dq_kernels.arrays import Floats

if TYPE_CHECKING:
    from dq_kernels.cpu.library import Context

MOST_AXES = 6


def run(
    context: Context,
    kind: str,
    a: Floats,
    b: Floats | None = None,
    *,
    scalar: float = 0.0,
    out: Floats | None = None,
) -> Floats:
    """Result y = kind(a, b), by numpy's broadcasting; float32, any strides, up to 6 axes.

    Args:
        context: threads and instruction set.
        kind: one of `dq_kernels.cpu.structs.ELEMENTWISE_KINDS`.
        a: float32, any shape and strides.
        b: float32, for add, sub, mul and div.
        scalar: second operand of the kinds that end in _scalar.
        out: float32 of the result's shape, as a slice of a larger array; may be a or b itself, not another part of it.

    Raises:
        KernelInputError: an unknown kind, another dtype, shapes that do not broadcast, or `out` of another shape.
    """
    from dq_kernels.cpu import structs
    from dq_kernels.cpu.library import KernelInputError

    if kind not in structs.ELEMENTWISE_KINDS:
        raise KernelInputError(f"kind is {kind!r}, expected one of {', '.join(structs.ELEMENTWISE_KINDS)}")
    if (b is not None) != (kind in ("add", "sub", "mul", "div")):
        raise KernelInputError(f"{kind} takes {'one operand' if b is not None else 'two operands'}")
    shape = a.shape
    for name, array in (("a", a), ("b", b), ("out", out)):
        if array is not None and (array.dtype != np.float32 or any(s % 4 for s in array.strides)):
            raise KernelInputError(f"{name} is {array.dtype} with strides {array.strides}, expected whole float32")
    if b is not None:
        try:
            shape = np.broadcast_shapes(a.shape, b.shape)
        except ValueError:
            raise KernelInputError(f"a is {a.shape} and b is {b.shape}, expected shapes that broadcast") from None
    if len(shape) > MOST_AXES:
        raise KernelInputError(f"the result has {len(shape)} axes, expected at most {MOST_AXES}")
    y = np.empty(shape, np.float32) if out is None else out
    _check_out(y, shape, [x for x in (a, b) if x is not None])
    args = structs.ElementwiseArgs(kind=structs.ELEMENTWISE_KINDS.index(kind), scalar=scalar)
    args.size[:] = (1,) * (MOST_AXES - len(shape)) + shape
    for name, array in (("a", a), ("b", b), ("y", y)):
        if array is None:
            continue
        wide = array if name == "y" else np.broadcast_to(array, shape)
        setattr(args, name, array.ctypes.data)
        getattr(args, f"{name}_stride")[:] = (0,) * (MOST_AXES - len(shape)) + tuple(s // 4 for s in wide.strides)
    context.call("elementwise", args)
    return y


def _check_out(y: Floats, shape: tuple[int, ...], operands: list[Floats]) -> None:
    from dq_kernels.cpu.library import KernelInputError

    if y.shape != shape or not y.flags.writeable:
        raise KernelInputError(f"out is {y.shape}, expected a writeable {shape}")
    if any(stride == 0 and size > 1 for stride, size in zip(y.strides, shape, strict=True)):
        raise KernelInputError(f"out has strides {y.strides}, expected one place for each value")
    for x in operands:
        same = x.ctypes.data == y.ctypes.data and x.strides == y.strides and x.shape == y.shape
        if not same and np.may_share_memory(x, y):
            raise KernelInputError("out overlaps an operand, expected the operand itself or other memory")
