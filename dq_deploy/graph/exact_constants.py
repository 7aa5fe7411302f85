"""Constants of a traced graph whose value would depend on the CPU, computed in float64 and rounded once.

The float32 `exp` and `sin` of numpy and torch are vectorized, and the last bit of what they give differs between
instruction sets. What such an operation makes of constants is put into the graph here, before an optimizer folds it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from dq_deploy.graph.pass_contract import PassResult

NOT_CORRECTLY_ROUNDED = frozenset(
    ("Exp", "Log", "Sin", "Cos", "Tan", "Tanh", "Pow", "Sigmoid", "Erf", "Softplus", "Softmax", "Gelu", "ReduceSum")
)
"""Operations that libraries compute to a last bit of their own; float64 rounds them the same everywhere."""

_MOST_ELEMENTS = 1 << 16

NEAR = ((0.0, 1e-7), (1.0, 2e-5))
"""How near to a number another is kept from an optimizer: onnxscript takes 1e-8 for 0, and drops the addition."""


@contextlib.contextmanager
def near_numbers_kept(model: ir.Model) -> Iterator[None]:
    """Inside, scalars that are nearly but not quite 0 or 1 have no value, so that no optimizer takes them for it."""
    graph = model.graph
    for node in [node for node in graph if node.op_type == "Constant" and "value" in node.attributes]:
        tensor, old = node.attributes["value"].as_tensor(), node.outputs[0]
        if _is_nearly_whole(tensor) and not old.is_graph_output():
            new = _initializer(f"{old.name}/number", tensor.numpy())
            ir.convenience.replace_all_uses_with(old, new)
            graph.remove(node, safe=True)
            graph.register_initializer(new)
    hidden = {value: value.const_value for value in graph.initializers.values() if _is_nearly_whole(value.const_value)}
    for value in hidden:
        value.const_value = None
    yield
    for value, tensor in hidden.items():
        value.const_value = tensor


def _is_nearly_whole(tensor: ir.TensorProtocol | None) -> bool:
    if tensor is None or tensor.dtype != ir.DataType.FLOAT or tensor.size != 1:
        return False
    number = float(tensor.numpy().item())
    return any(0 < abs(number - whole) < near for whole, near in NEAR)


class ConstantsInFloat64:
    """Replaces operations on constants alone, where float32 would give each CPU its own last bit.

    - an operation of `NOT_CORRECTLY_ROUNDED` whose inputs follow from constants: an initializer of its output's name
    - what leads to it is computed node by node, each in float64 and rounded to float32: for additions, products,
      quotients and roots that is what float32 itself gives

    Weights without a value yet are left alone.
    """

    name = "constants-in-float64"

    def apply(self, model: ir.Model) -> PassResult:
        """Edit the model in place."""
        constant = _constant_values(model.graph)
        known: dict[ir.Value, _Held | None] = {}
        folded = [n for n in model.graph if n.op_type in NOT_CORRECTLY_ROUNDED and _is_float32(n)]
        done = False
        for old in (node.outputs[0] for node in folded if node.outputs[0] in constant):
            value = _value_of(old, known)
            if not isinstance(value, np.ndarray):
                continue
            new = _initializer(f"{old.name}/constant", value)
            model.graph.register_initializer(new)
            ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
            known[new] = value
            done = True
        return PassResult(model=model, modified=done)


def _initializer(name: str, value: NDArray[Any]) -> ir.Value:
    tensor = ir.tensor(value, name=name)
    return ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(value.shape), const_value=tensor)


def _constant_values(graph: ir.Graph) -> set[ir.Value]:
    """The tensors that follow from constants with a value."""
    found = {value for value in graph.initializers.values() if value.const_value is not None}
    for node in graph:
        given = [value for value in node.inputs if value is not None]
        if node.domain or len(node.outputs) != 1 or not (given or node.op_type == "Constant"):
            continue
        if all(value in found for value in given):
            found.add(node.outputs[0])
    return found


def _is_float32(node: ir.Node) -> bool:
    return node.domain == "" and node.outputs[0].dtype in (None, ir.DataType.FLOAT)


_Held = NDArray[Any] | list[NDArray[Any]]
"""What a constant is: a tensor, or a sequence of them as a split gives it."""


def _value_of(value: ir.Value, known: dict[ir.Value, _Held | None]) -> _Held | None:
    """What a constant holds, or None where it is too large to be worth it."""
    if value not in known:
        known[value] = _computed(value, known)
    return known[value]


def _computed(value: ir.Value, known: dict[ir.Value, _Held | None]) -> _Held | None:
    if value.const_value is not None:
        return value.const_value.numpy() if value.const_value.size <= _MOST_ELEMENTS else None
    node = value.producer()
    assert node is not None
    feeds = {}
    for source in (given for given in node.inputs if given is not None):
        held = _value_of(source, known)
        if held is None:
            return None
        feeds[str(source.name)] = [_wide(a) for a in held] if isinstance(held, list) else _wide(held)
    result = ReferenceEvaluator(ir.to_proto(node)).run(None, feeds)[0]
    arrays = [np.asarray(array) for array in (result if isinstance(result, list) else [result])]
    if sum(array.size for array in arrays) > _MOST_ELEMENTS:
        return None
    if value.dtype != ir.DataType.DOUBLE:
        arrays = [array.astype(np.float32) if array.dtype == np.float64 else array for array in arrays]
    return arrays if isinstance(result, list) else arrays[0]


def _wide(array: NDArray[Any]) -> NDArray[Any]:
    return array.astype(np.float64) if array.dtype == np.float32 else array
