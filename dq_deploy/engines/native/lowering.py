"""A traced graph -> the program of one step.

What becomes one op:

- group norm, with the SiLU behind it, and the codes of every integer layer that reads it;
- layer norm with the codes of its readers; value * gelu(gate) with the codes of its reader;
- an integer product with its scales, bias, a row added to every pixel (the time embedding) and a residual;
- quantizers of the same tensor that give the same codes are one.

Everything else is an op of its own; what no kernel does is a `host` op.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from dq_deploy.engines.native import fusion, views
from dq_deploy.engines.native.geometry import Geometry
from dq_deploy.engines.native.program import Buffer, Op, Program, View, without_unused_buffers
from dq_deploy.errors import ModelError

aten = torch.ops.aten
Node = torch.fx.Node

CODE_PITCH = 16
"""Codes of a pixel fill a multiple of this many bytes, the widest load of a GPU."""

_UNARY = {
    aten.silu.default: "silu",
    aten.sigmoid.default: "sigmoid",
    aten.tanh.default: "tanh",
    aten.relu.default: "relu",
}
_BINARY = {
    aten.add.Tensor: "add",
    aten.sub.Tensor: "sub",
    aten.mul.Tensor: "mul",
    aten.div.Tensor: "div",
    aten.add.Scalar: "add",
    aten.mul.Scalar: "mul",
    aten.div.Scalar: "div",
}
_SPLITS = (aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default, aten.unbind.int)
_ATTENTION = (aten._scaled_dot_product_flash_attention_for_cpu.default,)


class Lowering:
    """Builds the program node by node.

    Attributes:
        views: where the value of each node lies.
    """

    def __init__(self, graph: torch.fx.GraphModule, keys: Mapping[str, str], layers: Mapping[str, Geometry]) -> None:
        self.graph, self.keys, self.layers = graph, keys, layers
        self.views: dict[Node, View] = {}
        self.buffers: list[Buffer] = []
        self.ops: list[Op] = []
        self.constants: dict[str, dict[str, Any]] = {}
        self._folded: dict[Node, torch.Tensor] = {}
        self._same: dict[tuple[Any, ...], Node] = {}
        self._codes: dict[tuple[Any, ...], View] = {}
        self._done: set[Node] = set()
        self._laid: set[Node] = set()  # values that lie in another order than torch gave them
        self._products: dict[Node, fusion.ProductPlan] = {}
        self._rules: dict[Any, Callable[[Node], None]] = {
            torch.ops.dq_native.integer_layer.default: self._integer_layer,
            aten.native_group_norm.default: self._group_norm,
            aten.native_layer_norm.default: self._layer_norm,
            aten.gelu.default: self._gelu,
            aten.cat.default: self._cat,
            aten.clone.default: self._copy,
            aten.upsample_nearest2d.default: self._upsample,
            aten.convolution.default: self._float_conv2d,
            aten.addmm.default: self._float_linear,
            aten.mm.default: self._float_linear,
            **{op: self._attention for op in _ATTENTION},
            **{op: self._elementwise for op in (*_UNARY, *_BINARY)},
        }

    def program(self, input_names: Sequence[str], output_name: str) -> Program:
        """Lower the whole graph.

        Raises:
            ModelError: an operation that the native engine does not know.
        """
        nodes = list(self.graph.graph.nodes)
        inputs = [node for node in nodes if node.op == "placeholder"]
        for node in inputs:
            self.views[node] = self._fresh(node)
        for node in nodes:
            if node.op == "call_function" and node not in self._done:
                self._visit(node)
        output = next(node for node in nodes if node.op == "output").args[0]
        return without_unused_buffers(
            Program(
                buffers=tuple(self.buffers),
                inputs={name: self.views[node] for name, node in zip(input_names, inputs, strict=True)},
                outputs={output_name: self.view(output)},
                ops=tuple(self.ops),
                constants=self.constants,
            )
        )

    # where values lie

    def _fresh(self, node: Node) -> View:
        """A new buffer for a value: images channels last, everything else as torch lays it out."""
        value = node.meta["val"]
        shape, strides = tuple(value.shape), tuple(value.stride())
        if value.ndim == 4:
            strides = views.channels_last_strides(shape, 1)
            if strides != tuple(value.stride()):
                self._laid.add(node)
        return self.new_view(shape, strides, str(value.dtype).removeprefix("torch."))

    def new_view(self, sizes: Sequence[int], strides: Sequence[int], dtype: str = "float32") -> View:
        """A new buffer that holds these sizes at these strides."""
        extent = 1 + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
        self.buffers.append(Buffer(elements=extent, dtype=dtype))
        return View(buffer=len(self.buffers) - 1, offset=0, sizes=tuple(sizes), strides=tuple(strides))

    def view(self, node: Node) -> View:
        """Where the value of a node lies; parameters and folded values are named."""
        if node in self.views:
            return self.views[node]
        value = node.meta["val"] if "val" in node.meta else getattr(self.graph, node.target)
        if node.op == "get_attr":
            name = self.keys[node.target]
            if not name:
                raise ModelError(f"the denoiser holds a tensor {node.target} without a name; expected parameters alone")
        elif node in self._folded:
            name = f"folded.{node.name}"
            folded = self._folded[node].contiguous()
            self.constants[name] = {
                "dtype": str(folded.dtype).removeprefix("torch."),
                "shape": list(folded.shape),
                "values": folded.reshape(-1).tolist(),
            }
        else:
            raise ModelError(f"operation {node.target} is used before it was lowered")
        self.views[node] = View(buffer=name, offset=0, sizes=tuple(value.shape), strides=tuple(value.stride()))
        return self.views[node]

    def emit(self, kind: str, reads: Mapping[str, View], writes: Mapping[str, View], **attributes: Any) -> None:
        """Append an op."""
        self.ops.append(Op(kind=kind, reads=dict(reads), writes=dict(writes), attributes=attributes))

    # one node

    def _visit(self, node: Node) -> None:
        if not node.users:
            return
        if node in self._products:
            self._product(self._products[node])
            return
        if self._view_of(node) or self._fold(node) or self._repeats(node):
            return
        if node.target in _SPLITS:  # its results are views of its input
            return
        if node.target is aten.constant_pad_nd.default and fusion.padded_for_layer(node):
            return
        rule = self._rules.get(node.target, self._host)
        rule(node)

    def _view_of(self, node: Node) -> bool:
        """Whether a node's value is a view of one of its inputs; then it lies where that lies."""
        base = fusion.viewed(node)
        if base is None:
            return False
        if base in self._folded:
            return False
        if base.op != "get_attr" and base not in self.views:
            return base in self._done
        at, value, origin = self.view(base), node.meta["val"], base.meta.get("val")
        if origin is None:
            origin = getattr(self.graph, base.target)
        moved = int(value.storage_offset()) - int(origin.storage_offset())
        told = View(buffer=at.buffer, offset=moved, sizes=tuple(value.shape), strides=tuple(value.stride()))
        if base in self._laid:
            seen = views.restrided(told, origin.stride(), at.strides, at.sizes)
            if seen is None:  # it splits what lies in another order here: copy to torch's order
                self._laid.remove(base)
                self.views[base] = self.new_view(tuple(origin.shape), tuple(origin.stride()))
                self.emit("elementwise", {"a": at}, {"y": self.views[base]}, function="copy", scalar=0.0)
                return self._view_of(node)
            self.views[node] = replace(seen, offset=at.offset)
            self._laid.add(node)
            return True
        self.views[node] = replace(told, offset=at.offset + moved)
        return True

    def _fold(self, node: Node) -> bool:
        """Compute now what depends on no input, no parameter and no batch."""
        if node.target in (aten.ones.default, aten.zeros.default, aten.full.default):
            return False
        if any(given not in self._folded for given in node.all_input_nodes):
            return False
        if not isinstance(node.meta.get("val"), torch.Tensor) or node.target is operator.getitem:
            return False
        arguments = torch.fx.node.map_arg((node.args, node.kwargs), lambda n: self._folded[n])
        self._folded[node] = node.target(*arguments[0], **arguments[1])
        return True

    def _repeats(self, node: Node) -> bool:
        """Whether the same was done to the same values before."""
        if node.target not in (*_UNARY, aten.native_group_norm.default, aten.native_layer_norm.default):
            return False
        key = (node.target, str(node.args), str(node.kwargs))
        first = self._same.setdefault(key, node)
        if first is node or first not in self.views:
            return False
        self.views[node] = self.views[first]
        return True

    # integer layers

    def _integer_layer(self, node: Node) -> None:
        name = str(node.args[1])
        codes = self._codes_of(node)
        plan = fusion.plan_product(node, {*self._done, *self._products}, self._strides_of)
        self._done.update(n for n in plan.absorbed if n is not plan.last)
        self._products[plan.last] = fusion.ProductPlan(
            node=node,
            last=plan.last,
            row=plan.row,
            residual=plan.residual,
            absorbed=plan.absorbed,
            strides=plan.strides,
            codes=tuple(codes),
        )
        if plan.last is node:
            self._product(self._products[node])
        assert name in self.layers

    def _strides_of(self, node: Node) -> tuple[int, ...]:
        """How a value lies, or will lie where it is not lowered yet."""
        return self.views[node].strides if node in self.views else tuple(node.meta["val"].stride())

    def _codes_of(self, node: Node) -> list[View]:
        """Codes of each part of a layer's input, quantized where nobody did it yet."""
        (x, _), name = fusion.unpadded(node), str(node.args[1])
        first, found = 0, []
        for part, channels in enumerate(self.layers[name].parts):
            key = self._codes_key(x, name, part, first)
            if key not in self._codes:
                axis = 1 if self.layers[name].kernel else -1
                source = views.rows_view(self.dense(x, axis), axis)
                self._codes[key] = self.new_codes(source, channels)
                out = {"layer": name, "part": part, "first": first, "channels": channels}
                self.emit("quantize", {"x": source}, {"codes0": self._codes[key]}, outs=[out])
            found.append(self._codes[key])
            first += channels
        return found

    def _codes_key(self, x: Node, name: str, part: int, first: int) -> tuple[Any, ...]:
        layer = self.layers[name]
        return (fusion.origin(x), first, layer.parts[part], layer.quantizers[part], tuple(layer.kernel) == ())

    def new_codes(self, rows: View, channels: int) -> View:
        """A buffer of codes for [batch, rows, channels]."""
        pitch = -(-channels // CODE_PITCH) * CODE_PITCH
        batch, count = rows.sizes[0], rows.sizes[1]
        view = self.new_view((batch, count, pitch), (count * pitch, pitch, 1), "uint8")
        return View(buffer=view.buffer, offset=0, sizes=(batch, count, channels), strides=view.strides)

    def dense(self, node: Node, axis: int) -> View:
        """The view of a value with adjacent channels, on `axis`, and evenly spaced pixels; copied if it is not so."""
        at = self.view(node)
        if views.has_even_rows(at, axis):
            return at
        value = node.meta["val"]
        order = views.channels_last_strides(tuple(value.shape), axis)
        copied = self.new_view(tuple(value.shape), order)
        self.emit("elementwise", {"a": at}, {"y": copied}, function="copy", scalar=0.0)
        return copied

    def _product(self, plan: fusion.ProductPlan) -> None:
        node, name = plan.node, str(plan.node.args[1])
        layer = self.layers[name]
        out = self._fresh(node)
        kind = "int_conv2d" if layer.kernel else "int_linear"
        _, extra = fusion.unpadded(node)
        geometry = fusion.product_sizes(node, layer)
        previous: View | None = None
        for part, codes in enumerate(plan.codes):
            last = part == len(plan.codes) - 1
            reads = {"codes": codes}
            if previous is not None:
                reads["previous"] = previous
            if last and plan.row is not None:
                reads["row"] = views.row_view(self.view(plan.row))
            if last and plan.residual is not None:
                reads["residual"] = views.same_memory(out, self.view(plan.residual))
            sizes = {**geometry, "padded": list(extra)}
            self.emit(kind, reads, {"y": out}, layer=name, part=part, final=last, **sizes)
            previous = out
        value = plan.last.meta["val"]
        self.views[plan.last] = View(buffer=out.buffer, offset=0, sizes=tuple(value.shape), strides=plan.strides)
        if plan.strides != tuple(value.stride()):
            self._laid.add(plan.last)

    # norms and activations

    def _coded(self, node: Node, result: Node, axis: int) -> tuple[list[dict[str, Any]], dict[str, View]]:
        """What a fused op writes for the readers of `result`, whose channels are on `axis`: outs, and views by role."""
        y = views.rows_view(self.virtual(result, axis), axis)
        readers = fusion.readers(result)
        layers = [r for r in readers if r.target is torch.ops.dq_native.integer_layer.default]
        wanted: dict[tuple[Any, ...], dict[str, Any]] = {}
        for reader in layers:
            first, name = 0, str(reader.args[1])
            x, _ = fusion.unpadded(reader)
            for part, channels in enumerate(self.layers[name].parts):
                key = self._codes_key(x, name, part, first)
                wanted.setdefault(key, {"layer": name, "part": part, "first": first, "channels": channels})
                first += channels
        if not layers or len(wanted) > fusion.MAX_OUTS[node.target] or not all(self._in_order(r, y) for r in layers):
            return [], {"y": y}
        writes = {"y": y} if len(layers) < len(readers) else {}
        for index, (key, out) in enumerate(wanted.items()):
            self._codes[key] = self.new_codes(y, out["channels"])
            writes[f"codes{index}"] = self._codes[key]
        return list(wanted.values()), writes

    def _in_order(self, layer: Node, y: View) -> bool:
        """Whether a layer reads the rows `y` as they are."""
        x, _ = fusion.unpadded(layer)
        chain = [x]
        while chain[-1] not in self.views:
            base = fusion.viewed(chain[-1])
            if base is None:
                return False
            chain.append(base)
        for node in reversed(chain[:-1]):
            self._view_of(node)
        axis = 1 if self.layers[str(layer.args[1])].kernel else -1
        return views.has_even_rows(self.views[x], axis) and views.rows_view(self.views[x], axis) == y

    def virtual(self, node: Node, axis: int) -> View:
        """A view, channels last, for a value that may never be written."""
        if node not in self.views:
            value = node.meta["val"]
            strides = views.channels_last_strides(tuple(value.shape), axis)
            self.views[node] = self.new_view(tuple(value.shape), strides)
            if strides != tuple(value.stride()):
                self._laid.add(node)
        return self.views[node]

    def _group_norm(self, node: Node) -> None:
        result = fusion.first_result(node)
        act = fusion.only_user(result, aten.silu.default)
        last = result if act is None else act
        self._done.update(n for n in (result, act) if n is not None)
        x = views.rows_view(self.dense(node.args[0], 1), 1)
        outs, writes = self._coded(node, last, 1)
        reads = {"x": x, **self._affine(node.args[1], node.args[2])}
        self.emit(
            "group_norm_silu_quantize",
            reads,
            writes,
            groups=int(node.args[6]),
            eps=float(node.args[7]),
            silu=act is not None,
            outs=outs,
        )

    def _affine(self, gamma: Node | None, beta: Node | None) -> dict[str, View]:
        return {name: self.view(n) for name, n in (("gamma", gamma), ("beta", beta)) if n is not None}

    def _layer_norm(self, node: Node) -> None:
        result = fusion.first_result(node)
        self._done.add(result)
        if len(node.args[1]) != 1:
            raise ModelError(f"layer norm spans {len(node.args[1])} axes, expected the last one")
        x = views.rows_view(self.dense(node.args[0], -1), -1)
        outs, writes = self._coded(node, result, -1)
        reads = {"x": x, **self._affine(node.args[2], node.args[3])}
        self.emit("layer_norm_quantize", reads, writes, eps=float(node.args[4]), outs=outs)

    def _gelu(self, node: Node) -> None:
        tanh = node.kwargs.get("approximate", "none") == "tanh"
        product = None if tanh else fusion.geglu_product(node)
        if product is None:
            y = self._fresh(node)
            reads = {"a": self.view(node.args[0])}
            self.emit("elementwise", reads, {"y": y}, function="gelu_tanh" if tanh else "gelu", scalar=0.0)
            self.views[node] = y
            return
        self._done.add(product)
        value, gate = fusion.other_factor(product, node), node.args[0]
        x = views.joined_halves(self.view(value), self.view(gate))
        outs, writes = self._coded(node, product, -1)
        self.emit("geglu_quantize", {"x": views.rows_view(x, -1)}, writes, outs=outs)

    # the rest

    def _elementwise(self, node: Node) -> None:
        kind = _UNARY.get(node.target) or _BINARY[node.target]
        value = node.meta["val"]
        numbers = [a for a in node.args if not isinstance(a, Node)]
        tensors = [a for a in node.args if isinstance(a, Node)]
        floats = all(fusion.value_of(self.graph, t).dtype == torch.float32 for t in tensors)
        plain = node.kwargs.get("alpha", 1) == 1 and isinstance(node.args[0], Node)
        if value.dtype != torch.float32 or not floats or not plain or value.ndim > 6:
            self._host(node)
            return
        if numbers and kind in ("mul", "div") and float(numbers[0]) == 1.0:
            self.views[node] = self.view(tensors[0])
            return
        if numbers and kind == "sub":
            kind, numbers = "add", [-float(numbers[0])]
        y = self._fresh(node)
        reads = {"a": views.broadcast(self.view(tensors[0]), tuple(value.shape))}
        if len(tensors) == 2:
            reads["b"] = views.broadcast(self.view(tensors[1]), tuple(value.shape))
        kind = f"{kind}_scalar" if numbers else kind
        self.emit("elementwise", reads, {"y": y}, function=kind, scalar=float(numbers[0]) if numbers else 0.0)
        self.views[node] = y

    def _copy(self, node: Node) -> None:
        """A copy is the value itself: nothing is written twice; it may lie in another order than torch says."""
        self.views[node] = self.view(node.args[0])
        if self.views[node].strides != tuple(node.meta["val"].stride()):
            self._laid.add(node)

    def _cat(self, node: Node) -> None:
        value = node.meta["val"]
        if value.dtype != torch.float32:
            self._host(node)
            return
        axis = (node.args[1] if len(node.args) > 1 else 0) % value.ndim
        y = self._fresh(node)
        first = 0
        for piece in node.args[0]:
            a = self.view(piece)
            at = View(buffer=y.buffer, offset=first * y.strides[axis], sizes=a.sizes, strides=y.strides)
            self.emit("elementwise", {"a": a}, {"y": at}, function="copy", scalar=0.0, joined=value.shape[axis])
            first += a.sizes[axis]
        self.views[node] = y

    def _upsample(self, node: Node) -> None:
        x, y = self.view(node.args[0]), self._fresh(node)
        b, c, h, w = x.sizes
        high, wide = y.sizes[2] // h, y.sizes[3] // w
        if (h * high, w * wide) != y.sizes[2:]:
            raise ModelError(f"nearest upsampling from {x.sizes} to {y.sizes}, expected whole factors")
        sb, sc, sh, sw = x.strides
        source = View(buffer=x.buffer, offset=x.offset, sizes=(b, h, high, w, wide, c), strides=(sb, sh, 0, sw, 0, sc))
        tb, tc, th, tw = y.strides
        target = View(buffer=y.buffer, offset=0, sizes=source.sizes, strides=(tb, th * high, th, tw * wide, tw, tc))
        self.emit("elementwise", {"a": source}, {"y": target}, function="copy", scalar=0.0)
        self.views[node] = y

    def _attention(self, node: Node) -> None:
        names = ("query", "key", "value", "dropout_p", "is_causal")
        given = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
        if given.get("is_causal") or given.get("attn_mask") is not None:
            raise ModelError("attention has a mask, expected none; this model cannot run in the native engine")
        result = fusion.first_result(node)
        self._done.add(result)
        views = {"q": self.view(given["query"]), "k": self.view(given["key"]), "v": self.view(given["value"])}
        for role, at in views.items():
            if at.strides[-1] != 1:
                raise ModelError(f"{role} of an attention has strides {at.strides}, expected adjacent features")
        # a row of all heads, so that what follows reads it without a copy
        b, heads, rows, dim = result.meta["val"].shape
        wanted = tuple(result.meta["val"].stride())
        y = self.new_view((b, heads, rows, dim), wanted)
        scale = given.get("scale")
        self.emit("attention", views, {"y": y}, scale=float(dim**-0.5 if scale is None else scale))
        self.views[result] = y

    def _float_conv2d(self, node: Node) -> None:
        x, weight, bias, stride, padding, dilation, transposed, _, groups = node.args
        if transposed or node.meta["val"].ndim != 4:
            raise ModelError("a transposed or one-dimensional convolution, expected 2-D; keep to diffusers' UNets")
        reads = {"x": self.dense(x, 1), "weights": self.view(weight)}
        if bias is not None:
            reads["bias"] = self.view(bias)
        y = self._fresh(node)
        self.emit(
            "float_conv2d",
            reads,
            {"y": y},
            stride=list(stride),
            padding=list(padding),
            dilation=list(dilation),
            groups=int(groups),
        )
        self.views[node] = y

    def _float_linear(self, node: Node) -> None:
        bias, x, transposed = node.args if node.target is aten.addmm.default else (None, *node.args)
        weight = fusion.viewed(transposed) if isinstance(transposed, Node) else None
        if weight is None or weight.op != "get_attr" or transposed.target is not aten.t.default:
            self._host(node)
            return
        reads = {"x": self.dense(x, -1), "weights": self.view(weight)}
        if bias is not None:
            reads["bias"] = self.view(bias)
        y = self._fresh(node)
        self.emit("float_linear", reads, {"y": y})
        self.views[node] = y

    def _host(self, node: Node) -> None:
        """A small operation done by the array library, by its name in torch."""
        value = node.meta.get("val")
        name = str(node.target).removeprefix("aten.").split(".")[0]
        if not isinstance(value, torch.Tensor) or name not in fusion.HOST_OPS:
            raise ModelError(f"operation {node.target} is not known to the native engine; export the record instead")
        reads: dict[str, View] = {}

        def plain(argument: Any) -> Any:
            if isinstance(argument, Node):
                role = f"x{len(reads)}"
                reads[role] = self.view(argument)
                return {"read": role}
            if isinstance(argument, (list, tuple)):
                return [plain(entry) for entry in argument]
            if isinstance(argument, torch.dtype):
                return {"dtype": str(argument).removeprefix("torch.")}
            return argument if isinstance(argument, (int, float, bool, str, type(None))) else str(argument)

        arguments = plain(node.args)
        named = {k: plain(v) for k, v in node.kwargs.items() if k in ("dtype", "alpha", "dim")}
        y = self._fresh(node)
        self.emit("host", reads, {"y": y}, function=name, args=arguments, kwargs=named)
        self.views[node] = y
