"""The transposed keys of an attention whose number of tokens varies, in one operation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from dq_deploy.graph.pass_contract import PassResult

_TO_END = 2**62


@dataclass
class KeysInOneTranspose:
    """Rewrites how the tracer transposes the last two axes of a tensor of four where a size in them varies.

    - Shape(k), its last two sizes, Reshape to three axes, Transpose, Reshape back to four axes becomes
      Transpose(k, perm = [0, 1, 3, 2])

    The values are the same; an engine then sees a transposition and no arithmetic on shapes.
    """

    name: str = "keys-in-one-transpose"

    def apply(self, model: ir.Model) -> PassResult:
        """Edit the model in place."""
        found = [(node, keys) for node in model.graph if (keys := _transposed(node)) is not None]
        for node, keys in found:
            turned = ir.node("Transpose", [keys], attributes={"perm": [0, 1, 3, 2]}, name=f"{node.name}/keys")
            turned.metadata_props.update(node.metadata_props)
            end, old = turned.outputs[0], node.outputs[0]
            end.name, end.type = f"{old.name}/keys", keys.type
            shape = None if keys.shape is None else list(keys.shape)
            end.shape = None if shape is None else ir.Shape([*shape[:2], shape[3], shape[2]])
            model.graph.insert_before(node, turned)
            ir.convenience.replace_all_uses_with(old, end)
        return PassResult(model=model, modified=bool(found))


def _transposed(node: ir.Node) -> ir.Value | None:
    """The tensor whose last two axes end up exchanged behind this node, or None."""
    turn = _producer(node, "Reshape", 0, "Transpose")
    flat = None if turn is None else _producer(turn, "Transpose", 0, "Reshape")
    if turn is None or flat is None or turn.attributes["perm"].as_ints() != (0, 2, 1):
        return None
    keys = flat.inputs[0]
    if keys is None or keys.shape is None or len(keys.shape) != 4:
        return None
    first, second = _sizes(flat.inputs[1], keys), _sizes(node.inputs[1], keys)
    if first in ([-1, "2", "3"],) and second in (["0", "1", "3", "2"],):
        return keys
    return None


def _producer(node: ir.Node, op_type: str, index: int, wanted: str) -> ir.Node | None:
    if node.op_type != op_type or len(node.inputs) <= index:
        return None
    value = node.inputs[index]
    made = None if value is None else value.producer()
    return made if made is not None and made.op_type == wanted else None


def _sizes(value: ir.Value | None, of: ir.Value) -> list[int | str]:
    """What a shape is put together from: numbers, and sizes of a tensor as the axis in quotes; empty if unknown."""
    made = None if value is None else value.producer()
    if value is None or (made is None and value.const_value is None):
        return []
    if made is None:
        assert value.const_value is not None
        return [int(size) for size in np.atleast_1d(value.const_value.numpy())]
    if made.op_type == "Concat":
        pieces = [_sizes(piece, of) for piece in made.inputs]
        return [size for piece in pieces for size in piece] if all(pieces) else []
    if made.op_type == "Shape" and made.inputs[0] is of:
        return ["0", "1", "2", "3"]
    if made.op_type == "Slice" and len(made.inputs) == 3:
        source, (start, end) = _sizes(made.inputs[0], of), (_sizes(piece, of) for piece in made.inputs[1:])
        if source and len(start) == len(end) == 1 and isinstance(start[0], int) and isinstance(end[0], int):
            return source[start[0] if abs(start[0]) < _TO_END else None : end[0] if abs(end[0]) < _TO_END else None]
    return []
