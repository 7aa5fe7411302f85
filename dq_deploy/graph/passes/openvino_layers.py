"""The form OpenVINO runs in integers on a CPU: Q and DQ with scale 1 around a convolution or matrix product."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from dq_deploy.graph.pass_contract import PassResult
from dq_deploy.graph.writing.builder import convolution_attributes, replace_uses
from dq_deploy.graph.writing.held_codes import PAIR_LIMIT, HeldCodes, held_codes
from dq_deploy.graph.writing.image_sizes import fixed_size, weights_inside
from dq_deploy.graph.writing.layer_writer import LayerWriter, write_layers
from dq_deploy.graph.writing.wide_weights import MOST_PIECES, split_weight
from dq_deploy.manifest.values import ManifestLayer, ManifestPart
from dq_deploy.numerics import FLOAT32_EXACT, worst_pair_product
from dq_deploy.numerics.arrays import Integers
from dq_deploy.numerics.geometry import Pair, Window
from dq_deploy.record import Layer, Part, Record

U8, FLOAT = ir.DataType.UINT8, ir.DataType.FLOAT
MOST_SUMMANDS = 4


def decline_reason(layer: Layer) -> str:
    """Why a layer cannot become an integer product here, or an empty string."""
    if layer.groups != 1:
        return f"convolution has {layer.groups} channel groups; its integer kernels are not proven"
    if any(part.w_code.shape[0] > 1 for part in layer.parts):
        return "weights differ by step; this form has one weight set"
    for part in layer.parts:
        held = held_codes(layer, part)
        if held.offset is None and (layer.q_min, layer.q_max) != (0, 255):
            return f"codes {layer.q_min}..{layer.q_max} with these zero points do not fit 0..255 at any offset"
        if not exact_summands(layer, part, held):
            most = f"{MOST_SUMMANDS} summands" if part.fits_int8 else f"2 summands of {MOST_PIECES} pieces"
            what = "use fewer weight bits"
            if not part.fits_int8:
                what = "a weight zero point lies too far from the codes: use ONNX Runtime or the native engine"
            return f"weights need more than {most} to be exact on every CPU; {what}"
    return ""


Summand = list[Integers]
"""Pieces that add up to a summand and share its product: their rows stand one below the other."""


def exact_summands(layer: Layer, part: Part, held: HeldCodes) -> list[Summand]:
    """The fewest summands of w_q whose products are exact on every CPU; empty where there are too many.

    Two conditions hold for each summand: a pair of u8 x s8 products fits int16, for CPUs without VNNI add pairs there;
    and where anything is still added to the product in float32, it and its terms stay below 2^24. Weights that do not
    fit int8 are cut into pieces, too: a product over them sums in int32.
    """
    z = part.zero_point.astype(np.int64)
    reach = int(max(np.abs(layer.q_min - z).max(), np.abs(layer.q_max - z).max(), np.abs(z).max()))
    largest = max(held.highest, reach) if held.offset is None else reach
    if not part.fits_int8:
        return _wide_summands(part.q_weight(0), held, largest)
    for count in range(1, MOST_SUMMANDS + 1):
        summands = split_weight(part.q_weight(0), count)
        rows = max(int(np.abs(w.astype(np.int64)).reshape(len(w), -1).sum(axis=1).max(initial=0)) for w in summands)
        alone = count == 1 and held.offset is not None
        if all(worst_pair_product(w, held.highest) <= PAIR_LIMIT for w in summands) and (
            alone or largest * rows < FLOAT32_EXACT
        ):
            return [[w] for w in summands]
    return []


def _wide_summands(q_weight: Integers, held: HeldCodes, largest: int) -> list[Summand]:
    """One or two summands: their float32 sum is rounded once, as the accumulator itself is."""
    for count in (1, 2):
        summands = split_weight(q_weight, count)
        rows = max(int(np.abs(w.astype(np.int64)).reshape(len(w), -1).sum(axis=1).max(initial=0)) for w in summands)
        if (count > 1 or held.offset is None) and largest * rows >= FLOAT32_EXACT:
            continue
        found = [_safe_pieces(w, held.highest) for w in summands]
        if all(found):
            return found
    return []


def _safe_pieces(q_weight: Integers, highest: int) -> Summand:
    for count in range(1, MOST_PIECES + 1):
        pieces = split_weight(q_weight, count)
        fit = all(w.min() >= -128 and w.max() <= 127 for w in pieces)
        if fit and worst_pair_product(np.concatenate(pieces, axis=1), highest) <= PAIR_LIMIT:  # pieces are neighbours
            return pieces
    return []


@dataclass
class OpenVinoLayers:
    """Rewrites each layer of the record, Conv, Gemm or MatMul + Add, to what OpenVINO runs in integers.

    - Mul by m = pre * inv_s[t] and Round, so that Q gets integers: OpenVINO's own Q adds before it rounds
    - Max and Min at the sample's bounds, or Add z[t] where the codes of all steps do not share an offset
    - QuantizeLinear and DequantizeLinear to uint8 with scale 1, then Conv or MatMul with int8 weights of scale 1
    - the zero-point correction where codes hold c + z[t], Mul by s[t] * s_w, Add bias

    Weights that would saturate where u8 x s8 pairs are added in int16 become two or more summands with a product
    each. The multipliers come from a look-up by the step, which no compiler can merge with constants in front.

    Layers that the form cannot express stay float; the note and the manifest say why.

    Attributes:
        record: the quantized denoiser.
        entries: filled by `apply`: the manifest's entry of each layer.
    """

    record: Record
    entries: list[ManifestLayer] = field(default_factory=list)
    name: str = "openvino-layers"

    def apply(self, model: ir.Model) -> PassResult:
        """Edit the model in place."""
        return write_layers(
            model, self.record, self.entries, decline=lambda site: decline_reason(site.layer), writer=_QdqWriter
        )


class _QdqWriter(LayerWriter):
    """Q and DQ with scale 1 around a product."""

    def write(self) -> ManifestLayer:
        total, entries = self._parts()
        self._replace(total)
        return self._entry(" + ".join(dict.fromkeys(self.forms)), entries)

    def _part(self, x: ir.Value, part: Part) -> tuple[ir.Value, ManifestPart]:
        held = held_codes(self.layer, part)
        codes, values = self._once(x, part, lambda: self._quantize(x, part, held))
        summands = exact_summands(self.layer, part, held)
        products, canonical = [], []
        for index, pieces in enumerate(summands):
            role = "product" if len(summands) == 1 else f"product{index}"
            product = self._product(values, pieces, role)
            products.append(product)
            corrected = held.offset is None
            canonical.append(self._corrected(product, sum_of(pieces), part, role) if corrected else product)
        total = canonical[0]
        for index, value in enumerate(canonical[1:]):
            total = self.b.op("Add", [total, value], f"sum{index}", dtype=FLOAT)
        shown = products[0] if len(summands) == 1 else total
        holds = "canonical" if held.offset is not None or shown is total else "shifted"
        entry = ManifestPart(
            input=x.name,
            codes=codes.name,
            accumulator=shown.name,
            accumulator_holds="shifted_inside" if holds == "shifted" and any(self.layer.padding) else holds,
            products=tuple(str(value.name) for value in products),
            node=products[0].name,
            offset=held.offset,
            offset_table=None if held.offset is not None else "zero_point",
            layout="nchw" if self.conv else "last",
        )
        scale = self.steps.scalar(part.scale, self.rank)
        factor = self.b.op("Mul", [scale, self._channels(part.weight_scale[0], "weight_scale")], "factor")
        form = "u8 x s8" if len(summands) == 1 else f"u8 x s8 in {len(summands)} summands"
        if len(summands[0]) > 1:
            form += f" of {len(summands[0])} pieces"
        self.forms.append(form)
        return self.b.op("Mul", [total, factor], "scaled", dtype=FLOAT), entry

    def _quantize(self, x: ir.Value, part: Part, held: HeldCodes) -> tuple[ir.Value, ir.Value]:
        b, steps, rank = self.b, self.steps, self.rank
        m = self._multiplier(part)
        value = b.op("Round", [b.op("Mul", [x, m], "scaled_input")], "rounded")
        z = part.zero_point.astype(np.float32)
        if held.offset is None:
            value = b.op("Add", [value, steps.scalar(z, rank)], "shifted")
        elif not held.saturates:
            value = self._clamped(value, part)
        one, zero = b.constant(np.float32(1), "one"), b.constant(np.uint8(held.offset or 0), "offset")
        codes = b.op("QuantizeLinear", [value, one, zero], "codes", dtype=U8)
        return codes, b.op("DequantizeLinear", [codes, one, zero], "code_values", dtype=FLOAT)

    def _product(self, values: ir.Value, pieces: Summand, role: str) -> ir.Value:
        b, layer = self.b, self.layer
        q_weight = np.concatenate(pieces, axis=1)
        if len(pieces) > 1:
            axis_in = 1 if self.conv else self.rank - 1
            repeated = [values] * len(pieces)
            values = b.op("Concat", repeated, f"{role}_values", attributes={"axis": axis_in}, dtype=FLOAT)
        if layer.kernel == (1, 1) and layer.stride != (1, 1) and any(layer.padding):
            # OpenVINO 2026.4 moves the stride of a 1x1 kernel in front of its padding: a column of zeros prevents it
            q_weight = np.pad(q_weight, ((0, 0), (0, 0), (0, 0), (0, 1)))
            moves = replace(layer.window, kernel=(1, 2)).padded_by((0, 0, 0, layer.dilation[1]))
        elif self.conv:
            moves = layer.window
        matrix = q_weight if self.conv else q_weight.T
        weight = self._weight(np.ascontiguousarray(matrix.astype(np.int8)), role)
        ones = b.constant(np.ones(len(q_weight), np.float32), "one")
        zeros = b.constant(np.zeros(len(q_weight), np.int8), "zero")
        axis = {"axis": 0 if self.conv else 1}
        real = b.op("DequantizeLinear", [weight, ones, zeros], f"{role}_weight_values", attributes=axis)
        if not self.conv:
            return b.op("MatMul", [values, real], role, dtype=FLOAT)
        return b.op("Conv", [values, real], role, attributes=convolution_attributes(moves), dtype=FLOAT)

    def _weight(self, matrix: NDArray[np.int8], role: str) -> ir.Value:
        """int8 weights; stored as int4 where they fit, for a Cast that is folded when the model is compiled."""
        b = self.b
        name = f"{b.prefix}/{role}_weight"
        if matrix.min(initial=0) < -8 or matrix.max(initial=0) > 7:
            return b.tensor(ir.tensor(matrix, name=name))
        packed = b.tensor(ir.tensor(matrix, dtype=ir.DataType.INT4, name=name))
        attributes = {"to": int(ir.DataType.INT8)}
        return b.op("Cast", [packed], f"{role}_weight_s8", attributes=attributes, dtype=ir.DataType.INT8)

    def _corrected(self, product: ir.Value, q_weight: Integers, part: Part, role: str) -> ir.Value:
        """The product less z[t] * sum(w), the sum taken over what lies inside the image: padding holds code 0."""
        b = self.b
        if any(self.layer.padding):
            sums = self._sums_inside(q_weight, role)
        else:
            rows_of_weights = q_weight.reshape(len(q_weight), -1).astype(np.int64)
            sums = self._channels(rows_of_weights.sum(axis=1).astype(np.float32), f"{role}_weight_sums")
        z = self.steps.scalar(part.zero_point, self.rank)
        correction = b.op("Mul", [z, sums], f"{role}_correction")
        return b.op("Sub", [product, correction], f"{role}_canonical", dtype=FLOAT)

    def _sums_inside(self, q_weight: Integers, role: str) -> ir.Value:
        """Sums of the weights inside the image, [1, C_out, H_out, W_out]; computed where its size varies."""
        b, window, size = self.b, self.layer.window, fixed_size(self.site.input)
        if size is None:
            taps = b.constant(q_weight.astype(np.int64).sum(axis=1)[None].astype(np.float32), f"{role}_taps")
            return weights_inside(b, self.shared.images, self.site.input, window, taps, role)
        table, rows, columns = sums_inside(window, q_weight, size)
        sums = b.constant(table, f"{role}_weight_sums")
        for axis, index in ((2, rows), (3, columns)):
            sums = b.op("Gather", [sums, b.constant(index, "border")], f"{role}_sums{axis}", attributes={"axis": axis})
        return sums

    def _replace(self, y: ir.Value) -> None:
        if self.layer.bias is not None:
            bias = self._bias_value(self.rank, 1 if self.conv else self.rank - 1)
            y = self.b.op("Add", [y, bias], "biased", dtype=FLOAT)
        y.shape = self.site.output.shape
        replace_uses(self.site.output, y)


def sum_of(pieces: Summand) -> Integers:
    """What the pieces of a summand add up to."""
    total = pieces[0].copy()
    for piece in pieces[1:]:
        total += piece
    return total


def sums_inside(
    window: Window, q_weight: NDArray[np.integer], size: Pair
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
    """Sums of the weights that fall on pixels and not on padding.

    Most output pixels see no padding, so only distinct rows and columns are stored: `table[:, :, rows][..., columns]`
    is the whole map.

    Args:
        window: how the convolution moves.
        q_weight: [C_out, C_in, kh, kw] integers.
        size: height and width of its input.

    Returns:
        table float32 [1, C_out, R, S], rows int64 [H_out], columns int64 [W_out].
    """
    taps = q_weight.astype(np.int64).sum(axis=1)
    (rows, row_of), (columns, column_of) = (
        np.unique((at >= 0) & (at < extent), axis=0, return_inverse=True)
        for at, extent in zip(window.positions(size), size, strict=True)
    )
    table = np.einsum("nij,ri,sj->nrs", taps, rows.astype(np.int64), columns.astype(np.int64))
    return table[None].astype(np.float32), row_of.reshape(-1).astype(np.int64), column_of.reshape(-1).astype(np.int64)
