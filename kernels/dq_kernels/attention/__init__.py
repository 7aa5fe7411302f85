"""Attention by blocks of keys: in float32, in bfloat16, or in codes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dq_kernels.arrays import Floats

if TYPE_CHECKING:
    from dq_kernels.cpu.library import Context

WIDEST_HEAD = 16384
"""Channels of a head that a thread's scratch holds."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Table:
    """The quantizer of one operand, with a row a step: code = clamp(rne(x * inverse), q_min - z, q_max - z), centred.

    Attributes:
        q_min: lowest code.
        q_max: highest code, at most 255 above it.
        scale: float32 [T] or [1].
        inverse: its float32 reciprocals.
        zero_point: int32, as `scale`.
    """

    q_min: int
    q_max: int
    scale: Floats
    inverse: Floats
    zero_point: NDArray[np.int32]

    def struct(self) -> Any:
        """As the kernels take it; keeps no array alive."""
        from dq_kernels.cpu import structs

        return structs.Quantizer(
            pre=None,
            inverse_scale=self.inverse.ctypes.data,
            scale=self.scale.ctypes.data,
            zero_point=self.zero_point.ctypes.data,
            steps=len(self.scale),
            q_min=self.q_min,
            q_max=self.q_max,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class CodesRun:
    """What attention in codes gave.

    Attributes:
        y: float32 [batch, rows, heads, head_dim].
        scores: int32 [batch, heads, rows, kv_rows], the accumulators of the first product.
        weights: uint8, the same of the codes of the softmax.
        sums: int32 [batch, heads, rows, head_dim], the accumulators of the second product.
        nan_seen: whether an input held a NaN; then the others say nothing.
    """

    y: Floats
    scores: NDArray[np.int32]
    weights: NDArray[np.uint8]
    sums: NDArray[np.int32]
    nan_seen: bool


def codes_fit(kv_rows: int, head_dim: int) -> bool:
    """Whether so many keys and values of a head fit a thread's scratch as codes."""
    from dq_kernels.cpu.library import library

    return bool(library().dq_attention_codes_fit(kv_rows, head_dim))


def run(
    context: Context, q: Floats, k: Floats, v: Floats, *, scale: float | None = None, precision: str = "float32"
) -> Floats:
    """softmax(scale q k^T) v, float32 [batch, rows, heads, head_dim]; the result does not depend on the threads.

    Args:
        context: threads and instruction set.
        q: float32 [batch, rows, heads, head_dim], any strides but the last, as a slice of a joint q, k, v.
        k: float32 [batch, kv_rows, heads, head_dim], likewise.
        v: float32 of k's shape, likewise.
        scale: None is 1 / sqrt(head_dim).
        precision: float32 or bf16. In bf16 q (times the scale), k, v and the softmax's numerators are rounded to
            bfloat16, each by up to 2^-9 of itself.

    Raises:
        KernelInputError: another dtype, shapes that do not belong together, channels of a head that are strided, or a
            precision there is none of.
    """
    from dq_kernels.cpu.library import KernelInputError
    from dq_kernels.cpu.structs import PRECISIONS

    if precision not in PRECISIONS[:2]:
        raise KernelInputError(f"precision is {precision!r}, expected one of {', '.join(PRECISIONS[:2])}")
    args, y = _arguments(q, k, v, scale)
    args.precision = PRECISIONS.index(precision)
    context.call("attention", args)
    return y


def run_codes(
    context: Context,
    q: Floats,
    k: Floats,
    v: Floats,
    tables: Mapping[str, Table],
    step: NDArray[np.int32],
    *,
    normed: bool,
    scale: float | None = None,
    integers: bool = True,
) -> CodesRun:
    """The same with both products of codes.

    In order::

        A = sum cq ck;  e = exp((A - max A) * (s_q s_k scale));  P = e / sum e
        normed: cp = clamp(rne(P / s_p), 0, q_max);  y = sum cp cv * (s_p s_v)
        else:   cp = clamp(rne(e / s_p), 0, q_max);  y = sum cp cv * (s_v / sum cp)

    Args:
        context: threads and instruction set.
        q: as of `run`, and so k and v.
        k: likewise.
        v: likewise.
        tables: by q, k, v and p; p has zero points and q_min 0.
        step: int32 [batch], the row of the tables that each sample takes.
        normed: whether probabilities are coded; else their numerators, whose largest in a row is 1.
        scale: None is 1 / sqrt(head_dim).
        integers: False writes none of them, as in use, and they are empty.

    Raises:
        KernelInputError: as of `run`, or more keys than fit.
    """
    from dq_kernels.cpu.library import KernelInputError
    from dq_kernels.cpu.structs import PRECISIONS

    args, y = _arguments(q, k, v, scale)
    batch, rows, heads, head_dim = q.shape
    if not codes_fit(k.shape[1], head_dim):
        raise KernelInputError(f"{k.shape[1]} keys of {head_dim} channels do not fit as codes; take another precision")
    kept = (batch if integers else 0, heads, rows)
    scores = np.empty((*kept, k.shape[1]), np.int32)
    weights = np.empty(scores.shape, np.uint8)
    sums = np.empty((*kept, head_dim), np.int32)
    nan_seen = np.zeros(1, np.int32)
    args.precision = PRECISIONS.index("int8")
    args.codes.normed = normed
    for role in "qkvp":
        setattr(args.codes, role, tables[role].struct())
    wanted: dict[str, NDArray[Any]] = {"step": step, "nan_seen": nan_seen}
    wanted |= {"scores": scores, "weights": weights, "sums": sums} if integers else {}
    for name, array in wanted.items():
        setattr(args.codes, name, array.ctypes.data)
    context.call("attention", args)
    return CodesRun(y=y, scores=scores, weights=weights, sums=sums, nan_seen=bool(nan_seen[0]))


def _arguments(q: Floats, k: Floats, v: Floats, scale: float | None) -> tuple[Any, Floats]:
    """The struct of a call in float32, and where its result goes."""
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
    return args, y
