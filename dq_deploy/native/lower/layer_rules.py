"""Integer layers of a traced graph, and the norms and activations that write their codes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.fx import Node

from dq_deploy.errors import ModelError
from dq_deploy.native.lower import fusion
from dq_deploy.native.lower.float_rules import all_float32
from dq_deploy.native.lower.host_rules import host
from dq_deploy.native.lower.values import MAX_AXES, Values
from dq_deploy.native.program import views
from dq_deploy.native.program.program import View
from dq_deploy.native.trace.geometry import Geometry

aten = torch.ops.aten


CODE_PITCH = 16
"""Codes of a pixel fill a multiple of this many bytes, the widest load of a GPU."""


class LayerRules:
    """Lowers integer layers and what can write codes for them.

    Attributes:
        products: by the operation whose value an integer product writes.
    """

    def __init__(self, values: Values, layers: Mapping[str, Geometry]) -> None:
        self.values, self.layers = values, layers
        self.products: dict[Node, fusion.ProductPlan] = {}
        self._codes: dict[tuple[Any, ...], View] = {}

    def integer_layer(self, node: Node) -> None:
        """Quantize what it reads; its product waits for the last operation it does itself."""
        codes = self._codes_of(node)
        plan = fusion.plan_product(node, {*self.values.done, *self.products}, self.values.strides_of)
        self.values.done.update(n for n in plan.absorbed if n is not plan.last)
        self.products[plan.last] = fusion.ProductPlan(
            node=node,
            last=plan.last,
            row=plan.row,
            residual=plan.residual,
            absorbed=plan.absorbed,
            strides=plan.strides,
            codes=tuple(codes),
        )
        if plan.last is node:
            self.product(self.products[node])

    def _codes_of(self, node: Node) -> list[View]:
        """Codes of each part of a layer's input, quantized where nobody did it yet."""
        (x, _), name = fusion.unpadded(node), str(node.args[1])
        axis = self._checked_axis(x, name)
        source = views.rows_view(self.values.dense(x, axis), axis)
        first, found = 0, []
        for part, channels in enumerate(self.layers[name].parts):
            key = self._codes_key(source, name, part, first)
            if key not in self._codes:
                self._codes[key] = self.new_codes(source, channels)
                out = {"layer": name, "part": part, "first": first, "channels": channels}
                self.values.emit("quantize", {"x": source}, {"codes0": self._codes[key]}, outs=[out])
            found.append(self._codes[key])
            first += channels
        return found

    def _checked_axis(self, x: Node, name: str) -> int:
        """Axis of a layer's input channels."""
        axis, shape, channels = self._axis(name), tuple(x.meta["val"].shape), sum(self.layers[name].parts)
        if shape[axis] != channels:
            raise ModelError(
                f"layer {name} reads {list(shape)}, expected {channels} channels on axis {axis}; the record's layer is "
                "another one"
            )
        return axis

    def _axis(self, name: str) -> int:
        return -1 if self.layers[name].window is None else 1

    def _codes_key(self, rows: View, name: str, part: int, first: int) -> tuple[Any, ...]:
        layer = self.layers[name]
        return (rows, first, layer.parts[part], layer.quantizers[part])

    def new_codes(self, rows: View, channels: int) -> View:
        """A buffer of codes for [batch, rows, channels]."""
        pitch = -(-channels // CODE_PITCH) * CODE_PITCH
        batch, count = rows.sizes[0], rows.sizes[1]
        view = self.values.new_view((batch, count, pitch), (count * pitch, pitch, 1), "uint8")
        return View(buffer=view.buffer, offset=0, sizes=(batch, count, channels), strides=view.strides)

    def product(self, plan: fusion.ProductPlan) -> None:
        """Emit a product, a part at a time."""
        node, name = plan.node, str(plan.node.args[1])
        layer = self.layers[name]
        image, shape = layer.window is not None, tuple(node.meta["val"].shape)
        out = self.values.new_view(shape, views.channels_last_strides(shape, 1 if image else -1))
        kind = "int_conv2d" if image else "int_linear"
        _, extra = fusion.unpadded(node)
        geometry = fusion.product_sizes(node, layer)
        previous: View | None = None
        for part, codes in enumerate(plan.codes):
            last = part == len(plan.codes) - 1
            reads = {"codes": codes}
            if previous is not None:
                reads["previous"] = previous
            if last and plan.row is not None:
                reads["row"] = self._row(plan.row)
            if last and plan.residual is not None:
                reads["residual"] = views.same_memory(out, self._residual(plan))
            self.values.emit(kind, reads, {"y": out}, layer=name, part=part, final=last, padded=list(extra), **geometry)
            previous = out
        sizes = tuple(plan.last.meta["val"].shape)
        self.values.set(plan.last, View(buffer=out.buffer, offset=0, sizes=sizes, strides=plan.strides))

    def _row(self, node: Node) -> View:
        """[B, N] with adjacent features, of a value [B, N, 1, 1]."""
        row = views.row_view(self.values.view(node))
        return row if row.strides[1] == 1 else self.values.copied(row, views.channels_last_strides(row.sizes, -1))

    def _residual(self, plan: fusion.ProductPlan) -> View:
        """The residual as the product's value lies; it may have been lowered after that was planned."""
        assert plan.residual is not None
        at = self.values.view(plan.residual)
        return at if views.lie_alike(at.strides, plan.strides, at.sizes) else self.values.copied(at, plan.strides)

    def _coded(self, node: Node, result: Node, axis: int) -> tuple[list[dict[str, Any]], dict[str, View]]:
        """What a fused op writes for the readers of `result`, whose channels are on `axis`: outs, and views by role."""
        y = views.rows_view(self.values.virtual(result, axis), axis)
        readers = fusion.readers(result)
        layers = [r for r in readers if r.target is torch.ops.dq_native.integer_layer.default]
        wanted: dict[tuple[Any, ...], dict[str, Any]] = {}
        for reader in layers:
            first, name = 0, str(reader.args[1])
            for part, channels in enumerate(self.layers[name].parts):
                key = self._codes_key(y, name, part, first)
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
        at, axis = self.values.chained(x), self._axis(str(layer.args[1]))
        return at is not None and views.has_even_rows(at, axis) and views.rows_view(at, axis) == y

    def group_norm(self, node: Node) -> None:
        """A group norm, the SiLU behind it, and the codes of what reads it."""
        if not all_float32(self.values, node):
            host(self.values, node)
            return
        result = fusion.first_result(node)
        act = fusion.only_user(result, aten.silu.default)
        last = result if act is None else act
        self.values.done.update(n for n in (result, act) if n is not None)
        x = views.rows_view(self.values.dense(node.args[0], 1), 1)
        outs, writes = self._coded(node, last, 1)
        reads = {"x": x, **self._affine(node.args[1], node.args[2])}
        self.values.emit(
            "group_norm_silu_quantize",
            reads,
            writes,
            groups=int(node.args[6]),
            eps=float(node.args[7]),
            silu=act is not None,
            outs=outs,
        )

    def _affine(self, gamma: Node | None, beta: Node | None) -> dict[str, View]:
        return {name: self.values.solid(n) for name, n in (("gamma", gamma), ("beta", beta)) if n is not None}

    def layer_norm(self, node: Node) -> None:
        """A layer norm and the codes of what reads it; one over several axes is the host's."""
        if len(node.args[1]) != 1 or not all_float32(self.values, node):
            host(self.values, node)
            return
        result = fusion.first_result(node)
        self.values.done.add(result)
        x = views.rows_view(self.values.dense(node.args[0], -1), -1)
        outs, writes = self._coded(node, result, -1)
        reads = {"x": x, **self._affine(node.args[2], node.args[3])}
        self.values.emit("layer_norm_quantize", reads, writes, eps=float(node.args[4]), outs=outs)

    def gelu(self, node: Node) -> None:
        """A GELU; with its product and the codes of that where it is the gate of a GEGLU."""
        if not all_float32(self.values, node) or node.meta["val"].ndim > MAX_AXES:
            host(self.values, node)
            return
        tanh = node.kwargs.get("approximate", "none") == "tanh"
        product = None if tanh else fusion.geglu_product(node)
        x = None if product is None else self._halves(product, node)
        if product is None or x is None:
            y = self.values.fresh(node)
            reads = {"a": self.values.view(node.args[0])}
            self.values.emit("elementwise", reads, {"y": y}, function="gelu_tanh" if tanh else "gelu", scalar=0.0)
            self.values.views[node] = y
            return
        self.values.done.add(product)
        outs, writes = self._coded(node, product, -1)
        self.values.emit("geglu_quantize", {"x": views.rows_view(x, -1)}, writes, outs=outs)

    def _halves(self, product: Node, gelu: Node) -> View | None:
        """Value and gate of a GEGLU as one view, or None where they do not lie as its kernel reads them."""
        value = self.values.chained(fusion.other_factor(product, gelu))
        return None if value is None else views.joined_halves(value, self.values.view(gelu.args[0]))
