"""Attention in float32, by blocks of keys."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dq_kernels.arrays import Floats

if TYPE_CHECKING:
    from dq_kernels.cpu.library import Context

WIDEST_HEAD = 16384
"""Channels of a head that a thread's scratch holds."""


def run(context: Context, q: Floats, k: Floats, v: Floats, *, scale: float | None = None) -> Floats:
    """softmax(scale q k^T) v, float32 [batch, rows, heads, head_dim]; the result does not depend on the threads.

    Args:
        context: threads and instruction set.
        q: float32 [batch, rows, heads, head_dim], any strides but the last, as a slice of a joint q, k, v.
        k: float32 [batch, kv_rows, heads, head_dim], likewise.
        v: float32 of k's shape, likewise.
        scale: None is 1 / sqrt(head_dim).

    Raises:
        KernelInputError: another dtype, shapes that do not belong together, or channels of a head that are strided.
    """
    from dq_kernels.cpu import structs
    from dq_kernels.cpu.library import KernelInputError

    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.dtype != np.float32 or x.ndim != 4 or any(s % 4 for s in x.strides):
            raise KernelInputError(f"{name} is {x.dtype} {x.shape}, expected float32 [batch, rows, heads, head_dim]")
        if x.size == 0:
            raise KernelInputError(f"{name} is empty ({x.shape}), expected at least one row")
        if x.shape[3] > 1 and x.strides[3] != 4:
            raise KernelInputError(f"{name} has channels {x.strides[3]} bytes apart, expected 4: contiguous")
    batch, rows, heads, head_dim = q.shape
    if k.shape != v.shape or (k.shape[0], *k.shape[2:]) != (batch, heads, head_dim):
        wanted = f"[{batch}, kv_rows, {heads}, {head_dim}]"
        raise KernelInputError(f"k is {k.shape} and v is {v.shape}, expected both {wanted}")
    if head_dim > WIDEST_HEAD:
        raise KernelInputError(f"a head has {head_dim} channels, expected at most {WIDEST_HEAD}")
    y = np.empty(q.shape, np.float32)
    args = structs.AttentionArgs(
        q=q.ctypes.data,
        k=k.ctypes.data,
        v=v.ctypes.data,
        y=y.ctypes.data,
        batch=batch,
        heads=heads,
        q_rows=rows,
        kv_rows=k.shape[1],
        head_dim=head_dim,
        scale=head_dim**-0.5 if scale is None else scale,
    )
    for name, x in (("q", q), ("k", k), ("v", v), ("y", y)):
        getattr(args, f"{name}_stride")[:] = tuple(x.strides[axis] // 4 for axis in (0, 2, 1))
    context.call("attention", args)
    return y
