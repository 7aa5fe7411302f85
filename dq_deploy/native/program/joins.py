"""Concatenations without a copy: what will be joined is written into the joined tensor by whoever makes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from dq_deploy.native.program.program import Op, Program, View, without_unused_buffers
from dq_deploy.native.program.views import has_even_rows, widened

_ANY_STRIDES = ("elementwise", "attention", "host", "nothing")
_ROWS = ("x", "y", "previous", "residual")


def without_join_copies(program: Program) -> Program:
    """The program with each piece of a channel concatenation moved into the result, where all its views allow it.

    A piece must fill a buffer of its own with adjacent channels, and be neither an input nor an output.
    """
    fixed = {v.buffer for v in (*program.inputs.values(), *program.outputs.values())}
    ops = list(program.ops)
    for index in range(len(ops)):
        op = ops[index]  # as earlier joins left it
        moved = _moved(op, program, fixed, ops)
        if moved is None:
            continue
        piece = op.reads["a"].buffer
        ops = [_rewritten(other, piece, moved) for other in ops]
        ops[index] = replace(op, kind="nothing", reads={}, writes={})
    kept = tuple(op for op in ops if op.kind != "nothing")
    return without_unused_buffers(replace(program, ops=kept))


def _moved(op: Op, program: Program, fixed: set[int | str], ops: list[Op]) -> dict[View, View] | None:
    """New views for every view of the piece a copy reads, or None where it has to stay."""
    if op.kind != "elementwise" or "joined" not in op.attributes:
        return None
    piece, target = op.reads["a"], op.writes["y"]
    if isinstance(piece.buffer, str) or isinstance(target.buffer, str) or piece.buffer in fixed:
        return None
    count = 1
    for size in piece.sizes:
        count *= size
    axis = [i for i, (n, s) in enumerate(zip(piece.sizes, piece.strides, strict=True)) if s == 1 and n > 1]
    whole = piece.offset == 0 and count == program.buffers[piece.buffer].elements
    if len(axis) != 1 or not whole or target.strides[axis[0]] != 1:
        return None
    channels, pitch = piece.sizes[axis[0]], int(op.attributes["joined"])
    if target.offset >= pitch:  # joined along another axis
        return None
    moved: dict[View, View] = {}
    for other in ops:
        for role, view in (*other.reads.items(), *other.writes.items()):
            if view.buffer == piece.buffer:
                new = widened(view, channels=channels, pitch=pitch, first=target.offset, buffer=target.buffer)
                if new is None or not is_taken(other.kind, role, new):
                    return None
                moved[view] = new
    wanted = [s for n, s in zip(piece.sizes, target.strides, strict=True) if n > 1]
    return moved if [s for n, s in zip(piece.sizes, moved[piece].strides, strict=True) if n > 1] == wanted else None


def is_taken(kind: str, role: str, at: View) -> bool:
    """Whether an op takes a view in a role; most kernels know one pitch, the same from sample to sample."""
    if kind in _ANY_STRIDES or role == "row":
        return True
    return role in _ROWS and has_even_rows(at, 1 if kind.endswith("conv2d") else -1)


def _rewritten(op: Op, piece: int | str, moved: Mapping[View, View]) -> Op:
    if not any(view.buffer == piece for view in op.views()):
        return op
    reads = {role: moved.get(view, view) for role, view in op.reads.items()}
    writes = {role: moved.get(view, view) for role, view in op.writes.items()}
    return replace(op, reads=reads, writes=writes)
