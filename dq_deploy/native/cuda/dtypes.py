"""Which buffers of a program are float32 on a GPU, and which hold the narrow float type of the residual stream."""

from __future__ import annotations

from dataclasses import replace

from dq_deploy.native.program.program import Op, Program, View

SMALL = 1 << 16
"""Elements of a buffer that may stay float32: embeddings and rows, not images."""


def with_float_type(program: Program, dtype: str) -> Program:
    """The program for a GPU: codes int8, images in `dtype`; inputs, outputs and the time embedding float32.

    Args:
        program: of one batch size.
        dtype: numpy's name, `float16`, or `bfloat16`, or `float32`.
    """
    wide = {v.buffer for v in (*program.inputs.values(), *program.outputs.values())}
    for op in program.ops:
        if op.kind == "host":
            wide |= {view.buffer for view in op.views()}
    grown = True
    while grown:  # what is made of float32 values by small arithmetic is float32
        before = len(wide)
        for op in program.ops:
            if op.kind == "elementwise" and _all_wide(op, wide) and all(_small(program, v) for v in op.writes.values()):
                wide |= {view.buffer for view in op.writes.values()}
        grown = len(wide) > before
    types = {"float32": dtype, "uint8": "int8"}
    buffers = tuple(
        b if i in wide and b.dtype == "float32" else replace(b, dtype=types.get(b.dtype, b.dtype))
        for i, b in enumerate(program.buffers)
    )
    return replace(program, buffers=buffers)


def _all_wide(op: Op, wide: set[int | str]) -> bool:
    return all(isinstance(view.buffer, str) or view.buffer in wide for view in op.reads.values())


def _small(program: Program, view: View) -> bool:
    return isinstance(view.buffer, int) and program.buffers[view.buffer].elements <= SMALL
