"""A traced graph and what its attributes are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from dq_deploy.errors import ModelError


@dataclass(frozen=True, kw_only=True)
class TracedGraph:
    """One call of a module for one batch.

    Attributes:
        graph: each node with its shape and strides under `meta["val"]`; no operation writes in place.
        names: state-dict key of each attribute of the graph that has one.
        constants: values of the attributes that the module computed for itself: no checkpoint holds them.
    """

    graph: torch.fx.GraphModule
    names: Mapping[str, str]
    constants: Mapping[str, torch.Tensor]


def batch_dependent(first: TracedGraph, second: TracedGraph) -> frozenset[str]:
    """Names of the nodes whose shape or arguments differ for another batch: none of them is a constant.

    Raises:
        ModelError: the two are not the same operations in the same order.
    """
    mine, others = list(first.graph.graph.nodes), list(second.graph.graph.nodes)
    for a, b in zip(mine, others, strict=False):
        if a.op != b.op or (a.op == "call_function" and a.target is not b.target):
            raise ModelError(
                f"the denoiser does {a.target} for one batch and {b.target} for another in the same place, expected "
                "the same operations for every batch"
            )
    if len(mine) != len(others):
        raise ModelError(
            f"the denoiser does {len(mine)} operations for one batch and {len(others)} for another, expected the same "
            "for every batch"
        )
    return frozenset(a.name for a, b in zip(mine, others, strict=True) if _differ(a, b, first, second))


def _differ(a: torch.fx.Node, b: torch.fx.Node, first: TracedGraph, second: TracedGraph) -> bool:
    if a.op == "get_attr":
        mine, other = first.constants.get(str(a.target)), second.constants.get(str(b.target))
        return mine is not None and other is not None and not torch.equal(mine, other)
    one, two = a.meta.get("val"), b.meta.get("val")
    shapes = isinstance(one, torch.Tensor) and isinstance(two, torch.Tensor) and one.shape != two.shape
    return shapes or str((a.args, a.kwargs)) != str((b.args, b.kwargs))
