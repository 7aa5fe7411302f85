"""The form TensorRT and TensorRT-RTX run in integers: Q and DQ with scale 1 around an int8 product."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from dq_deploy.graph.pass_contract import PassResult
from dq_deploy.graph.writing.builder import convolution_attributes, image_pads, replace_uses
from dq_deploy.graph.writing.im2col import patch_bytes, patch_matrix, patch_rows
from dq_deploy.graph.writing.image_sizes import fixed_size
from dq_deploy.graph.writing.layer_writer import LayerWriter, Shared, write_layers
from dq_deploy.graph.writing.signed_codes import SignedCodes, padding_reason, signed_codes
from dq_deploy.graph.writing.sites import Site
from dq_deploy.graph.writing.steps import StepTables
from dq_deploy.graph.writing.wide_weights import MOST_PIECES, int8_pieces
from dq_deploy.manifest.values import GEMM_NULLS, ManifestLayer, ManifestPart, ProductShape
from dq_deploy.numerics.arrays import F32
from dq_deploy.numerics.geometry import NO_PADDING, Padding, Pair, Window, padded_size
from dq_deploy.record import Layer, Part, Record

I8, I4, FLOAT = ir.DataType.INT8, ir.DataType.INT4, ir.DataType.FLOAT
GEMM, NATIVE = "gemm", "native"
WEIGHTS, BEHIND, LAST_PRODUCT = "weights", "behind", "last_product"
"""Where the manifest says that a part's scale and a layer's bias are."""


def decline_reason(layer: Layer) -> str:
    """Why a layer cannot become an integer product here, or an empty string."""
    if layer.groups != 1:
        return f"convolution has {layer.groups} channel groups; its integer kernels are not proven"
    if any(part.w_code.shape[0] > 1 for part in layer.parts):
        return "weights differ by step; this form has one weight set"
    if not all(part.fits_int8 or int8_pieces(part.q_weight(0)) for part in layer.parts):
        return (
            f"weights less their zero point need more than {MOST_PIECES} int8 pieces, for a zero point lies too far "
            "from the codes, and this form has none: use ONNX Runtime or the native engine"
        )
    return padding_reason(layer)


@dataclass
class TensorRtLayers:
    """Rewrites each layer of the record, Conv, Gemm or MatMul + Add, to what TensorRT runs in integers.

    - Pad of the float tensor with 0 where codes are shifted by step, so that padding has each sample's own code; of
      the int8 codes with the code of 0 where all steps have one
    - Mul by m = pre * inv_s[t], Round, Max and Min at the sample's bounds where saturation does not do it
    - Add z[t] - 128 where the centred codes of all steps do not fit int8
    - QuantizeLinear to int8 with scale 1 and zero point 0, DequantizeLinear with scale 1
    - MatMul or Conv with int8 or int4 weights whose DequantizeLinear carries s_w; weights that do not fit int8 as
      pieces that do, one below the other, times the codes as often
    - Mul by s[t], sum of the parts, Add bias; the correction of shifted codes is in a bias table by step
    - where all steps have one scale, DequantizeLinear of the weights with s * s_w in place of that Mul; where they have
      one bias too, it is the last Conv's own, so that nothing is left behind a convolution

    The manifest declares which of the two a layer has, since they round differently: `scale_at` of a part and `bias_at`
    of a layer. Convolutions stay Conv (`native`), or become MatMul: 1x1 on pixels, others on int8 patches (`gemm`).
    Layers that the form cannot express stay float; the note and the manifest say why.

    Attributes:
        record: the quantized denoiser.
        conv: `native` leaves every convolution, `gemm` none.
        pixels_as_rows: write 1x1 convolutions as MatMul even if `conv` is `native`.
        int4: store weights of matrix products in four bits where they fit; TensorRT-RTX multiplies those with int8
            codes, the full TensorRT takes them in weight-only products alone.
        entries: filled by `apply`: the manifest's entry of each layer.
    """

    record: Record
    conv: str = NATIVE
    pixels_as_rows: bool = False
    int4: bool = True
    entries: list[ManifestLayer] = field(default_factory=list)
    name: str = "tensorrt-layers"

    def apply(self, model: ir.Model) -> PassResult:
        """Edit the model in place."""
        result = write_layers(
            model, self.record, self.entries, decline=lambda site: decline_reason(site.layer), writer=self._writer
        )
        return replace(result, notes=(*result.notes, *self._float_pads()))

    def _float_pads(self) -> tuple[str, ...]:
        """A note where images are padded in float32, four bytes a value in place of one."""
        layers = {layer.name: layer for layer in self.record.layers.values()}
        names = [e.name for e in self.entries if e.integer and _pads_float_somewhere(layers[e.name])]
        if not names:
            return ()
        return (
            f"{len(names)} convolutions, {names[0]} first, pad their input in float32, for their 8-bit codes have "
            "another zero point at each step: symmetric activations, one quantizer for all steps, or 7 bits "
            "would pad codes",
        )

    def _writer(self, graph: ir.Graph, site: Site, steps: StepTables, shared: Shared) -> LayerWriter:
        return _Int8Writer(graph, site, steps, shared, as_rows=self._as_rows(site.layer), int4=self.int4)

    def _as_rows(self, layer: Layer) -> bool:
        if layer.kind == "linear":
            return True
        return self.conv == GEMM or (self.pixels_as_rows and layer.window.whole_pixels)


class _Int8Writer(LayerWriter):
    """An int8 product behind Q and DQ with scale 1, convolutions as rows or as they are."""

    def __init__(
        self, graph: ir.Graph, site: Site, steps: StepTables, shared: Shared, *, as_rows: bool, int4: bool
    ) -> None:
        super().__init__(graph, site, steps, shared)
        self.as_rows, self.int4 = as_rows, int4
        self.rank_out = 3 if self.conv and as_rows else self.rank
        self.channel_axis = self.rank_out - 1 if as_rows else 1

    def write(self) -> ManifestLayer:
        total, entries = self._parts()
        inside = self._bias_inside() is not None
        y = self._replace(total if inside else self._bias(total))
        patches = [self._patch_bytes(part) if self._is_patches() else 0 for part in self.layer.parts]
        known = [number for number in patches if number is not None]
        return replace(
            self._entry(self._form(), entries),
            output=y,
            bias_at=LAST_PRODUCT if inside else BEHIND if self._bias_table is not None else None,
            im2col_bytes=sum(known) if len(known) == len(patches) else None,
        )

    def _is_patches(self) -> bool:
        return self.conv and self.as_rows

    def _patch_bytes(self, part: Part) -> int | None:
        size = self._size(part)
        return None if size is None else patch_bytes(self._window(part), size, len(part.pre))

    def _form(self) -> str:
        weight = "int4" if self.layer.weight_bits <= 4 and self._fits_int4() else "int8"
        if not self.as_rows:
            return f"int8 x {weight} convolution"
        rows = self.conv and not self._window(self.layer.parts[0]).whole_pixels
        return f"int8 x {weight} product" + (" of patches" if rows else "")

    def _fits_int4(self) -> bool:
        # TensorRT-RTX 1.7 fails on 4-bit weights of a convolution, and of a product with one output channel
        if not self.int4 or (self.conv and not self.as_rows) or self.layer.out_channels == 1:
            return False
        spans = [part.q_weight(0) for part in self.layer.parts]
        return all(w.min(initial=0) >= -8 and w.max(initial=0) <= 7 for w in spans)

    def _padded(self, part: Part) -> Padding:
        """What is put around the image in front of the product, whose own padding is then none."""
        shifted = signed_codes(self.layer, part).offset != 0
        return self.layer.padding if shifted else NO_PADDING

    def _window(self, part: Part) -> Window:
        """How the product moves over the codes."""
        return replace(self.layer.window, padding=NO_PADDING) if any(self._padded(part)) else self.layer.window

    def _size(self, part: Part) -> Pair | None:
        """Height and width of the codes, as traced where they vary."""
        size = self._pixels(self.site.input)
        return None if size is None else padded_size(size, self._padded(part))

    def _last(self, part: Part) -> bool:
        return part is self.layer.parts[-1]

    def _part(self, x: ir.Value, part: Part) -> tuple[ir.Value, ManifestPart]:
        held, padding = signed_codes(self.layer, part), self._padded(part)
        codes = rows = self._once(x, part, lambda: self._quantize(x, part, held), *padding)
        if self._is_patches():
            rows = patch_rows(self.b, codes, len(part.pre), self._window(part))
        pieces = _pieces_of(part)
        if pieces > 1:
            axis_in = self.rank_out - 1 if self.as_rows else 1
            rows = self.b.op("Concat", [rows] * pieces, "repeated", attributes={"axis": axis_in}, dtype=I8)
        weight, kind = self._weight(part)
        product = self._product(part, rows, weight)
        entry = ManifestPart(
            input=x.name,
            codes=codes.name,
            codes_padding=padding,
            rows=rows.name,
            weight=weight.name,
            weight_type=kind,
            accumulator=f"{self.b.prefix}/accumulator",
            accumulator_holds="canonical" if held.offset == 0 else "held",
            node=product.name,
            offset=held.offset,
            offset_table=None if held.offset is not None else "zero_point",
            offset_shift=held.shift,
            layout=("nhwc" if self.as_rows else "nchw") if self.conv else "last",
            scale_at=WEIGHTS if is_static_scale(part) else BEHIND,
            product=self._shape(part),
        )
        if is_static_scale(part):
            return product, entry
        scaled = self.b.op("Mul", [product, self.steps.scalar(part.scale, self.rank_out)], "scaled", dtype=FLOAT)
        return scaled, entry

    def _product(self, part: Part, rows: ir.Value, weight: ir.Value) -> ir.Value:
        """The product of int8 codes with int8 or int4 weights, with all of its epilogue that is constant."""
        b = self.b
        one, zero = b.constant(np.float32(1), "one"), b.constant(np.int8(0), "zero")
        values = b.op("DequantizeLinear", [rows, one, zero], "code_values", dtype=FLOAT)
        scale = b.constant(product_scale(part), "weight_scale")
        axis = {"axis": 1 if self.as_rows else 0}
        real = b.op("DequantizeLinear", [weight, scale], "weight_values", attributes=axis, dtype=FLOAT)
        if self.as_rows:
            return b.op("MatMul", [values, real], "product", dtype=FLOAT)
        bias = self._bias_inside() if self._last(part) else None
        inputs = [values, real, *([] if bias is None else [b.constant(bias, "bias")])]
        return b.op("Conv", inputs, "product", attributes=convolution_attributes(self._window(part)), dtype=FLOAT)

    def _quantize(self, x: ir.Value, part: Part, held: SignedCodes) -> ir.Value:
        b, steps, rank, padding = self.b, self.steps, self.rank, self._padded(part)
        pads = b.constant(image_pads(padding), "pads") if any(padding) else None
        if pads is not None and held.offset is None:
            x = b.op("Pad", [x, pads], "padded_input", dtype=FLOAT)
        m = self._multiplier(part)
        value = b.op("Mul", [x, m], "scaled_input", dtype=FLOAT)
        value = b.op("Round", [value], "rounded", dtype=FLOAT)
        z = part.zero_point.astype(np.float32)
        if not held.saturates:
            value = self._clamped(value, part)
        if held.offset is None:
            value = b.op("Add", [value, steps.scalar(z + held.shift, rank)], "shifted", dtype=FLOAT)
        elif held.offset:
            value = b.op("Add", [value, b.constant(np.float32(held.offset), "offset")], "shifted", dtype=FLOAT)
        one, zero = b.constant(np.float32(1), "one"), b.constant(np.int8(0), "zero")
        if pads is None or held.offset is None:
            return b.op("QuantizeLinear", [value, one, zero], "codes", dtype=I8)
        inside = b.op("QuantizeLinear", [value, one, zero], "codes_inside", dtype=I8)
        # by way of float: TensorRT takes an int8 constant in front of DequantizeLinear only
        code = b.op("QuantizeLinear", [b.constant(np.float32(held.offset), "offset"), one, zero], "code_of_0", dtype=I8)
        return b.op("Pad", [inside, pads, code], "codes", dtype=I8)

    def _weight(self, part: Part) -> tuple[ir.Value, str]:
        """Initializer of the weight codes, made when the file is written, and its element type."""
        make = functools.partial(_weight_array, part, as_rows=self.as_rows, conv=self.conv)
        shape = list(part.w_code.shape[1:])
        if self.as_rows:
            shape = [_pieces_of(part) * int(np.prod(shape[1:])), shape[0]]
        else:
            shape[1] *= _pieces_of(part)
        kind = I4 if self.layer.weight_bits <= 4 and self._fits_int4() else I8
        name = f"{self.b.prefix}/weight"
        lazy = ir.LazyTensor(
            lambda: ir.tensor(make(), dtype=kind, name=name), dtype=kind, shape=ir.Shape(shape), name=name
        )
        return self.b.tensor(lazy), "int4" if kind == I4 else "int8"

    def _shape(self, part: Part) -> ProductShape:
        """What the engine multiplies for one sample."""
        pieces = _pieces_of(part)
        n, k = self.layer.out_channels, pieces * int(np.prod(part.w_code.shape[2:]))
        if not self.conv:
            shape = self.site.input.shape
            middle = list(shape)[1:-1] if shape is not None else []
            known = all(isinstance(size, int) for size in middle)  # a text's length is not
            known_rows = int(np.prod([int(size) for size in middle])) if known else None
            return ProductShape(kind="gemm", m=known_rows, n=n, k=k, nulls=GEMM_NULLS)
        window, size = self._window(part), fixed_size(self.site.output)
        if self.as_rows:
            return ProductShape(kind="gemm", m=None if size is None else size[0] * size[1], n=n, k=k, nulls=GEMM_NULLS)
        return ProductShape(
            kind="conv",
            n=n,
            c=pieces * len(part.pre),
            kernel=window.kernel,
            stride=window.stride,
            padding=window.padding,
            dilation=window.dilation,
            spatial=None if size is None else self._size(part),
            spatial_out=size,
        )

    @functools.cached_property
    def _bias_table(self) -> NDArray[np.float64] | None:
        """What is added to the sum: b less what shifted codes add; None for nothing.

        [1, C_out], or [T, C_out] where it differs by step.
        """
        corrections = [correction_table(part, signed_codes(self.layer, part)) for part in self.layer.parts]
        known = [correction for correction in corrections if correction is not None]
        if self.layer.bias is None and not known:
            return None
        table = np.zeros((1, self.layer.out_channels))
        for correction in known:
            table = table - correction
        if self.layer.bias is not None:
            table = table + self.layer.bias.astype(np.float64)
        return table[:1] if (table == table[0]).all() else table

    def _bias_inside(self) -> F32 | None:
        """The bias of the last convolution, [C_out]; None where that has none."""
        table = self._bias_table
        if self.as_rows or table is None or len(table) > 1 or not is_static_scale(self.layer.parts[-1]):
            return None
        bias: F32 = table[0].astype(np.float32)
        return bias

    def _bias(self, total: ir.Value) -> ir.Value:
        """Add b; less what shifted codes add, by step where the shift or its scale differs by step."""
        table = self._bias_table
        if table is None:
            return total
        bias = table.astype(np.float32)
        if len(bias) > 1:
            name, axis = f"{self.b.prefix}/bias", self.channel_axis
            value = self.steps.rows(bias, name, self.rank_out, channel_axis=axis)
        else:
            shape = [1] * self.rank_out
            shape[self.channel_axis] = -1
            value = self.b.constant(bias[0].reshape(shape), "bias")
        return self.b.op("Add", [total, value], "biased", dtype=FLOAT)

    def _replace(self, y: ir.Value) -> str:
        """Hand y on in the layout of the float graph; these moves are part of the float graph, not of the layer."""
        site, b = self.site, self.b
        if self.conv and self.as_rows:
            b.prefix = f"out/{self.layer.name}"
            y = b.op("Transpose", [y], "channels_first", attributes={"perm": [0, 2, 1]}, dtype=FLOAT)
            y = b.op("Reshape", [y, self._shape_out()], "image", dtype=FLOAT)
        replace_uses(site.output, y)
        return str(y.name)


def _weight_array(part: Part, *, as_rows: bool, conv: bool) -> NDArray[np.int8]:
    pieces = int8_pieces(part.q_weight(0))
    if as_rows and conv:
        return np.concatenate([patch_matrix(piece) for piece in pieces])
    q_weight = np.concatenate(pieces, axis=1)
    return np.ascontiguousarray((q_weight.T if as_rows else q_weight).astype(np.int8))


def is_static_scale(part: Part) -> bool:
    """Whether the codes of all steps have one scale, which then needs no look-up."""
    return bool((part.scale == part.scale[0]).all())


def product_scale(part: Part) -> F32:
    """The weights' scale beside the product, [C_out]: s * s_w as the numerics round it where s is static, else s_w."""
    scale: F32 = part.weight_scale[0]
    return scale * part.scale[0] if is_static_scale(part) else scale


def _pads_float_somewhere(layer: Layer) -> bool:
    return any(layer.padding) and any(signed_codes(layer, part).offset is None for part in layer.parts)


def _pieces_of(part: Part) -> int:
    return 1 if part.fits_int8 else len(int8_pieces(part.q_weight(0)))


def correction_table(part: Part, held: SignedCodes) -> NDArray[np.float64] | None:
    """What shifted codes add to the float output: s[t] * s_w[n] * shift[t] * sum_k w_q[n, k], [T, C_out] or [1, C_out].

    None where the codes are centred.
    """
    if held.offset == 0:
        return None
    q_weight = part.q_weight(0)
    sums = q_weight.reshape(len(q_weight), -1).sum(axis=1, dtype=np.int64).astype(np.float64)
    unit = part.scale.astype(np.float64) * held.added(part).astype(np.float64)
    table: NDArray[np.float64] = unit[:, None] * (part.weight_scale[0].astype(np.float64) * sums)[None, :]
    return table
