"""Float operations of a traced graph: one op of the kernels each, or a small one of the host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.fx import Node

from dq_deploy.errors import ModelError
from dq_deploy.native.lower import fusion
from dq_deploy.native.lower.host_rules import host
from dq_deploy.native.lower.values import MAX_AXES, Values
from dq_deploy.native.program.program import View
from dq_deploy.native.program.views import broadcast, channels_last_strides

aten = torch.ops.aten


LARGEST_HEAD = 16384
"""Features of an attention head that fit the scratch of a thread."""
UNARY = {
    aten.silu.default: "silu",
    aten.sigmoid.default: "sigmoid",
    aten.tanh.default: "tanh",
    aten.relu.default: "relu",
}
BINARY = {
    aten.add.Tensor: "add",
    aten.sub.Tensor: "sub",
    aten.mul.Tensor: "mul",
    aten.div.Tensor: "div",
    aten.add.Scalar: "add",
    aten.mul.Scalar: "mul",
    aten.div.Scalar: "div",
}


def elementwise(values: Values, node: Node) -> None:
    """Arithmetic of floats with broadcasting; anything else of that name is the host's."""
    kind = UNARY.get(node.target) or BINARY[node.target]
    value = node.meta["val"]
    numbers = [a for a in node.args if not isinstance(a, Node)]
    tensors = [a for a in node.args if isinstance(a, Node)]
    plain = not node.kwargs and len(node.args) <= 2 and isinstance(node.args[0], Node)
    if not plain or not all_float32(values, node) or value.ndim > MAX_AXES:
        host(values, node)
        return
    if numbers and kind in ("mul", "div") and float(numbers[0]) == 1.0:
        values.set(node, values.view(tensors[0]))
        return
    if numbers and kind == "sub":
        kind, numbers = "add", [-float(numbers[0])]
    at = [broadcast(values.view(tensor), tuple(value.shape)) for tensor in tensors]
    _emit(values, node, f"{kind}_scalar" if numbers else kind, at, float(numbers[0]) if numbers else 0.0)


def _emit(values: Values, node: Node, function: str, at: Sequence[View], scalar: float = 0.0) -> None:
    y = values.fresh_like(node, at)
    values.emit("elementwise", dict(zip("ab", at, strict=False)), {"y": y}, function=function, scalar=scalar)
    values.views[node] = y


def negative(values: Values, node: Node) -> None:
    """-x is x times -1."""
    _scaled(values, node, [("mul_scalar", -1.0)])


def reversed_difference(values: Values, node: Node) -> None:
    """Number - x is x times -1, plus the number."""
    if len(node.args) != 2 or isinstance(node.args[1], Node) or node.kwargs:
        host(values, node)
        return
    _scaled(values, node, [("mul_scalar", -1.0), ("add_scalar", float(node.args[1]))])


def _scaled(values: Values, node: Node, steps: Sequence[tuple[str, float]]) -> None:
    if not all_float32(values, node) or node.meta["val"].ndim > MAX_AXES:
        host(values, node)
        return
    at = values.view(node.args[0])
    for function, scalar in steps:
        _emit(values, node, function, [at], scalar)
        at = values.views[node]


def power(values: Values, node: Node) -> None:
    """A square is a product; where it begins a RMS norm, what the norm multiplies by is one op of the host."""
    if node.args[1] != 2 or not all_float32(values, node) or node.meta["val"].ndim > MAX_AXES:
        host(values, node)
        return
    norm = fusion.rms_of(node)
    if norm is None:
        at = values.view(node.args[0])
        _emit(values, node, "mul", [at, at])
        return
    values.done.update(norm.absorbed)
    y = values.fresh(norm.last)
    given = {"function": "inverse_rms", "args": [{"read": "x0"}, norm.eps], "kwargs": {}, "compute": "float32"}
    values.emit("host", {"x0": values.view(node.args[0])}, {"y": y}, **given)
    values.views[norm.last] = y


def all_float32(values: Values, node: Node) -> bool:
    """Whether an operation reads and makes float32 alone, which the kernels know."""
    seen = [fusion.value_of(values.graph, given) for given in node.all_input_nodes]
    made = node.meta["val"][0] if isinstance(node.meta["val"], (tuple, list)) else node.meta["val"]
    return all(value.dtype == torch.float32 for value in (*seen, made))


def copy(values: Values, node: Node) -> None:
    """A copy is the value itself: nothing is written twice; it may lie in another order than torch says."""
    source, value = fusion.value_of(values.graph, node.args[0]), node.meta["val"]
    if source.dtype == value.dtype and source.shape == value.shape:
        values.set(node, values.view(node.args[0]))
    else:
        host(values, node)


def written(values: Values, node: Node) -> None:
    """A value written over another of the same size is the value."""
    source, value = fusion.value_of(values.graph, node.args[1]), node.meta["val"]
    if source.dtype == value.dtype and source.shape == value.shape:
        values.set(node, values.view(node.args[1]))
    else:
        host(values, node)


