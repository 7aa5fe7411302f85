"""The step bucket of each sample, computed once in the graph, and the tables looked up with it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from dq_deploy.errors import RecordError
from dq_deploy.graph.writing.builder import Builder
from dq_deploy.graph.writing.channel_steps import ChannelSteps
from dq_deploy.numerics.arrays import F32

TIMESTEP = "timestep"
SPREAD_TIMESTEP = "dq/border/timestep/one_each"
"""Name of the tensor with one timestep a sample, where the input may have one for the whole batch."""
BUCKET = "dq/steps/bucket"
"""Name of the tensor that holds the bucket: int64 [B], or [1] where a batch shares one step."""


class StepTables:
    """Per-step scalars of all layers, fetched by one Gather and one Split a rank.

    A scalar of rank r has shape [B, 1, ...] with r axes, so it broadcasts against any tensor of that rank.

    Args:
        graph: traced graph with an input named `timestep`.
        edges: [T-1] float32 bucket edges.
        shared_step: take the first sample's step for the whole batch; scalars then have a batch of 1.
    """

    def __init__(self, graph: ir.Graph, edges: F32, *, shared_step: bool = False) -> None:
        self._graph = graph
        self._edges = edges
        self._shared = shared_step
        self._first = next(iter(graph))
        self._columns: dict[int, list[F32]] = {}
        self._values: dict[tuple[int, bytes], ir.Value] = {}
        self._numbers: dict[tuple[str, bytes], tuple[ir.Value, NDArray[np.generic]]] = {}
        self._rows: list[tuple[ir.Value, F32]] = []
        self._of_channels = ChannelSteps(graph, self._first, len(edges) + 1)
        self._bucket_scalar = ir.Value(name="dq/steps/bucket_scalar", type=ir.TensorType(ir.DataType.INT64))

    @property
    def shared(self) -> bool:
        """Whether a batch has one step."""
        return self._shared

    @property
    def static(self) -> bool:
        """Whether there is one step bucket."""
        return len(self._edges) == 0

    def scalar(self, table: NDArray[np.generic], rank: int) -> ir.Value:
        """Value of a [T] or [1] table at each sample's step, float32 with `rank` axes."""
        steps = len(self._edges) + 1
        column = np.asarray(table, np.float32)
        column = np.ascontiguousarray(np.broadcast_to(column, (steps,)) if len(column) == 1 else column)
        key = (rank, column.tobytes())
        if key not in self._values:
            columns = self._columns.setdefault(rank, [])
            name = f"dq/steps/rank{rank}/{len(columns)}"
            columns.append(column)
            self._values[key] = ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT))
        return self._values[key]

    def number(self, table: NDArray[np.generic]) -> ir.Value:
        """One-element vector with a [T] or [1] table's value at the batch's one step, in the table's dtype."""
        steps = len(self._edges) + 1
        column = np.ascontiguousarray(np.broadcast_to(table, (steps,)))
        key = (column.dtype.name, column.tobytes())
        if key not in self._numbers:
            index = sum(1 for kind, _ in self._numbers if kind == key[0])
            dtype = ir.DataType.from_numpy(column.dtype)
            value = ir.Value(name=f"dq/steps/{key[0]}/{index}", type=ir.TensorType(dtype))
            self._numbers[key] = (value, column)
        return self._numbers[key][0]

    def entry(self, table: NDArray[np.generic], name: str, *, before: ir.Node) -> ir.Value:
        """Row of a [T, N] table at the batch's one step, as [N] in the table's dtype; needs a shared step.

        Args:
            table: [T, N] or static [1, N].
            name: name of the resulting tensor.
            before: node in front of which it is looked up.
        """
        if not self._shared:
            raise RecordError("a table row without a batch axis needs one step a batch")
        steps = len(self._edges) + 1
        full = np.ascontiguousarray(np.broadcast_to(table, (steps, table.shape[1])))
        b = Builder(self._graph, before, name)
        source = b.tensor(ir.tensor(full, name=f"{name}/table"))
        flat = b.op("Gather", [source, self._bucket_scalar], "row", attributes={"axis": 0}, dtype=source.dtype)
        return flat

    def rows(self, table: F32, name: str, rank: int, *, channel_axis: int = 1) -> ir.Value:
        """Row of a [T, C] or [1, C] table at each sample's step: float32 [B, C, 1, ...] with `rank` axes.

        Args:
            table: [T, C] or static [1, C].
            name: name of the resulting tensor.
            rank: number of its axes.
            channel_axis: axis of C, 1 or the last.
        """
        steps = len(self._edges) + 1
        full = np.ascontiguousarray(np.broadcast_to(table, (steps, table.shape[1])))
        value = ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT))
        shape = [1] * (rank - 1)
        shape[channel_axis - 1] = full.shape[1]
        self._rows.append((value, full.reshape(steps, *shape)))
        return value

    def products(self, table: NDArray[np.generic], values: F32, rank: int, axis: int) -> ir.Value:
        """As `ChannelSteps.products`."""
        return self._of_channels.products(table, values, rank, axis)

    def codes(self, table: NDArray[np.generic], count: int, rank: int) -> ir.Value:
        """As `ChannelSteps.codes`."""
        return self._of_channels.codes(table, count, rank)

    def zero_point(self, table: NDArray[np.generic]) -> ir.Value:
        """As `ChannelSteps.zero_point`."""
        return self._of_channels.zero_point(table)

    def ones(self) -> ir.Value:
        """As `ChannelSteps.ones`."""
        return self._of_channels.ones()

    def finish(self) -> None:
        """Insert the bucket and the look-ups at the start of the graph; call once, after the last `scalar`."""
        b = Builder(self._graph, self._first, "dq/steps")
        bucket = self._bucket(b)
        if self._shared:
            shape = b.constant(np.zeros(0, np.int64), "scalar_shape")
            name = self._bucket_scalar.name
            node = ir.Node("", "Reshape", [bucket, shape], outputs=[self._bucket_scalar], name=name)
            self._graph.insert_before(self._first, node)
        for rank, columns in sorted(self._columns.items()):
            table = np.stack(columns, axis=1)
            table = np.ascontiguousarray(table.reshape(*table.shape, *([1] * (rank - 2))))
            outputs = [value for (r, _), value in self._values.items() if r == rank]
            self._look_up(b, f"rank{rank}", table, bucket, outputs, axis=1)
        for value, rows_table in self._rows:
            source = b.tensor(ir.tensor(rows_table, name=f"{value.name}/table"))
            attributes = [ir.AttrInt64("axis", 0)]
            node = ir.Node("", "Gather", [source, bucket], attributes, outputs=[value], name=value.name)
            self._graph.insert_before(self._first, node)
        self._of_channels.write(bucket)
        for kind in sorted({key[0] for key in self._numbers}):
            found = [entry for key, entry in self._numbers.items() if key[0] == kind]
            table = np.stack([column for _, column in found], axis=1)
            self._look_up(b, kind, table, self._bucket_scalar, [value for value, _ in found], axis=0)

    def _look_up(
        self, b: Builder, name: str, table: NDArray[np.generic], index: ir.Value, outputs: list[ir.Value], *, axis: int
    ) -> None:
        """One Gather of a row of the table, and one Split into its numbers."""
        source = b.tensor(ir.tensor(table, name=f"dq/steps/{name}/table"))
        rows = b.op("Gather", [source, index], f"{name}/rows", attributes={"axis": 0})
        attributes = [ir.AttrInt64("axis", axis), ir.AttrInt64("num_outputs", len(outputs))]
        node = ir.Node("", "Split", [rows], attributes, outputs=outputs, name=f"dq/steps/{name}/split")
        self._graph.insert_before(self._first, node)

    def _comparison(self, b: Builder, column: ir.Value) -> tuple[str, list[ir.Value]]:
        """Operator and operands that say which edges each timestep has reached, bool [B, T-1].

        One bucket has no edge: OpenVINO 2026.4 reads a constant without elements as one zero, which every timestep
        reaches. An edge beyond infinity stands for none.
        """
        kind, edges = "GreaterOrEqual", self._edges
        if len(edges) == 0:
            kind, edges = "Greater", np.array([np.inf], np.float32)
        return kind, [column, b.tensor(ir.tensor(edges.reshape(1, -1), name="dq/steps/edges"))]

    def _bucket(self, b: Builder) -> ir.Value:
        timestep = next((v for v in self._graph.inputs if v.name == TIMESTEP), None)
        if timestep is None:
            raise RecordError(f"traced graph has no input {TIMESTEP!r}, expected one")
        value = timestep
        if self._shared:
            value = b.op("Slice", [value, b.constant(np.array([0]), "zero"), b.constant(np.array([1]), "one")], "first")
        column = b.op("Unsqueeze", [value, b.constant(np.array([1]), "axis")], "column")
        passed = b.op(*self._comparison(b, column), "passed")
        counted = b.op("Cast", [passed], "passed_count", attributes={"to": int(ir.DataType.INT32)})
        total = b.op("ReduceSum", [counted, b.constant(np.array([1]), "axis")], "total", attributes={"keepdims": 0})
        return b.op("Cast", [total], "bucket", attributes={"to": int(ir.DataType.INT64)}, dtype=ir.DataType.INT64)
