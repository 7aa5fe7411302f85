"""Mode exact for ONNX Runtime: each layer as an integer product with a float output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from dq_deploy.graph.pass_contract import PassResult
from dq_deploy.graph.writing.builder import CONTRIB_DOMAIN, convolution_attributes, image_pads, replace_uses
from dq_deploy.graph.writing.held_codes import HeldCodes, float32_holds, held_codes, pair_safe
from dq_deploy.graph.writing.layer_writer import LayerWriter, Shared, write_layers
from dq_deploy.graph.writing.sites import Site
from dq_deploy.graph.writing.steps import StepTables
from dq_deploy.graph.writing.wide_weights import unsigned_weight
from dq_deploy.manifest.values import ManifestLayer, ManifestPart
from dq_deploy.numerics import reciprocal
from dq_deploy.record import Part, Record

U8, FLOAT, INT32 = ir.DataType.UINT8, ir.DataType.FLOAT, ir.DataType.INT32


def decline_reason(site: Site) -> str:
    """Why a layer cannot become an integer product here, or an empty string."""
    layer = site.layer
    if layer.groups != 1 and not all(part.fits_int8 for part in layer.parts):
        return f"convolution has {layer.groups} channel groups and weights less their zero point beyond int8"
    if any(part.w_code.shape[0] > 1 for part in layer.parts):
        return "weights differ by step; this form has one weight set"
    for part in layer.parts:
        if held_codes(layer, part).offset is not None:
            continue
        if layer.q_min != 0:
            return f"codes start at {layer.q_min} and zero points differ by step; this form takes codes from 0"
        if int(part.zero_point.min()) < 0 or int(part.zero_point.max()) > 255:
            return "an activation zero point lies outside 0..255, and no offset holds the codes of all steps in uint8"
    return ""


@dataclass
class IntegerLayers:
    """Rewrites each layer of the record (Conv, Gemm or MatMul + Add).

    - Mul by m = pre * inv_s[t], clamp, QuantizeLinear with scale 1: unsigned codes; where they hold c + z[t] the zero
      points stand along the axis of samples
    - for convolutions, rows of patches by Gather over [B, 1, H * W, C], padding by a row of the code of 0
    - MatMulIntegerToFloat with scale 1 (or MatMulInteger where float32 cannot hold the sum); weights that do not fit
      int8 as uint8 with a zero point per column, and what that leaves over times the sum of the codes
    - of a convolution, Transpose to [B, 1, C, H * W]: what follows then runs along pixels, which is faster
    - a convolution of channel groups as ConvInteger; where codes hold c + z[t] the float tensor is padded in front
    - the zero-point correction where codes hold c + z[t], Mul by s[t] * s_w, Add bias; the factors of all layers are
      looked up and multiplied at once

    Layers that the form cannot express stay float; the note and the manifest say why.

    Attributes:
        record: the quantized denoiser.
        entries: filled by `apply`: the manifest's entry of each layer.
    """

    record: Record
    entries: list[ManifestLayer] = field(default_factory=list)
    name: str = "integer-layers"

    def apply(self, model: ir.Model) -> PassResult:
        """Edit the model in place."""
        result = write_layers(model, self.record, self.entries, decline=decline_reason, writer=_writer)
        model.graph.opset_imports[CONTRIB_DOMAIN] = 1
        return result


def _writer(graph: ir.Graph, site: Site, steps: StepTables, shared: Shared) -> LayerWriter:
    kind = _ProductWriter if site.layer.groups == 1 else _GroupedWriter
    return kind(graph, site, steps, shared)


class _ProductWriter(LayerWriter):
    """An integer product, convolutions as rows of patches."""

    def __init__(self, graph: ir.Graph, site: Site, steps: StepTables, shared: Shared) -> None:
        super().__init__(graph, site, steps, shared)
        self.layout = "nchw" if self.conv else "last"
        self.channel_axis = 2 if self.conv else self.rank - 1

    def write(self) -> ManifestLayer:
        total, entries = self._parts()
        self._replace(self._bias(total))
        return self._entry(" + ".join(dict.fromkeys(self.forms)), entries)

    def _part(self, x: ir.Value, part: Part) -> tuple[ir.Value, ManifestPart]:
        held = held_codes(self.layer, part)
        border = self._border(held)
        codes = self._once(x, part, lambda: self._quantize(self._flat(x, part), part, held), *border)
        rows = self._rows(codes, part, held) if self.conv else codes
        q_weight = part.q_weight(0)
        product, node, form = self._product(rows, q_weight, held, part)
        accumulator = self._canonical(self._along_pixels(product), q_weight, part, held)
        entry = ManifestPart(
            input=x.name,
            codes=codes.name,
            accumulator=accumulator.name,
            accumulator_holds="canonical",
            node=node,
            offset=held.offset,
            offset_table=None if held.offset is not None else "zero_point",
            codes_padding=border or None,
            layout=self.layout,
        )
        self.forms.append(form)
        factor = self._by_step(part.scale, part.weight_scale[0], "factor")
        return self.b.op("Mul", [accumulator, factor], "scaled", dtype=FLOAT), entry

    def _border(self, held: HeldCodes) -> tuple[int, ...]:
        """Padding that is around the codes: top, left, bottom, right; empty where the product pads them."""
        return ()

    def _flat(self, x: ir.Value, part: Part) -> ir.Value:
        """Of a convolution, its input as [B, 1, C, H * W]."""
        if not self.conv:
            return x
        shape = np.array([0, 1, len(part.pre), -1])
        return self.b.op("Reshape", [x, self.b.constant(shape, "flat")], "flat", dtype=FLOAT)

    def _by_step(self, table: np.ndarray, values: np.ndarray, role: str) -> ir.Value:
        """A table's entry at each sample's step times each channel's value."""
        return self.steps.products(table, values, self.rank, self.channel_axis)

    def _channel(self, values: np.ndarray, role: str) -> ir.Value:
        """A constant of channels, beside the outputs of the product as `_along_pixels` leaves them."""
        shape = [1] * self.rank
        shape[self.channel_axis] = -1
        return self.b.constant(values.reshape(shape), role)

    def _scalar(self, table: np.ndarray) -> ir.Value:
        """A table's entry at each sample's step, with the input's number of axes."""
        if self.steps.static:
            return self.b.constant(np.asarray(table, np.float32).reshape([1] * self.rank), "scalar")
        return self.steps.scalar(table, self.rank)

    def _multiplier(self, part: Part) -> ir.Value:
        """Each sample's m = pre * inv_s[t]."""
        if (part.pre == 1).all():
            return self._scalar(reciprocal(part.scale))
        return self._by_step(reciprocal(part.scale), part.pre, "multiplier")

    def _clamped(self, value: ir.Value, part: Part) -> ir.Value:
        """The value within each sample's bounds of centred codes."""
        if not self.steps.static:
            return super()._clamped(value, part)
        z = part.zero_point.astype(np.float32)
        limits = [self.b.constant((limit - z).reshape(()), "limit") for limit in (self.layer.q_min, self.layer.q_max)]
        return self.b.op("Clip", [value, *limits], "clamped", dtype=FLOAT)

    def _quantize(self, x: ir.Value, part: Part, held: HeldCodes) -> ir.Value:
        b = self.b
        value = b.op("Mul", [x, self._multiplier(part)], "scaled_input", dtype=FLOAT)
        if held.offset is None:
            inputs = [value, self.steps.ones(), self.steps.zero_point(part.zero_point)]
            return b.op("QuantizeLinear", inputs, "codes", attributes={"axis": 0}, dtype=U8)
        if not held.saturates:
            value = self._clamped(value, part)
        one, offset = b.constant(np.float32(1), "one"), b.constant(np.uint8(held.offset), "offset")
        return b.op("QuantizeLinear", [value, one, offset], "codes", dtype=U8)

    def _rows(self, codes: ir.Value, part: Part, held: HeldCodes) -> ir.Value:
        """Patches as rows [B, 1, H_out * W_out, kh * kw * C], u8."""
        b, layer = self.b, self.layer
        pixels = self._turned(codes, "pixels", U8)
        if layer.window.whole_pixels:
            return pixels
        if any(layer.padding):
            pixels = self._padded(pixels, part, held)
        index = self.shared.images.patch_index(b, self.site.input, layer.window)
        gathered = b.op("Gather", [pixels, index], "gathered", attributes={"axis": 2}, dtype=U8)
        shape = np.array([0, 1, -1, layer.kernel[0] * layer.kernel[1] * len(part.pre)])
        return b.op("Reshape", [gathered, b.constant(shape, "rows")], "rows", dtype=U8)

    def _turned(self, value: ir.Value, role: str, dtype: ir.DataType) -> ir.Value:
        """Pixels and channels exchanged."""
        return self.b.op("Transpose", [value], role, attributes={"perm": [0, 1, 3, 2]}, dtype=dtype)

    def _along_pixels(self, product: ir.Value) -> ir.Value:
        """Of a convolution, the product as [B, 1, C, H * W]."""
        assert product.dtype is not None
        return self._turned(product, "channels_first", product.dtype) if self.conv else product

    def _padded(self, pixels: ir.Value, part: Part, held: HeldCodes) -> ir.Value:
        """The pixels [B, 1, H * W, C] and one more with the code of 0: the sample's where codes hold c + z[t]."""
        b = self.b
        if held.offset is not None:
            pads, code = np.array([0, 0, 0, 0, 0, 0, 1, 0]), b.constant(np.uint8(held.offset), "offset")
            return b.op("Pad", [pixels, b.constant(pads, "pads"), code], "padded", dtype=U8)
        row = self.steps.codes(part.zero_point, len(part.pre), 4)  # [B, 1, 1, C]
        return b.op("Concat", [pixels, row], "padded", attributes={"axis": 2}, dtype=U8)

    def _product(self, rows: ir.Value, q_weight: np.ndarray, held: HeldCodes, part: Part) -> tuple[ir.Value, str, str]:
        b = self.b
        if not part.fits_int8:
            return self._wide_product(rows, q_weight, held, part)
        matrix = q_weight.transpose(2, 3, 1, 0).reshape(-1, len(q_weight)) if self.conv else q_weight.T
        safe = pair_safe(q_weight, held.highest)
        weight = self._weight(matrix, safe)
        zero_a = b.constant(np.uint8(held.offset or 0), "code_offset")
        zero_b = b.constant(np.int8(0) if safe else np.uint8(128), "weight_offset")
        form = "u8 x s8" if safe else "u8 x u8"
        if held.offset is None and not float32_holds(q_weight, part):
            total = b.op("MatMulInteger", [rows, weight, zero_a, zero_b], "product", dtype=INT32)
            return total, f"{b.prefix}/product", form + " int32"
        one = b.constant(np.float32(1), "one")
        total = b.op(
            "MatMulIntegerToFloat",
            [rows, weight, one, one, zero_a, zero_b],
            "product",
            domain=CONTRIB_DOMAIN,
            dtype=FLOAT,
        )
        return total, f"{b.prefix}/product", form

    def _wide_product(
        self, rows: ir.Value, q_weight: np.ndarray, held: HeldCodes, part: Part
    ) -> tuple[ir.Value, str, str]:
        """u8 codes with a zero point per column; what zero points leave uint8 by is multiplied with the codes' sum."""
        b = self.b
        codes, zero, rest = unsigned_weight(q_weight)
        matrix = codes.transpose(2, 3, 1, 0).reshape(-1, len(codes)) if self.conv else codes.T
        weight = b.tensor(ir.tensor(np.ascontiguousarray(matrix), name=f"{b.prefix}/weight"))
        zero_a, zero_b = b.constant(np.uint8(held.offset or 0), "code_offset"), b.constant(zero, "weight_offset")
        form = "u8 x u8, zero point per column"
        if not rest.any() and (held.offset is not None or float32_holds(q_weight, part)):
            one = b.constant(np.float32(1), "one")
            inputs = [rows, weight, one, one, zero_a, zero_b]
            total = b.op("MatMulIntegerToFloat", inputs, "product", domain=CONTRIB_DOMAIN, dtype=FLOAT)
            return total, f"{b.prefix}/product", form
        total = b.op("MatMulInteger", [rows, weight, zero_a, zero_b], "product", dtype=INT32)
        if not rest.any():
            return total, f"{b.prefix}/product", form + " int32"
        ones = b.constant(np.ones((len(matrix), 1), np.uint8), "ones")
        sums = b.op("MatMulInteger", [rows, ones, zero_a], "code_sums", dtype=INT32)
        beyond = b.constant(rest, "weight_rest")  # channels are the last axis of a product
        outside = b.op("Mul", [sums, beyond], "outside", dtype=INT32)
        return b.op("Sub", [total, outside], "accumulator", dtype=INT32), f"{b.prefix}/product", form + " and beyond"

    def _weight(self, matrix: np.ndarray, signed: bool) -> ir.Value:
        b = self.b
        if not signed:
            return b.tensor(ir.tensor((matrix + 128).astype(np.uint8), name=f"{b.prefix}/weight"))
        return b.signed_weight(matrix, self.layer.weight_bits)

    def _canonical(self, product: ir.Value, q_weight: np.ndarray, part: Part, held: HeldCodes) -> ir.Value:
        """A in float32: the product less z[t] * sum(w) where the codes hold c + z[t]."""
        b = self.b
        integer = product.dtype == INT32
        if held.offset is None:
            sums = q_weight.reshape(len(q_weight), -1).sum(axis=1, dtype=np.int64)
            if integer:
                z = b.op("Cast", [self._scalar(part.zero_point)], "zero_point_s32", attributes={"to": int(INT32)})
                inputs = [z, self._channel(sums.astype(np.int32), "weight_sum")]
                correction = b.op("Mul", inputs, "correction", dtype=INT32)
                product = b.op("Sub", [product, correction], "canonical_s32", dtype=INT32)
            else:
                correction = self._by_step(part.zero_point, sums.astype(np.float32), "correction")
                product = b.op("Sub", [product, correction], "canonical", dtype=FLOAT)
        if integer:
            product = b.op("Cast", [product], "canonical", attributes={"to": int(FLOAT)}, dtype=FLOAT)
        return product

    def _bias(self, total: ir.Value) -> ir.Value:
        if self.layer.bias is None:
            return total
        return self.b.op("Add", [total, self._bias_value(self.rank, self.channel_axis)], "biased", dtype=FLOAT)

    def _replace(self, y: ir.Value) -> None:
        if self.conv:
            y = self.b.op("Reshape", [y, self._shape_out()], "out", dtype=FLOAT)
        replace_uses(self.site.output, y)