def cat(values: Values, node: Node) -> None:
    """A concatenation: each piece is copied into its place, or written there at once, see `joins`."""
    value = node.meta["val"]
    pieces = [fusion.value_of(values.graph, piece) for piece in node.args[0]]
    if not all_float32(values, node) or any(p.ndim != value.ndim for p in pieces) or value.ndim > MAX_AXES:
        host(values, node)
        return
    axis = (node.args[1] if len(node.args) > 1 else 0) % value.ndim
    _join(values, node, [values.view(piece) for piece in node.args[0]], axis)


def stack(values: Values, node: Node) -> None:
    """A concatenation along a new axis."""
    value = node.meta["val"]
    if not all_float32(values, node) or value.ndim > MAX_AXES:
        host(values, node)
        return
    axis = (node.args[1] if len(node.args) > 1 else 0) % value.ndim
    at = [values.view(piece) for piece in node.args[0]]
    _join(values, node, [_with_axis(piece, axis) for piece in at], axis)


def _with_axis(at: View, axis: int) -> View:
    sizes, strides = ((*v[:axis], one, *v[axis:]) for v, one in ((at.sizes, 1), (at.strides, 0)))
    return View(buffer=at.buffer, offset=at.offset, sizes=sizes, strides=strides)


def _join(values: Values, node: Node, pieces: Sequence[View], axis: int) -> None:
    y = values.fresh_like(node, pieces) if node.target is aten.cat.default else values.fresh(node)
    first = 0
    for a in pieces:
        at = View(buffer=y.buffer, offset=first * y.strides[axis], sizes=a.sizes, strides=y.strides)
        values.emit("elementwise", {"a": a}, {"y": at}, function="copy", scalar=0.0, joined=y.sizes[axis])
        first += a.sizes[axis]
    values.views[node] = y


def average(values: Values, node: Node) -> None:
    """Means of windows side by side: sums of strided views; any other pool is the host's."""
    kernel = list(node.args[1])
    kernel = kernel * 2 if len(kernel) == 1 else kernel
    stride = list(node.args[2]) if len(node.args) > 2 and node.args[2] else kernel
    h, w = fusion.value_of(values.graph, node.args[0]).shape[-2:]
    beside = stride in (kernel, kernel[:1]) and len(node.args) <= 3 and not node.kwargs
    even = h % kernel[0] == 0 and w % kernel[1] == 0
    if not (beside and even) or not all_float32(values, node) or node.meta["val"].ndim != 4 or kernel == [1, 1]:
        host(values, node)
        return
    x, y = values.view(node.args[0]), values.fresh(node)
    (sb, sc, sh, sw), (high, wide) = x.strides, kernel
    seen = [
        View(
            buffer=x.buffer,
            offset=x.offset + row * sh + column * sw,
            sizes=y.sizes,
            strides=(sb, sc, sh * high, sw * wide),
        )
        for row in range(high)
        for column in range(wide)
    ]
    values.emit("elementwise", {"a": seen[0], "b": seen[1]}, {"y": y}, function="add", scalar=0.0)
    for more in seen[2:]:
        values.emit("elementwise", {"a": y, "b": more}, {"y": y}, function="add", scalar=0.0)
    values.emit("elementwise", {"a": y}, {"y": y}, function="div_scalar", scalar=float(high * wide))
    values.views[node] = y


