"""The integer layers simulated in float32 inside the same float graph: what an engine must reproduce end to end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from dq_deploy.errors import RecordError
from dq_deploy.graph.pass_contract import PassResult
from dq_deploy.graph.writing.builder import Builder, convolution_attributes, replace_uses
from dq_deploy.graph.writing.folded_steps import LayerSteps, steps_of
from dq_deploy.graph.writing.layer_writer import bias_value
from dq_deploy.graph.writing.sites import Site, find_sites
from dq_deploy.graph.writing.steps import StepTables
from dq_deploy.numerics import FLOAT32_EXACT, bias_codes, reciprocal
from dq_deploy.record import Part, Record

FLOAT = ir.DataType.FLOAT


@dataclass
class SimulatedLayers:
    """Rewrites each layer of the record (Conv, Gemm or MatMul + Add) to float operations on integer values.

    - Mul by m = pre * inv_s[t], Round, Max and Min with the sample's bounds: centred codes in float32
    - the float Conv or MatMul with integer weights, exact because every partial sum is an integer below 2^24
      (weights that reach it are split into 16 * high + low, and the two products are added)
    - Mul by s[t] * s_w, Add bias

    No integer kernel is used, and all other operations are those of the integer graph. So an engine whose integer
    layers are right gives the same output, bit for bit.

    Attributes:
        record: the quantized denoiser.
        requantize: simulate mode fast: convolutions give 8-bit codes of out_s[t], out_z[t], dequantized again.
    """

    record: Record
    requantize: bool = False
    name: str = "simulated-layers"

    def apply(self, model: ir.Model) -> PassResult:
        """Edit the model in place."""
        graph = model.graph
        steps = StepTables(graph, self.record.step_edges)
        samples: dict[str, ir.Value] = {}
        for site in find_sites(graph, self.record):
            b = Builder(graph, site.node, f"sim/{site.layer.name}")
            of_layer = steps_of(steps, b, site.input, samples)
            _SimulationWriter(site, of_layer, b, requantize=self.requantize).write()
        steps.finish()
        return PassResult(model=model, modified=True)


class _SimulationWriter:
    """Writes the nodes of one layer in front of its float node."""

    def __init__(self, site: Site, steps: LayerSteps, b: Builder, *, requantize: bool) -> None:
        self.site, self.layer, self.steps, self.b = site, site.layer, steps, b
        self.conv = self.layer.kind == "conv2d"
        self.requantize = requantize and self.conv and self.layer.out_scale is not None
        shape = site.input.shape
        self.rank = 4 if self.conv else len(shape) if shape is not None else 3
        self.axis = 1 if self.conv else self.rank - 1

    def write(self) -> None:
        total: ir.Value | None = None
        start = 0
        for index, part in enumerate(self.layer.parts):
            self.b.prefix = f"sim/{self.layer.name}/part{index}"
            term = self._part(self._slice(start, len(part.pre)), part)
            start += len(part.pre)
            role = "parts_sum" if index < 2 else f"parts_sum{index}"
            total = term if total is None else self.b.op("Add", [total, term], role)
        assert total is not None
        if self.layer.bias is not None and not self.requantize:
            self.b.prefix = f"sim/{self.layer.name}"
            bias = bias_value(self.steps, self.b, self.layer.bias, rank=self.rank, axis=self.axis)
            total = self.b.op("Add", [total, bias], "biased")
        replace_uses(self.site.output, total)

    def _channels(self, values: np.ndarray) -> np.ndarray:
        shape = [1] * self.rank
        shape[self.axis] = -1
        return values.reshape(shape)

    def _slice(self, start: int, width: int) -> ir.Value:
        if len(self.layer.parts) == 1:
            return self.site.input
        limits = [self.b.constant(np.array([v], np.int64), "limit") for v in (start, start + width, self.axis)]
        return self.b.op("Slice", [self.site.input, *limits], "input", dtype=FLOAT)

    def _part(self, x: ir.Value, part: Part) -> ir.Value:
        b, steps = self.b, self.steps
        if part.w_code.shape[0] > 1:
            raise RecordError(f"layer {self.layer.name} has weights that differ by step; the simulation has one set")
        m = steps.scalar(reciprocal(part.scale), self.rank)
        if not (part.pre == 1).all():
            m = b.op("Mul", [m, b.constant(self._channels(part.pre), "pre")], "multiplier")
        value = b.op("Round", [b.op("Mul", [x, m], "scaled_input")], "rounded")
        z = part.zero_point.astype(np.float32)
        value = b.op("Max", [value, steps.scalar(self.layer.q_min - z, self.rank)], "at_least")
        codes = b.op("Min", [value, steps.scalar(self.layer.q_max - z, self.rank)], "codes")
        accumulator = self._accumulator(codes, part)
        weight_scale = b.constant(self._channels(part.weight_scale[0]), "weight_scale")
        factor = b.op("Mul", [steps.scalar(part.scale, self.rank), weight_scale], "factor")
        if self.requantize:
            return self._requantized(accumulator, factor, part)
        return b.op("Mul", [accumulator, factor], "scaled")

    def _requantized(self, accumulator: ir.Value, unit: ir.Value, part: Part) -> ir.Value:
        """`numerics.requantize_accumulator`, then back to float."""
        b, layer, steps = self.b, self.layer, self.steps
        assert layer.out_scale is not None
        assert layer.out_zero_point is not None
        if layer.bias is not None:
            table = bias_codes(layer.bias, scale=part.scale, weight_scale=part.weight_scale[0]).astype(np.float32)
            accumulator = b.op("Add", [accumulator, steps.rows(table, f"{b.prefix}/bias", self.rank)], "biased")
        out_scale = steps.scalar(layer.out_scale, self.rank)
        z = layer.out_zero_point.astype(np.float32)
        multiplier = b.op("Div", [unit, out_scale], "multiplier_out")
        value = b.op("Round", [b.op("Mul", [accumulator, multiplier], "scaled_out")], "rounded_out")
        value = b.op("Max", [value, steps.scalar(-z, self.rank)], "at_least_out")
        value = b.op("Min", [value, steps.scalar(255 - z, self.rank)], "at_most_out")
        return b.op("Mul", [value, out_scale], "out", dtype=FLOAT)

    def _accumulator(self, codes: ir.Value, part: Part) -> ir.Value:
        weight = part.q_weight(0).astype(np.int64)
        z = part.zero_point.astype(np.int64)
        reach = int(max(np.abs(self.layer.q_min - z).max(), np.abs(self.layer.q_max - z).max()))
        if _row_bound(weight) * reach < FLOAT32_EXACT:
            return self._product(codes, weight, "product")
        high = (weight + 8) >> 4
        low = weight - 16 * high
        if max(_row_bound(high), _row_bound(low)) * reach >= FLOAT32_EXACT:
            raise RecordError(f"layer {self.layer.name} is too wide to be simulated exactly in float32")
        above = self._product(codes, high, "product_high")
        sixteen = self.b.constant(np.float32(16), "sixteen")
        shifted = self.b.op("Mul", [above, sixteen], "shifted")
        return self.b.op("Add", [shifted, self._product(codes, low, "product_low")], "product")

    def _product(self, codes: ir.Value, weight: np.ndarray, role: str) -> ir.Value:
        b, layer = self.b, self.layer
        if not self.conv:
            matrix = np.ascontiguousarray(weight.T.astype(np.float32))
            return b.op("MatMul", [codes, b.constant(matrix, f"{role}_weight")], role, dtype=FLOAT)
        kernel = b.constant(weight.astype(np.float32), f"{role}_weight")
        attributes: dict[str, int | Sequence[int]] = {**convolution_attributes(layer.window), "group": layer.groups}
        return b.op("Conv", [codes, kernel], role, attributes=attributes, dtype=FLOAT)


def _row_bound(weight: np.ndarray) -> int:
    """Largest sum of |w| over an output channel."""
    return int(np.abs(weight).reshape(len(weight), -1).sum(axis=1).max(initial=0))
