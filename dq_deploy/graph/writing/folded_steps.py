"""Step tables of layers that read several entries of each sample: the frames of a video folded into the batch."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from dq_deploy.errors import RecordError
from dq_deploy.graph.writing.builder import Builder
from dq_deploy.graph.writing.steps import TIMESTEP, StepTables
from dq_deploy.numerics.arrays import F32
from dq_deploy.record import BATCH

INT64 = ir.DataType.INT64


class FoldedSteps:
    """`StepTables` for a leading axis of k entries a sample, of which entry i belongs to sample i // k.

    Args:
        steps: tables of the pass, a row a sample.
        b: of the layer, where nodes are written.
        x: what the layer reads.
        samples: sample of each entry by the size of the leading axis, shared by the layers of a graph.
    """

    def __init__(self, steps: StepTables, b: Builder, x: ir.Value, samples: dict[str, ir.Value]) -> None:
        self._steps, self._b, self._x, self._samples = steps, b, x, samples
        self._repeated: dict[str, ir.Value] = {}

    @property
    def static(self) -> bool:
        """As `StepTables.static`."""
        return self._steps.static

    def scalar(self, table: NDArray[np.generic], rank: int) -> ir.Value:
        """As `StepTables.scalar`, one for each entry of the leading axis."""
        return self._of_entries(self._steps.scalar(table, rank))

    def rows(self, table: F32, name: str, rank: int, *, channel_axis: int = 1) -> ir.Value:
        """As `StepTables.rows`, one for each entry of the leading axis."""
        return self._of_entries(self._steps.rows(table, name, rank, channel_axis=channel_axis))

    def products(self, table: NDArray[np.generic], values: F32, rank: int, axis: int) -> ir.Value:
        """As `StepTables.products`, one for each entry of the leading axis."""
        return self._of_entries(self._steps.products(table, values, rank, axis))

    def codes(self, table: NDArray[np.generic], count: int, rank: int) -> ir.Value:
        """As `StepTables.codes`, one for each entry of the leading axis."""
        return self._of_entries(self._steps.codes(table, count, rank))

    def zero_point(self, table: NDArray[np.generic]) -> ir.Value:
        """As `StepTables.zero_point`, one for each entry of the leading axis."""
        return self._of_entries(self._steps.zero_point(table))

    def ones(self) -> ir.Value:
        """As `StepTables.ones`, one for each entry of the leading axis."""
        return self._of_entries(self._steps.ones())

    def number(self, table: NDArray[np.generic]) -> ir.Value:
        """As `StepTables.number`: one step a batch is every entry's."""
        return self._steps.number(table)

    def entry(self, table: NDArray[np.generic], name: str, *, before: ir.Node) -> ir.Value:
        """As `StepTables.entry`: one step a batch is every entry's."""
        return self._steps.entry(table, name, before=before)

    def _of_entries(self, value: ir.Value) -> ir.Value:
        if value.const_value is not None:
            return value  # with one step bucket it has no axis of samples
        assert value.name is not None
        if value.name not in self._repeated:
            role = f"of_entries{len(self._repeated)}"
            inputs = [value, self._sample_of_entry()]
            self._repeated[value.name] = self._b.op("Gather", inputs, role, attributes={"axis": 0}, dtype=value.dtype)
        return self._repeated[value.name]

    def _sample_of_entry(self) -> ir.Value:
        """Number of the sample of each entry, int64 [entries]."""
        size = _leading(self._x)
        if size not in self._samples:
            self._samples[size] = self._written()
        return self._samples[size]

    def _written(self) -> ir.Value:
        b, layer = self._b, self._b.prefix
        timestep = next((value for value in b.graph.inputs if value.name == TIMESTEP), None)
        if timestep is None:
            raise RecordError(f"traced graph has no input {TIMESTEP!r}, expected one")
        b.prefix = f"dq/steps/folded{len(self._samples)}"
        entries, samples = (self._length(value, role) for value, role in ((self._x, "entries"), (timestep, "samples")))
        each = b.op("Div", [entries, samples], "entries_of_sample", dtype=INT64)
        zero, one = b.constant(np.int64(0), "zero"), b.constant(np.int64(1), "one")
        every = b.op("Range", [zero, entries, one], "every", dtype=INT64)
        found = b.op("Div", [every, each], "sample_of_entry", dtype=INT64)
        b.prefix = layer
        return found

    def _length(self, value: ir.Value, role: str) -> ir.Value:
        """Size of the leading axis, int64 without axes."""
        shape = self._b.op("Shape", [value], f"{role}_shape", attributes={"start": 0, "end": 1}, dtype=INT64)
        return self._b.op("Squeeze", [shape], role, dtype=INT64)


LayerSteps = StepTables | FoldedSteps
"""What a layer looks its step up in."""


def _leading(x: ir.Value) -> str:
    """Size of the leading axis in words; empty where it is not known."""
    size = x.shape[0] if x.shape is not None and len(x.shape) else None
    return str(size.value or "") if isinstance(size, ir.SymbolicDim) else ""


def steps_of(steps: StepTables, b: Builder, x: ir.Value, samples: dict[str, ir.Value]) -> LayerSteps:
    """The tables that fit a layer: a row a sample, or one for each entry of a leading axis that holds more."""
    leading = _leading(x)
    return steps if steps.shared or leading in ("", BATCH) else FoldedSteps(steps, b, x, samples)
