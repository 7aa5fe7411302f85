"""Mode fast for ONNX Runtime: convolutions with 8-bit outputs, one step bucket a batch."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from dq_deploy.graph.pass_contract import PassResult
from dq_deploy.graph.passes.onnxruntime_layers import decline_reason
from dq_deploy.graph.writing.builder import CONTRIB_DOMAIN, convolution_attributes, replace_uses
from dq_deploy.graph.writing.held_codes import pair_safe
from dq_deploy.graph.writing.layer_writer import LayerWriter, write_layers
from dq_deploy.graph.writing.sites import Site
from dq_deploy.graph.writing.wide_weights import unsigned_weight
from dq_deploy.manifest.values import ManifestLayer, ManifestPart
from dq_deploy.numerics import bias_codes
from dq_deploy.record import Part, Record

U8, FLOAT, INT32 = ir.DataType.UINT8, ir.DataType.FLOAT, ir.DataType.INT32


@dataclass
class RequantizedLayers:
    """Rewrites each layer of the record for a batch whose samples share one step bucket.

    - Mul by m, clamp, QuantizeLinear with scale 1 and the step's zero point: codes c + z
    - convolutions with output tables: QLinearConv to 8-bit codes of out_s[t], out_z[t], then DequantizeLinear
    - other layers: MatMulIntegerToFloat with the step's scale and the weight scales, then the bias

    Layers that neither form can express stay float, with the reason in the manifest.

    Attributes:
        record: the quantized denoiser.
        entries: filled by `apply`: the manifest's entry of each layer.
    """

    record: Record
    entries: list[ManifestLayer] = field(default_factory=list)
    name: str = "requantized-layers"

    def apply(self, model: ir.Model) -> PassResult:
        """Edit the model in place."""
        result = write_layers(
            model,
            self.record,
            self.entries,
            decline=lambda site: decline_reason(site) or fast_reason(site),
            writer=_FastWriter,
            shared_step=True,
        )
        model.graph.opset_imports[CONTRIB_DOMAIN] = 1
        return result


def fast_reason(site: Site) -> str:
    """Why mode fast cannot take a layer that mode exact can, or an empty string."""
    layer = site.layer
    if layer.groups != 1:
        return f"convolution has {layer.groups} channel groups; mode exact takes it"
    for part in layer.parts:
        held = part.zero_point - layer.q_min
        if int(held.min()) < 0 or int(held.max()) > 255:
            return f"the code of 0 spans {held.min()}..{held.max()}; this form holds it in 0..255"
    wide = [part for part in layer.parts if not part.fits_int8]
    if wide and layer.kind == "conv2d":
        low, high = wide[0].q_weight_span
        return f"weights less their zero point span {low}..{high}; this form has one zero point for all channels"
    if any(unsigned_weight(part.q_weight(0))[2].any() for part in wide):
        return "a weight zero point lies outside 0..255 as uint8; mode exact takes it"
    if layer.kind == "conv2d" and layer.out_scale is None:
        return "record has no output table; quantize again with outputs"
    if layer.kind == "conv2d" and len(layer.parts) > 1:
        return "a split convolution sums two float products; this form has one"
    return ""


class _FastWriter(LayerWriter):
    """QLinearConv with declared output codes, or a product with float output."""

    def write(self) -> ManifestLayer:
        total, entries = self._parts()
        if not self.conv and self.layer.bias is not None:
            # an own Add: the product's bias input would be fused with one rounding less than the numerics
            total = self.b.op("Add", [total, self._linear_bias(self.layer.bias)], "biased", dtype=FLOAT)
        replace_uses(self.site.output, total)
        form = "qlinear conv, 8-bit output" if self.conv else "u8 product, float output"
        codes = f"dq/{self.layer.name}/product" if self.conv else None
        return replace(self._entry(form, entries), output_codes=codes, nulls=frozenset({"output_codes"}))

    def _linear_bias(self, bias: np.ndarray) -> ir.Value:
        """[C_out], of the batch's one step where it differs by step."""
        if bias.ndim == 1:
            return self.b.constant(bias, "bias")
        return self.steps.entry(bias, f"{self.b.prefix}/bias", before=self.site.node)

    def _part(self, x: ir.Value, part: Part) -> tuple[ir.Value, ManifestPart]:
        codes, zero = self._codes(x, part)
        term, product = self._convolution(codes, zero, part) if self.conv else self._linear(codes, zero, part)
        return term, self._part_entry(x, codes, product)

    def _part_entry(self, x: ir.Value, codes: ir.Value, product: str) -> ManifestPart:
        return ManifestPart(
            input=x.name,
            codes=codes.name,
            node=product,
            offset=None if self.layer.q_min == 0 else -self.layer.q_min,
            offset_table="zero_point" if self.layer.q_min == 0 else None,
            layout="nchw" if self.conv else "last",
        )

    def _held_zero(self, part: Part) -> np.ndarray:
        """Code of 0 at each step: z[t] for unsigned ranges, -q_min for symmetric ones."""
        return (part.zero_point - self.layer.q_min).astype(np.uint8)

    def _codes(self, x: ir.Value, part: Part) -> tuple[ir.Value, ir.Value]:
        b, steps = self.b, self.steps
        m = self._multiplier(part)
        value = b.op("Mul", [x, m], "scaled_input")
        if self.layer.reach < 255:
            value = self._clamped(value, part)
        zero = steps.number(self._held_zero(part))
        one = b.constant(np.float32(1), "one")
        return b.op("QuantizeLinear", [value, one, zero], "codes", dtype=U8), zero

    def _convolution(self, codes: ir.Value, zero: ir.Value, part: Part) -> tuple[ir.Value, str]:
        b, layer = self.b, self.layer
        assert layer.out_scale is not None
        assert layer.out_zero_point is not None
        q_weight = part.q_weight(0)
        safe = pair_safe(q_weight, self.layer.reach)
        out_scale = self.steps.number(layer.out_scale)
        out_zero = self.steps.number(layer.out_zero_point.astype(np.uint8))
        inputs = [
            codes,
            self.steps.number(part.scale),
            zero,
            self._weight(q_weight, safe),
            b.constant(part.weight_scale[0], "weight_scale"),
            b.constant(np.int8(0) if safe else np.uint8(128), "weight_offset"),
            out_scale,
            out_zero,
        ]
        if layer.bias is not None:
            table = bias_codes(layer.bias, scale=part.scale, weight_scale=part.weight_scale[0])
            inputs.append(self.steps.entry(table, f"{b.prefix}/bias", before=self.site.node))
        attributes = convolution_attributes(layer.window)
        out = b.op("QLinearConv", inputs, "product", attributes=attributes, dtype=U8)
        return b.op("DequantizeLinear", [out, out_scale, out_zero], "out", dtype=FLOAT), f"{b.prefix}/product"

    def _linear(self, codes: ir.Value, zero: ir.Value, part: Part) -> tuple[ir.Value, str]:
        b = self.b
        q_weight = part.q_weight(0)
        safe = part.fits_int8 and pair_safe(q_weight, self.layer.reach)
        columns = len(q_weight)
        if part.fits_int8:
            weight = self._weight(q_weight.T, safe)
            weight_zero: np.ndarray = np.full(columns, 0, np.int8) if safe else np.full(columns, 128, np.uint8)
        else:
            held, weight_zero, _ = unsigned_weight(q_weight)
            weight = b.tensor(ir.tensor(np.ascontiguousarray(held.T), name=f"{b.prefix}/weight"))
        inputs = [
            codes,
            weight,
            self.steps.number(part.scale),
            b.constant(part.weight_scale[0], "weight_scale"),
            zero,
            b.constant(weight_zero, "weight_offset"),
        ]
        out = b.op("MatMulIntegerToFloat", inputs, "product", domain=CONTRIB_DOMAIN, dtype=FLOAT)
        return out, f"{b.prefix}/product"

    def _weight(self, q_weight: np.ndarray, safe: bool) -> ir.Value:
        """s8 where pairs cannot leave int16, else u8 with zero point 128."""
        b = self.b
        if safe:
            return b.signed_weight(q_weight, self.layer.weight_bits)
        held = np.ascontiguousarray((q_weight + 128).astype(np.uint8))
        return b.tensor(ir.tensor(held, name=f"{b.prefix}/weight"))