class _GroupedWriter(_ProductWriter):
    """An integer convolution of channel groups: rows of patches would hold the channels of all groups."""

    def __init__(self, graph: ir.Graph, site: Site, steps: StepTables, shared: Shared) -> None:
        super().__init__(graph, site, steps, shared)
        self.channel_axis = 1

    def _border(self, held: HeldCodes) -> tuple[int, ...]:
        """All of it where the code of 0 differs by sample, which ConvInteger does not know."""
        padding = self.layer.padding
        return padding if held.offset is None and any(padding) else ()

    def _flat(self, x: ir.Value, part: Part) -> ir.Value:
        return x

    def _along_pixels(self, product: ir.Value) -> ir.Value:
        return product

    def _by_step(self, table: np.ndarray, values: np.ndarray, role: str) -> ir.Value:
        return self.b.op("Mul", [self._scalar(table), self._channel(values, f"{role}_values")], role, dtype=FLOAT)

    def _quantize(self, x: ir.Value, part: Part, held: HeldCodes) -> ir.Value:
        border = self._border(held)
        if border:
            pads = self.b.constant(image_pads(self.layer.padding), "pads")
            x = self.b.op("Pad", [x, pads, self.b.constant(np.float32(0), "nothing")], "padded_input", dtype=FLOAT)
        return super()._quantize(x, part, held)

    def _rows(self, codes: ir.Value, part: Part, held: HeldCodes) -> ir.Value:
        return codes

    def _product(self, rows: ir.Value, q_weight: np.ndarray, held: HeldCodes, part: Part) -> tuple[ir.Value, str, str]:
        b, window = self.b, self.layer.window
        if self._border(held):
            window = replace(window, padding=(0, 0, 0, 0))
        safe = pair_safe(q_weight, held.highest)
        weight = self._weight(q_weight, safe)
        zeros = (
            b.constant(np.uint8(held.offset or 0), "code_offset"),
            b.constant(np.int8(0) if safe else np.uint8(128), "weight_offset"),
        )
        attributes: dict[str, int | float | str | Sequence[int]] = {
            **convolution_attributes(window),
            "group": self.layer.groups,
        }
        total = b.op("ConvInteger", [rows, weight, *zeros], "product", attributes=attributes, dtype=INT32)
        return total, f"{b.prefix}/product", ("u8 x s8" if safe else "u8 x u8") + " in groups"

    def _replace(self, y: ir.Value) -> None:
        replace_uses(self.site.output, y)
