"""A graph without writes in place, of operations that the native engine knows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import torch
from torch._decomp import core_aten_decompositions
from torch.func import functionalize
from torch.fx.experimental.proxy_tensor import make_fx

from dq_deploy.native.cpu.numpy_ops.table import numpy_op

aten = torch.ops.aten

_VIEWS = (
    *("view", "expand", "permute", "slice", "select", "squeeze", "unsqueeze", "transpose", "t", "split", "chunk"),
    *("split_with_sizes", "unbind", "as_strided", "diagonal", "unfold", "alias", "detach", "_unsafe_view", "narrow"),
    *("_reshape_alias", "swapaxes", "unflatten", "movedim", "numpy_T", "mT"),
)
"""Operations that move nothing; the lowering finds them by their memory."""
_KERNELS = ("convolution", "native_group_norm", "native_layer_norm", "upsample_nearest2d", "integer_layer", "attention")


def name_of(target: Any) -> str:
    """Name of an operation with its overload: `sum.dim_IntList`."""
    return str(target).removeprefix("aten.").removeprefix("dq_native.")


def is_known(target: Any) -> bool:
    """Whether an operation is lowered as it is."""
    name = name_of(target)
    return name.split(".")[0] in (*_VIEWS, *_KERNELS) or numpy_op(name) is not None


@cache
def decompositions() -> dict[Any, Callable[..., Any]]:
    """Torch's own rules that turn an operation into core ones, for those the native engine does not know."""
    return {target: rule for target, rule in core_aten_decompositions().items() if not is_known(target)}


def functional(graph: torch.fx.GraphModule, tensors: Sequence[torch.Tensor]) -> torch.fx.GraphModule:
    """The same graph where it is functional and known, else traced again into one that is.

    Args:
        graph: of `make_fx`; called under its fake tensor mode.
        tensors: its inputs.
    """
    for _ in range(3):  # what a rule of torch turns an operation into may write in place again
        targets = list(_operations(graph))
        if not any(_is_mutable(t) or t in decompositions() for t in targets):
            break
        graph = make_fx(functionalize(graph, remove="mutations"), decomposition_table=decompositions())(*tensors)
    return graph


def _operations(graph: torch.fx.GraphModule) -> Iterator[Any]:
    for node in graph.graph.nodes:
        if node.op == "call_function":
            yield node.target


def _is_mutable(target: Any) -> bool:
    schema = getattr(target, "_schema", None)
    return schema is not None and bool(schema.is_mutable)
