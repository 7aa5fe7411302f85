"""Linear layers with weights in four bits, scaled by blocks, and a float product."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from dq_deploy.errors import RecordError
from dq_deploy.graph.pass_contract import PassResult
from dq_deploy.graph.trace import MODULE_KEY
from dq_deploy.graph.writing.builder import CONTRIB_DOMAIN, Builder, replace_uses
from dq_deploy.graph.writing.sites import behind_bias
from dq_deploy.manifest.values import GEMM_NULLS, ManifestLayer, ProductShape
from dq_deploy.numerics import pack_nibbles
from dq_deploy.record import Record, WeightOnlyLayer

FLOAT, INT4 = ir.DataType.FLOAT, ir.DataType.INT4
FORMS = ("dequantize", "matmul_nbits")
PACKED_BITS = 4
SMALLEST_NBITS_BLOCK = 16
FLOAT_ACCURACY = 1
"""`accuracy_level` of MatMulNBits at which activations stay float32; where it may choose, it makes them int8."""


@dataclass
class WeightOnlyLayers:
    """Rewrites each weight-only layer of the record (Gemm, or MatMul + Add).

    Form `dequantize`, plain ONNX of opset 21:

    - DequantizeLinear of the INT4 codes [N, K] along axis 1 by blocks, Transpose, MatMul, Add bias

    The codes lie as [N, K] with a Transpose behind, not as [K, N]: ONNX Runtime would fuse the latter to a product
    that quantizes the activations to int8 by default. TensorRT-RTX stores either as int4 and unpacks it inside the
    product's kernel; where K is one block alone, in a kernel of its own in front.

    Form `matmul_nbits`, for ONNX Runtime alone:

    - com.microsoft.MatMulNBits at the accuracy level that keeps activations float32, Add bias

    It needs blocks of 16 or more that are a power of two; other blocks get the first form.

    A layer of more than four bits stays float with its dequantized weight; the note and the manifest say so.

    Attributes:
        record: the quantized denoiser.
        form: one of `FORMS`.
        entries: filled by `apply`: the manifest's entry of each layer.
    """

    record: Record
    form: str = "dequantize"
    entries: list[ManifestLayer] = field(default_factory=list)
    name: str = "weight-only-layers"

    def apply(self, model: ir.Model) -> PassResult:
        """Edit the model in place.

        Raises:
            RecordError: a layer is not in the graph, or more than once.
        """
        notes = []
        sites = _find_sites(model.graph, self.record)
        for layer, node in sites:
            if layer.weight_bits > PACKED_BITS:
                reason = f"weight-only with {layer.weight_bits} bits; this form stores {PACKED_BITS}"
                notes.append(f"{layer.name} stays float: {reason}")
                self.entries.append(_entry(layer, node, form="float", reason=reason))
                continue
            self.entries.append(self._write(model.graph, layer, node))
        return PassResult(model=model, modified=len(notes) < len(sites), notes=tuple(notes))

    def _write(self, graph: ir.Graph, layer: WeightOnlyLayer, node: ir.Node) -> ManifestLayer:
        b = Builder(graph, node, f"dq/{layer.name}")
        x, output = node.inputs[0], behind_bias(node)
        assert x is not None
        entry = _entry(
            layer,
            node,
            form=f"int4 weight-only, block {layer.block_size}",
            reason="weights in 4 bits, activations and product in float",
        )
        block = layer.block_size
        nbits = self.form == "matmul_nbits" and block >= SMALLEST_NBITS_BLOCK and block & (block - 1) == 0
        y = _matmul_nbits(b, x, layer) if nbits else _dequantized_product(b, x, layer)
        if nbits:
            graph.opset_imports[CONTRIB_DOMAIN] = 1
        if layer.bias is not None:
            y = b.op("Add", [y, b.constant(layer.bias, "bias")], "biased", dtype=FLOAT)
        replace_uses(output, y)
        return entry


def _dequantized_product(b: Builder, x: ir.Value, layer: WeightOnlyLayer) -> ir.Value:
    codes = b.tensor(ir.tensor(np.ascontiguousarray(layer.w_code), dtype=INT4, name=f"{b.prefix}/weight"))
    scale = b.constant(layer.scale, "weight_scale")
    attributes = {"axis": 1, "block_size": layer.block_size}
    rows = b.op("DequantizeLinear", [codes, scale], "weight_float", attributes=attributes, dtype=FLOAT)
    rows.shape = ir.Shape(layer.w_code.shape)
    matrix = b.op("Transpose", [rows], "weight_matrix", attributes={"perm": [1, 0]}, dtype=FLOAT)
    matrix.shape = ir.Shape(layer.w_code.shape[::-1])
    return b.op("MatMul", [x, matrix], "product", dtype=FLOAT)


def _matmul_nbits(b: Builder, x: ir.Value, layer: WeightOnlyLayer) -> ir.Value:
    blocks = layer.scale.shape[1]
    held = (pack_nibbles(layer.w_code) ^ np.uint8(0x88)).reshape(layer.out_channels, blocks, layer.block_size // 2)
    inputs = [
        x,
        b.tensor(ir.tensor(held, name=f"{b.prefix}/weight")),  # code + 8, the zero point that is meant by default
        b.constant(layer.scale.reshape(-1), "weight_scale"),
    ]
    attributes = {
        "K": layer.in_channels,
        "N": layer.out_channels,
        "bits": PACKED_BITS,
        "block_size": layer.block_size,
        "accuracy_level": FLOAT_ACCURACY,
    }
    return b.op("MatMulNBits", inputs, "product", domain=CONTRIB_DOMAIN, attributes=attributes, dtype=FLOAT)


def _entry(layer: WeightOnlyLayer, node: ir.Node, *, form: str, reason: str) -> ManifestLayer:
    x = node.inputs[0]
    shape = None if x is None else x.shape
    rows = None if shape is None else list(shape)[1:-1]
    known = rows is not None and all(isinstance(d, int) for d in rows)
    return ManifestLayer(
        name=layer.name,
        kind="linear",
        integer=False,
        form=form,
        reason=reason,
        parts=(),
        weight_type="float" if form == "float" else "int4",
        product=ProductShape(
            kind="gemm",
            m=int(np.prod([int(d) for d in rows or ()])) if known else None,
            n=layer.out_channels,
            k=layer.in_channels,
            nulls=GEMM_NULLS,
        ),
    )


def _find_sites(graph: ir.Graph, record: Record) -> list[tuple[WeightOnlyLayer, ir.Node]]:
    found: dict[str, tuple[WeightOnlyLayer, ir.Node]] = {}
    for node in graph:
        layer = record.weight_only.get(node.metadata_props.get(MODULE_KEY, ""))
        if layer is None or node.op_type not in ("Gemm", "MatMul"):
            continue
        if layer.name in found:
            raise RecordError(f"layer {layer.name} runs more than once in the traced graph, expected once")
        found[layer.name] = (layer, node)
    missing = [name for name in record.weight_only if name not in found]
    if missing:
        raise RecordError(
            f"layers {', '.join(missing[:3])} of the record are not in the traced graph; "
            "expected a record of this denoiser"
        )
    return list(found.values())
