"""Operations that no kernel does: one op of numpy each, by torch's name."""

from __future__ import annotations

import inspect
import operator
from typing import Any

import torch
from torch._prims_common import ELEMENTWISE_TYPE_PROMOTION_KIND, elementwise_dtypes
from torch.fx import Node

from dq_deploy.errors import ModelError
from dq_deploy.native.cpu.numpy_ops.table import numpy_op
from dq_deploy.native.lower import fusion
from dq_deploy.native.lower.values import Values, dtype_name
from dq_deploy.native.program.program import View
from dq_deploy.native.trace.functional import name_of

_SHAPING = ("dtype", "layout", "device", "pin_memory", "memory_format", "non_blocking")
"""Arguments of torch that say how the result is held, which the program says too."""


def host(values: Values, node: Node) -> None:
    """An operation by numpy.

    Raises:
        ModelError: numpy has none of that name, or not with these arguments.
    """
    name, results = name_of(node.target), _results(node)
    function = numpy_op(name)
    if not results or function is None:
        raise ModelError(f"operation {node.target} is not known to the native engine; export the record instead")
    reads: dict[str, View] = {}

    def plain(argument: Any) -> Any:
        if isinstance(argument, Node):
            role = f"x{len(reads)}"
            reads[role] = values.view(argument)
            return {"read": role}
        if isinstance(argument, (list, tuple)):
            return [plain(entry) for entry in argument]
        return argument if isinstance(argument, (int, float, bool, str, type(None))) else str(argument)

    arguments = plain(node.args)
    named = {key: plain(value) for key, value in node.kwargs.items() if key not in _SHAPING}
    _check_arguments(node, function, arguments, named)
    writes: dict[str, View] = {}
    for index, result in results.items():
        values.done.add(result)
        values.views[result] = writes["y" if index is None else f"y{index}"] = values.fresh_like(
            result, list(reads.values())
        )
    first: torch.Tensor = next(iter(results.values())).meta["val"]
    more = {"rounded": "bfloat16"} if first.dtype == torch.bfloat16 else {}
    more["compute"] = _compute(values, node, first)
    values.emit("host", reads, writes, function=name, args=arguments, kwargs=named, **more)


def _results(node: Node) -> dict[int | None, Node]:
    """The values of an operation that are read; `None` is the place of an only one."""
    if isinstance(node.meta.get("val"), torch.Tensor):
        return {None: node}
    taken = [user for user in node.users if user.target is operator.getitem and user.users]
    return {int(user.args[1]): user for user in sorted(taken, key=lambda user: user.args[1])}


def _check_arguments(node: Node, function: Any, arguments: list[Any], named: dict[str, Any]) -> None:
    try:
        inspect.signature(function).bind(None, *arguments, **named)
    except TypeError as error:
        raise ModelError(
            f"operation {node.target} with {error} is not known to the native engine; export the record instead"
        ) from error


def _compute(values: Values, node: Node, result: torch.Tensor) -> str:
    """What torch computes in: the wide type of float16, and of comparisons the common type of what is compared."""
    tensors = [fusion.value_of(values.graph, given) for given in node.all_input_nodes]
    if result.dtype == torch.bool and tensors and torch.Tag.pointwise in getattr(node.target, "tags", ()):
        numbers = [a for a in node.args if isinstance(a, (int, float)) and not isinstance(a, bool)]
        kind = ELEMENTWISE_TYPE_PROMOTION_KIND.ALWAYS_BOOL
        dtype, _ = elementwise_dtypes(*tensors, *numbers, type_promotion_kind=kind)
    else:
        dtype = result.dtype
    return "float32" if dtype in (torch.float16, torch.bfloat16) else dtype_name(dtype)
