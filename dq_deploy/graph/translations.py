"""Operations of torch that the exporter writes wrongly, written right."""

from __future__ import annotations

from typing import Any

from onnxscript import opset18
from onnxscript.function_libs.torch_lib.ops.core import aten_repeat_interleave_self_int

op: Any = opset18


def repeat_interleave(self: Any, repeats: Any, dim: int | None = None, output_size: Any = None) -> Any:
    """Each entry of an axis several times: x[0], x[0], x[1], x[1], ... for two.

    onnxscript 0.7 puts a number of repeats that is known only at run time one axis too far to the front: frames of a
    video, by which conditions are repeated, would multiply the batch in place of each entry.

    Args:
        self: [..., N, ...].
        repeats: a number, or a tensor [] int64.
        dim: of N; None takes all values in a row.
        output_size: N * repeats, which follows.
    """
    if isinstance(repeats, int):
        return aten_repeat_interleave_self_int(self, repeats, dim, output_size)
    if dim is None:
        self, dim, rank = op.Reshape(self, op.Constant(value_ints=[-1])), 0, 1
    else:
        rank = len(self.shape)
    at = dim % rank
    ones = [op.Constant(value_ints=[1] * count) for count in (at + 1, rank - at - 1) if count]
    own = op.Reshape(repeats, op.Constant(value_ints=[-1]))
    sizes = op.Concat(ones[0], own, *ones[1:], axis=0)
    several = op.Expand(op.Unsqueeze(self, op.Constant(value_ints=[at + 1])), sizes)
    parts = [op.Constant(value_ints=[-1])]
    if at > 0:
        parts.insert(0, op.Shape(self, start=0, end=at))
    if at < rank - 1:
        parts.append(op.Shape(self, start=at + 1))
    return op.Reshape(several, op.Concat(*parts, axis=0) if len(parts) > 1 else parts[0])
