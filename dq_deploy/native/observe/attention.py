"""What attention computed in one step of an engine, and how far it is from attention in float32."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from dq_kernels.cpu.structs import PRECISIONS

from dq_deploy.native.cpu.executor import CpuExecutor, Plan
from dq_deploy.native.program.program import Op
from dq_deploy.numerics.arrays import F32, I32, Array

Look = Callable[[Plan, int, Op], None]


@dataclass(frozen=True, kw_only=True)
class AttentionError:
    """The same attention, from the same queries, keys and values, in the engine's type and in float32.

    Attributes:
        operations: of this kind in the program; those with a mask run in numpy and in float32, and are not among them.
        largest: largest difference of a value, as a share of the largest magnitude of its tensor.
        rms: root of the mean square of all differences of a tensor, as a share of that of its values; the worst tensor.
    """

    operations: int
    largest: float
    rms: float


@dataclass(frozen=True, kw_only=True, eq=False)
class AttentionValues:
    """One attention in codes, [B, heads, rows, features].

    Attributes:
        q: float32, and so k, v and y.
        k: likewise.
        v: likewise.
        y: likewise.
        scale: of the scores.
    """

    q: F32
    k: F32
    v: F32
    y: F32
    scale: float


@dataclass(frozen=True, kw_only=True, eq=False)
class HeadIntegers:
    """What the kernel computed for one head of one entry.

    Attributes:
        scores: int32 [rows, kv_rows], accumulators of the first product.
        codes: uint8, the same of the softmax.
        sums: int32 [rows, features], accumulators of the second product.
        y: float32, the same.
    """

    scores: I32
    codes: Array
    sums: I32
    y: F32


def run_looking(executor: CpuExecutor, feeds: Mapping[str, Array], look: Look) -> None:
    """Run one step op by op; `look` is called behind each attention a kernel ran, with the plan and its index."""
    with executor.lock:
        plan = executor.plan_of(feeds)
        executor.fill(plan, feeds)
        hosts = iter(piece for piece in plan.pieces if callable(piece))
        for index, op in enumerate(plan.program.ops):
            if index not in plan.structs:
                next(hosts)()
                continue
            executor.context.call(op.kind, plan.structs[index])
            if op.kind == "attention":
                look(plan, index, op)


def attention_error(executor: CpuExecutor, feeds: Mapping[str, Array]) -> AttentionError:
    """Run one step, each attention that is not in float32 in both types.

    Args:
        executor: of the engine.
        feeds: inputs by name.
    """
    largest, rms = [0.0], [0.0]

    def look(plan: Plan, index: int, op: Op) -> None:
        args: Any = plan.structs[index]
        if args.precision == PRECISIONS.index("float32"):
            return
        want = _in_float32(executor, args)
        gap = plan.memory.array(op.writes["y"]).astype(np.float64) - want
        largest.append(float(np.abs(gap).max() / (np.abs(want).max() or 1.0)))
        rms.append(float(np.sqrt((gap**2).mean() / ((want**2).mean() or 1.0))))

    run_looking(executor, feeds, look)
    return AttentionError(operations=len(rms) - 1, largest=max(largest), rms=max(rms))


def attention_values(executor: CpuExecutor, feeds: Mapping[str, Array]) -> dict[str, list[AttentionValues]]:
    """Run one step; what each attention in codes read and gave, in order, by the path of its module."""
    found: dict[str, list[AttentionValues]] = {}

    def look(plan: Plan, index: int, op: Op) -> None:
        if in_codes(plan, index):
            views = {**op.reads, **op.writes}
            arrays = {role: plan.memory.array(view).copy() for role, view in views.items()}
            args: Any = plan.structs[index]
            found.setdefault(op.attributes["name"], []).append(AttentionValues(**arrays, scale=args.scale))

    run_looking(executor, feeds, look)
    return found


def in_codes(plan: Plan, index: int) -> bool:
    """Whether an attention of a plan runs in codes."""
    args: Any = plan.structs[index]
    return bool(args.precision == PRECISIONS.index("int8"))


def names_in_codes(executor: CpuExecutor) -> frozenset[str]:
    """Module paths of the attentions that run in codes, at the record's own sizes."""
    ops = executor.plan(1).program.ops if executor.attention == "int8" else ()
    return frozenset(op.attributes["name"] for op in ops if op.attributes.get("name") in executor.tables)


def attention_counts(executor: CpuExecutor) -> tuple[int, int]:
    """Attentions that run in the type that was asked for, and all: with a mask or without quantizers one may not."""
    plan, asked = executor.plan(1), PRECISIONS.index(executor.attention)
    ran: list[Any] = [plan.structs[i] for i, op in enumerate(plan.program.ops) if op.kind == "attention"]
    hosts = [op for op in plan.program.ops if op.kind == "host" and "scaled_dot_product" in op.attributes["function"]]
    in_numpy = 0 if executor.attention != "float32" else len(hosts)
    return sum(args.precision == asked for args in ran) + in_numpy, len(ran) + len(hosts)


def macs_in_codes(executor: CpuExecutor) -> int:
    """Multiply-accumulates of both products of all attentions in codes, of one sample at the record's own sizes."""
    return macs_of_attention(executor) if executor.attention == "int8" else 0


def macs_of_attention(executor: CpuExecutor) -> int:
    """The same of all attentions in the type that the engine was asked for."""
    plan, total = executor.plan(1), 0
    wanted = PRECISIONS.index(executor.attention)
    for index, op in enumerate(plan.program.ops):
        args: Any = plan.structs.get(index)
        if op.kind == "attention" and args.precision == wanted:
            total += 2 * math.prod(op.reads["q"].sizes) * int(op.reads["k"].sizes[2])
    return total


def integers_of_head(executor: CpuExecutor, plan: Plan, index: int, entry: int, head: int) -> HeadIntegers:
    """Run one head of one entry of the leading axis again; the program's own memory is not touched."""
    args: Any = _copied(plan.structs[index])
    rows, keys, features = args.q_rows, args.kv_rows, args.head_dim
    for name in ("q", "k", "v"):
        strides = getattr(args, f"{name}_stride")
        setattr(args, name, getattr(args, name) + 4 * (entry * strides[0] + head * strides[1]))
    args.batch = args.heads = 1
    y, scores = np.empty((rows, features), np.float32), np.empty((rows, keys), np.int32)
    codes, sums = np.empty((rows, keys), np.uint8), np.empty((rows, features), np.int32)
    args.y, args.y_stride[:] = y.ctypes.data, (y.size, y.size, features)
    args.codes.step += 4 * entry
    args.codes.scores, args.codes.weights, args.codes.sums = (a.ctypes.data for a in (scores, codes, sums))
    executor.context.call("attention", args)
    return HeadIntegers(scores=scores, codes=codes, sums=sums, y=y)


def _copied(struct: Any) -> Any:
    return type(struct).from_buffer_copy(struct)


def _in_float32(executor: CpuExecutor, struct: Any) -> Array:
    """float64 [batch, heads, rows, features] of the float32 result; the program's own memory is not touched."""
    args = _copied(struct)
    shape = (args.batch, args.heads, args.q_rows, args.head_dim)
    y = np.empty(shape, np.float32)
    args.y, args.precision = y.ctypes.data, PRECISIONS.index("float32")
    args.y_stride[:] = tuple(step // y.itemsize for step in y.strides[:3])
    executor.context.call("attention", args)
    return y.astype(np.float64)
