"""What the lowering asks of a traced graph: views, readers, and which operations may become one."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from dq_deploy.errors import ModelError
from dq_deploy.native.program import views
from dq_deploy.native.program.program import View
from dq_deploy.native.trace.geometry import Geometry
from dq_deploy.numerics.geometry import NO_PADDING, Padding

aten = torch.ops.aten


MAX_OUTS = {aten.native_group_norm.default: 3, aten.native_layer_norm.default: 3, aten.gelu.default: 1}
"""Code outputs of each fused op."""

NOT_AS_THEY_LIE = (
    *("view_as_complex", "view_as_real", "view.dtype", "_conj", "_neg_view", "real", "imag"),
    *("resolve_conj", "resolve_neg"),
)
"""Operations that show the memory of what they read as other values than lie there; the program makes those."""


@dataclass(frozen=True, kw_only=True)
class ProductPlan:
    """What an integer product does behind its sum.

    Attributes:
        node: the layer.
        last: the operation whose value the product writes.
        row: added to every pixel, [B, N, 1, 1].
        residual: added last, shaped as the output.
        strides: how the value of `last` lies in the product's memory.
        absorbed: operations between the two, and `last`.
        codes: of each part.
    """

    node: Node
    last: Node
    strides: tuple[int, ...]
    row: Node | None = None
    residual: Node | None = None
    absorbed: tuple[Node, ...] = ()
    codes: tuple[View, ...] = ()


@dataclass(frozen=True, kw_only=True)
class RmsNorm:
    """1 / sqrt(mean(x^2) + eps) over the last axis.

    Attributes:
        last: the operation that gives it.
        absorbed: the operations from the square to `last`.
        eps: is added to the mean.
    """

    last: Node
    absorbed: tuple[Node, ...]
    eps: float


def rms_of(square: Node) -> RmsNorm | None:
    """The RMS norm that begins with a square, or None."""
    mean = only_user(square, aten.mean.dim)
    axes = [] if mean is None else [axis % square.meta["val"].ndim for axis in mean.args[1]]
    if mean is None or axes != [square.meta["val"].ndim - 1] or mean.args[2:] != (True,) or mean.kwargs:
        return None
    added = only_user(mean, aten.add.Tensor) or only_user(mean, aten.add.Scalar)
    if added is None or len(added.args) != 2 or added.kwargs or isinstance(added.args[1], Node):
        return None
    last = only_user(added, aten.rsqrt.default)
    return None if last is None else RmsNorm(last=last, absorbed=(square, mean, added, last), eps=float(added.args[1]))


def value_of(graph: torch.fx.GraphModule, node: Node) -> torch.Tensor:
    """Shape and type of a node's value."""
    return node.meta["val"] if "val" in node.meta else getattr(graph, node.target)


def _storage(value: Any) -> Any:
    return value.untyped_storage()._cdata if isinstance(value, torch.Tensor) else None


def viewed(node: Node) -> Node | None:
    """The input whose memory a node's value shares, or None where it has its own."""
    value = node.meta.get("val")
    name = str(node.target).removeprefix("aten.")
    if not isinstance(value, torch.Tensor) or name in NOT_AS_THEY_LIE or name.split(".")[0] in NOT_AS_THEY_LIE:
        return None
    if node.target is operator.getitem:
        source = node.args[0]
        base = source.all_input_nodes[0] if source.all_input_nodes else None
        shared = base is not None and _storage(_meta(base)) == _storage(value)
        return base if shared else None
    for given in node.all_input_nodes:
        if _storage(_meta(given)) == _storage(value):
            return given
    return None


def _meta(node: Node) -> Any:
    if "val" in node.meta:
        return node.meta["val"]
    owner = node.graph.owning_module
    return getattr(owner, node.target) if node.op == "get_attr" else None


def origin(node: Node) -> Node:
    """The operation that made the memory a value lies in."""
    while (base := viewed(node)) is not None:
        node = base
    return node


def only_user(node: Node, target: Any) -> Node | None:
    """The one operation that reads a value, where it is `target`."""
    users = list(node.users)
    return users[0] if len(users) == 1 and users[0].target is target else None


def first_result(node: Node) -> Node:
    """The first value of an operation with several; the others must not be read."""
    results = [user for user in node.users if user.target is operator.getitem]
    used = [r for r in results if r.args[1] != 0 and r.users]
    if used or len(results) != len(node.users):
        raise ModelError(f"operation {node.target} has further results that are read, expected the first alone")
    return next(r for r in results if r.args[1] == 0)


def readers(node: Node) -> list[Node]:
    """Operations that read a value, through its views too; a view nobody reads counts as none."""
    found: list[Node] = []
    for user in node.users:
        if user.op == "call_function" and (viewed(user) is not None or _is_taken_pad(user)):
            found += readers(user)
        else:
            found.append(user)
    return found


def _is_taken_pad(node: Node) -> bool:
    return node.target is aten.constant_pad_nd.default and padded_for_layer(node)


