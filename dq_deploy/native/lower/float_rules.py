"""Float operations of a traced graph: one op of the kernels each, or a small one of the host."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from dq_deploy.errors import ModelError
from dq_deploy.native.lower import fusion
from dq_deploy.native.lower.values import MAX_AXES, Values
from dq_deploy.native.program.program import View
from dq_deploy.native.program.views import broadcast, channels_last_strides

aten = torch.ops.aten


_SHAPING = ("dtype", "layout", "device", "pin_memory", "memory_format", "non_blocking")
"""Arguments of torch that say how the result is held, which the program says too."""
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
    floats = all(fusion.value_of(values.graph, t).dtype == torch.float32 for t in tensors)
    plain = not node.kwargs and len(node.args) <= 2 and isinstance(node.args[0], Node)
    if value.dtype != torch.float32 or not floats or not plain or value.ndim > MAX_AXES:
        host(values, node)
        return
    if numbers and kind in ("mul", "div") and float(numbers[0]) == 1.0:
        values.set(node, values.view(tensors[0]))
        return
    if numbers and kind == "sub":
        kind, numbers = "add", [-float(numbers[0])]
    y = values.fresh(node)
    reads = {"a": broadcast(values.view(tensors[0]), tuple(value.shape))}
    if len(tensors) == 2:
        reads["b"] = broadcast(values.view(tensors[1]), tuple(value.shape))
    kind = f"{kind}_scalar" if numbers else kind
    values.emit("elementwise", reads, {"y": y}, function=kind, scalar=float(numbers[0]) if numbers else 0.0)
    values.views[node] = y


def copy(values: Values, node: Node) -> None:
    """A copy is the value itself: nothing is written twice; it may lie in another order than torch says."""
    values.set(node, values.view(node.args[0]))


def cat(values: Values, node: Node) -> None:
    """A concatenation: each piece is copied into its place, or written there at once, see `joins`."""
    value = node.meta["val"]
    pieces = [fusion.value_of(values.graph, piece) for piece in node.args[0]]
    if any(p.dtype != torch.float32 or p.ndim != value.ndim for p in pieces) or value.ndim > MAX_AXES:
        host(values, node)
        return
    axis = (node.args[1] if len(node.args) > 1 else 0) % value.ndim
    y = values.fresh(node)
    first = 0
    for piece in node.args[0]:
        a = values.view(piece)
        at = View(buffer=y.buffer, offset=first * y.strides[axis], sizes=a.sizes, strides=y.strides)
        values.emit("elementwise", {"a": a}, {"y": at}, function="copy", scalar=0.0, joined=value.shape[axis])
        first += a.sizes[axis]
    values.views[node] = y


def upsample(values: Values, node: Node) -> None:
    """Nearest upsampling by whole factors: a copy that reads each pixel several times."""
    if node.meta["val"].dtype != torch.float32:
        raise ModelError(f"nearest upsampling of {node.meta['val'].dtype}, expected float32")
    x, y = values.view(node.args[0]), values.fresh(node)
    b, c, h, w = x.sizes
    high, wide = y.sizes[2] // h, y.sizes[3] // w
    if (h * high, w * wide) != y.sizes[2:]:
        raise ModelError(f"nearest upsampling from {x.sizes} to {y.sizes}, expected whole factors")
    sb, sc, sh, sw = x.strides
    source = View(buffer=x.buffer, offset=x.offset, sizes=(b, h, high, w, wide, c), strides=(sb, sh, 0, sw, 0, sc))
    tb, tc, th, tw = y.strides
    target = View(buffer=y.buffer, offset=0, sizes=source.sizes, strides=(tb, th * high, th, tw * wide, tw, tc))
    values.emit("elementwise", {"a": source}, {"y": target}, function="copy", scalar=0.0)
    values.views[node] = y


def attention(values: Values, node: Node) -> None:
    """softmax(scale * q k^T) v; a mask is refused."""
    names = ("query", "key", "value", "dropout_p", "is_causal")
    given = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    if given.get("is_causal") or given.get("attn_mask") is not None:
        raise ModelError("attention has a mask, expected none; this model cannot run in the native engine")
    if given.get("dropout_p"):
        raise ModelError(f"attention has dropout {given['dropout_p']}, expected 0; this model is none for inference")
    result = fusion.first_result(node)
    values.done.add(result)
    if result.meta["val"].dtype != torch.float32:
        raise ModelError(f"attention of {result.meta['val'].dtype}, expected float32; keep the model in float32")
    parts = {"q": values.view(given["query"]), "k": values.view(given["key"]), "v": values.view(given["value"])}
    for role, at in parts.items():
        if at.strides[-1] != 1:
            parts[role] = values.copied(at, channels_last_strides(at.sizes, -1))
    b, heads, rows, dim = result.meta["val"].shape
    if dim > LARGEST_HEAD:
        raise ModelError(f"an attention head has {dim} features, expected at most {LARGEST_HEAD}")
    y = values.new_view((b, heads, rows, dim), tuple(result.meta["val"].stride()))
    scale = given.get("scale")
    values.emit("attention", parts, {"y": y}, scale=float(dim**-0.5 if scale is None else scale))
    values.views[result] = y


def float_conv2d(values: Values, node: Node) -> None:
    """A convolution that was not quantized."""
    x, weight, bias, stride, padding, dilation, transposed, _, groups = node.args
    if transposed or node.meta["val"].ndim != 4:
        raise ModelError("a transposed or one-dimensional convolution, expected 2-D; keep to diffusers' UNets")
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
    weight = fusion.viewed(transposed) if isinstance(transposed, Node) else None
    scaled = any(node.kwargs.get(key, 1) != 1 for key in ("alpha", "beta"))
    if scaled or weight is None or weight.op != "get_attr" or transposed.target is not aten.t.default:
        host(values, node)
        return
    reads = {"x": values.dense(x, -1), "weights": values.solid(weight)}
    if bias is not None:
        reads["bias"] = values.solid(bias)
    y = values.fresh(node)
    values.emit("float_linear", reads, {"y": y})
    values.views[node] = y


def host(values: Values, node: Node) -> None:
    """A small operation done by the array library, by its name in torch."""
    value = node.meta.get("val")
    name = str(node.target).removeprefix("aten.").split(".")[0]
    if not isinstance(value, torch.Tensor) or name not in fusion.HOST_OPS:
        raise ModelError(f"operation {node.target} is not known to the native engine; export the record instead")
    lost = [key for key in node.kwargs if key not in (*_SHAPING, *fusion.HOST_KWARGS.get(name, ()))]
    shrunk = name == "constant_pad_nd" and min(node.args[1]) < 0
    if lost or shrunk:
        given = f"{lost[0]}={node.kwargs[lost[0]]}" if lost else f"padding {node.args[1]}"
        raise ModelError(
            f"operation {node.target} with {given} is not known to the native engine; export the record instead"
        )
    reads: dict[str, View] = {}

    def plain(argument: Any) -> Any:
        if isinstance(argument, Node):
            role = f"x{len(reads)}"
            reads[role] = values.view(argument)
            return {"read": role}
        if isinstance(argument, (list, tuple)):
            return [plain(entry) for entry in argument]
        if isinstance(argument, torch.dtype):
            return {"dtype": str(argument).removeprefix("torch.")}
        return argument if isinstance(argument, (int, float, bool, str, type(None))) else str(argument)

    arguments = plain(node.args)
    named = {k: plain(v) for k, v in node.kwargs.items() if k in fusion.HOST_KWARGS.get(name, ())}
    y = values.fresh(node)
    values.emit("host", reads, {"y": y}, function=name, args=arguments, kwargs=named)
    values.views[node] = y