def pad(values: Values, node: Node) -> None:
    """A number around a value: written everywhere, then the value over it."""
    value, widths = node.meta["val"], list(node.args[1])
    if min(widths) < 0 or not all_float32(values, node) or value.ndim > MAX_AXES:
        host(values, node)
        return
    x, y = values.view(node.args[0]), values.fresh(node)
    number = values.number(node, float(node.args[2]) if len(node.args) > 2 else 0.0)
    before = [0] * (value.ndim - len(widths) // 2) + widths[-2::-2]  # torch begins with the last axis
    offset = sum(width * stride for width, stride in zip(before, y.strides, strict=True))
    inside = View(buffer=y.buffer, offset=offset, sizes=x.sizes, strides=y.strides)
    values.emit("elementwise", {"a": broadcast(number, y.sizes)}, {"y": y}, function="copy", scalar=0.0)
    values.emit("elementwise", {"a": x}, {"y": inside}, function="copy", scalar=0.0)
    values.views[node] = y


def upsample(values: Values, node: Node) -> None:
    """Nearest upsampling by whole factors: a copy that reads each pixel several times; others are the host's."""
    sizes, scales = node.meta["val"].shape, [*node.args[2:], None, None][:2]
    h, w = fusion.value_of(values.graph, node.args[0]).shape[2:]
    high, wide = sizes[2] // h, sizes[3] // w
    whole = (h * high, w * wide) == tuple(sizes[2:]) and scales[0] in (None, high) and scales[1] in (None, wide)
    if not whole or not all_float32(values, node):
        host(values, node)
        return
    x, y = values.view(node.args[0]), values.fresh(node)
    b, c = x.sizes[:2]
    sb, sc, sh, sw = x.strides
    source = View(buffer=x.buffer, offset=x.offset, sizes=(b, h, high, w, wide, c), strides=(sb, sh, 0, sw, 0, sc))
    tb, tc, th, tw = y.strides
    target = View(buffer=y.buffer, offset=0, sizes=source.sizes, strides=(tb, th * high, th, tw * wide, tw, tc))
    values.emit("elementwise", {"a": source}, {"y": target}, function="copy", scalar=0.0)
    values.views[node] = y


def attention(values: Values, node: Node) -> None:
    """softmax(scale * q k^T) v; with a mask it is the host's."""
    names = ("query", "key", "value", "dropout_p", "is_causal")
    given = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    if given.get("dropout_p"):
        raise ModelError(f"attention has dropout {given['dropout_p']}, expected 0; this model is none for inference")
    result = fusion.first_result(node)
    dim = result.meta["val"].shape[-1]
    masked = given.get("is_causal") or given.get("attn_mask") is not None
    even = given["value"].meta["val"].shape[-1] == given["query"].meta["val"].shape[-1]
    if masked or not even or not all_float32(values, node) or dim > LARGEST_HEAD:
        host(values, node)
        return
    values.done.add(result)
    scale = given.get("scale")
    tensors = {"q": given["query"], "k": given["key"], "v": given["value"]}
    _emit_attention(values, result, tensors, scale=float(dim**-0.5 if scale is None else scale))


def named_attention(values: Values, node: Node) -> None:
    """Attention that has quantizers, with the path of its module: which of the two runs is decided later."""
    q, k, v, scale, name = node.args
    _emit_attention(values, node, {"q": q, "k": k, "v": v}, scale=float(scale), name=str(name))


def _emit_attention(values: Values, result: Node, tensors: Mapping[str, Any], **attributes: Any) -> None:
    """The op of one attention, without a mask."""
    b, heads, rows, dim = result.meta["val"].shape
    parts = {role: values.view(tensor) for role, tensor in tensors.items()}
    for role, at in parts.items():
        if at.sizes[1] != heads:
            at = _shared_heads(values, at, heads)
        parts[role] = at if at.strides[-1] == 1 else values.copied(at, channels_last_strides(at.sizes, -1))
    y = values.new_view((b, heads, rows, dim), tuple(result.meta["val"].stride()))
    values.emit("attention", parts, {"y": y}, **attributes)
    values.views[result] = y


def _shared_heads(values: Values, at: View, heads: int) -> View:
    """Each head of keys or values as often as heads of the query read it."""
    (b, own, rows, dim), times = at.sizes, heads // at.sizes[1]
    sb, sh, sr, sd = at.strides
    seen = View(buffer=at.buffer, offset=at.offset, sizes=(b, own, times, rows, dim), strides=(sb, sh, 0, sr, sd))
    y = values.copied(seen, channels_last_strides(seen.sizes, -1))
    return View(buffer=y.buffer, offset=0, sizes=(b, heads, rows, dim), strides=(y.strides[0], *y.strides[2:]))


def float_conv2d(values: Values, node: Node) -> None:
    """A convolution that was not quantized; one that is no 2-D one is the host's."""
    x, weight, bias, stride, padding, dilation, transposed, _, groups = node.args
    if transposed or node.meta["val"].ndim != 4 or not all_float32(values, node):
        host(values, node)
        return
    reads = {"x": values.dense(x, 1), "weights": values.solid(weight)}
    if bias is not None:
        reads["bias"] = values.solid(bias)
    y = values.fresh(node)
    values.emit(
        "float_conv2d",
        reads,
        {"y": y},
        stride=list(stride),
        padding=list(padding),
        dilation=list(dilation),
        groups=int(groups),
    )
    values.views[node] = y


def float_linear(values: Values, node: Node) -> None:
    """A linear layer that was not quantized; a product of two computed tensors is the host's."""
    bias, x, transposed = node.args if node.target is aten.addmm.default else (None, *node.args)
    weight = _weight_of(transposed)
    scaled = any(node.kwargs.get(key, 1) != 1 for key in ("alpha", "beta"))
    wide = bias is not None and fusion.value_of(values.graph, bias).ndim != 1
    if scaled or wide or weight is None or not all_float32(values, node):
        host(values, node)
        return
    reads = {"x": values.dense(x, -1), "weights": values.solid(weight)}
    if bias is not None:
        reads["bias"] = values.solid(bias)
    y = values.fresh(node)
    values.emit("float_linear", reads, {"y": y})
    values.views[node] = y


def _weight_of(transposed: Any) -> Node | None:
    """The parameter of a linear layer whose transpose is multiplied, the same for every sample."""
    weight = fusion.origin(transposed) if isinstance(transposed, Node) else None
    if weight is None or weight.op != "get_attr" or weight.meta["val"].ndim != 2:
        return None
    own, seen = weight.meta["val"], transposed.meta["val"]
    turned = seen.shape[-2:] == own.shape[::-1] and seen.stride()[-2:] == own.stride()[::-1]
    repeated = all(stride == 0 or size == 1 for size, stride in zip(seen.shape[:-2], seen.stride()[:-2], strict=True))
    return weight if turned and repeated and seen.storage_offset() == own.storage_offset() else None