def padded_for_layer(pad: Node) -> bool:
    """Whether zeros around an image are read by one convolution alone, which pads by itself."""
    users, widths = list(pad.users), list(pad.args[1])
    layer = torch.ops.dq_native.integer_layer.default
    zeros = len(pad.args) < 3 or pad.args[2] == 0
    alone = len(users) == 1 and users[0].target is layer and bool(users[0].args[3])
    return alone and zeros and len(widths) == 4 and min(widths) >= 0


def unpadded(node: Node) -> tuple[Node, Padding]:
    """What an integer layer reads, and the zeros put around it on the way."""
    x = node.args[0]
    if x.target is aten.constant_pad_nd.default and padded_for_layer(x):
        left, right, top, bottom = x.args[1]  # torch begins with the last axis
        return x.args[0], (top, left, bottom, right)
    return x, NO_PADDING


def product_sizes(node: Node, layer: Geometry) -> dict[str, Any]:
    """Sizes of an integer product."""
    x, y = unpadded(node)[0].meta["val"], node.meta["val"]
    if layer.window is None:
        return {"rows": x.numel() // x.shape[0] // x.shape[-1], "batch": x.shape[0]}
    return {"batch": x.shape[0], "in_size": list(x.shape[2:]), "out_size": list(y.shape[2:])}


def _is_add(node: Node) -> bool:
    two = len(node.args) == 2 and all(isinstance(a, Node) for a in node.args) and node.args[0] is not node.args[1]
    return node.target is aten.add.Tensor and two and node.kwargs.get("alpha", 1) == 1


def _is_unity(node: Node) -> bool:
    scaled = node.target in (aten.div.Tensor, aten.mul.Tensor, aten.div.Scalar, aten.mul.Scalar)
    return scaled and not isinstance(node.args[1], Node) and float(node.args[1]) == 1.0


def _is_row(value: torch.Tensor, out: torch.Tensor) -> bool:
    """[B, N, 1, 1] beside [B, N, H, W]."""
    return out.ndim == 4 and tuple(value.shape) == (*out.shape[:2], 1, 1) and out.shape[2] * out.shape[3] > 1


def plan_product(node: Node, taken: set[Node], strides_of: Callable[[Node], tuple[int, ...]]) -> ProductPlan:
    """The operations behind an integer layer that its product can do itself.

    Args:
        node: the layer.
        taken: operations that another product does.
        strides_of: how a value lies in the program.
    """
    out = node.meta["val"]
    lies = tuple(out.stride())
    last, current, end = node, node, lies
    row = residual = None
    copied = False  # behind a copy torch's strides say nothing of views any more
    between: list[Node] = []
    absorbed: list[Node] = []
    while len(current.users) == 1:
        user = next(iter(current.users))
        value = user.meta.get("val")
        if user in taken or not isinstance(value, torch.Tensor) or value.numel() != out.numel():
            break
        if user.target is aten.clone.default:
            copied = True
            between.append(user)
            current = user
            continue
        if viewed(user) is current:
            if copied or value.storage_offset():
                break
            lies = tuple(value.stride())
            between.append(user)
            current = user
            continue
        if _is_add(user) and residual is None:
            other = user.args[0] if user.args[1] is current else user.args[1]
            added, seen = _meta(other), current.meta["val"]
            if viewed_from(other, node):
                break
            if added.dtype != torch.float32 or isinstance(other.target, str):
                break
            image = bool(node.args[3])  # the features of a linear layer are not on axis 1
            if row is None and image and last is node and not between and _is_row(added, seen):
                row = other
            elif added.shape == seen.shape:
                if not views.lie_alike(strides_of(other), lies, seen.shape):
                    break
                residual = other
            else:
                break
        elif not _is_unity(user):
            break
        absorbed += [*between, user]
        between = []
        last, current, end = user, user, lies
    return ProductPlan(node=node, last=last, strides=end, row=row, residual=residual, absorbed=tuple(absorbed))


def viewed_from(node: Node, base: Node) -> bool:
    """Whether a value lies in the memory of `base`."""
    return origin(node) is base


def other_factor(product: Node, factor: Node) -> Node:
    """The other operand of a product."""
    return product.args[0] if product.args[1] is factor else product.args[1]


def geglu_product(gelu: Node) -> Node | None:
    """The product value * gelu(gate) where value and gate are the halves of one tensor's last axis."""
    product = only_user(gelu, aten.mul.Tensor)
    if product is None or not all(isinstance(a, Node) for a in product.args):
        return None
    value, gate = other_factor(product, gelu), gelu.args[0]
    if value is gelu or origin(value) is not origin(gate):
        return None
    a, b = value.meta["val"], gate.meta["val"]
    halves = a.shape == b.shape and a.stride() == b.stride() and a.stride(-1) == 1
    return product if halves and b.storage_offset() - a.storage_offset() == a.shape[-1] else None
