"""Vectors of channels and of the batch that depend on the step: all layers' in a few nodes at the start of a graph."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from dq_deploy.graph.writing.builder import Builder
from dq_deploy.numerics.arrays import F32

FLOAT, UINT8 = ir.DataType.FLOAT, ir.DataType.UINT8


@dataclass(frozen=True, kw_only=True)
class Group:
    """Vectors that are made together.

    Attributes:
        count: C, their length.
        rank: axes of each, 2 to 4.
        axis: axis of C: the last, or the one in front of it.
        dtype: numpy's name of their type.
    """

    count: int
    rank: int
    axis: int
    dtype: str

    @property
    def name(self) -> str:
        """Prefix of the group's nodes."""
        kind = "factors" if self.dtype == "float32" else "codes"
        return f"dq/steps/{kind}{self.count}/rank{self.rank}axis{self.axis}"

    @property
    def vector_shape(self) -> tuple[int, ...]:
        """Of one vector, without the batch and the axes of 1 behind it that make room for those of others."""
        return (self.count,) if self.axis == self.rank - 1 else (self.count, 1)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Vector:
    output: ir.Value
    table: NDArray[np.generic]
    values: NDArray[np.generic]


@dataclass
class ChannelSteps:
    """What one step bucket a sample makes of tables [T] and vectors of channels.

    With one bucket all of it is constant, and nothing is looked up.

    Attributes:
        graph: edited in place.
        before: node in front of which everything is inserted.
        steps: T.
    """

    graph: ir.Graph
    before: ir.Node
    steps: int
    _groups: dict[Group, dict[bytes, _Vector]] = field(default_factory=dict)
    _zero_points: dict[bytes, tuple[ir.Value, NDArray[np.generic]]] = field(default_factory=dict)
    _ones: ir.Value | None = None

    def products(self, table: NDArray[np.generic], values: F32, rank: int, axis: int) -> ir.Value:
        """A table's entry times each channel's value, rounded once: float32 [B, C] with axes of 1 between or behind.

        Args:
            table: [T] or [1], taken as float32.
            values: [C].
            rank: axes of the result, 2 to 4.
            axis: axis of C: the last, or of 4 axes the third.
        """
        return self._vector(np.asarray(table, np.float32), values, rank, axis)

    def codes(self, table: NDArray[np.generic], count: int, rank: int) -> ir.Value:
        """A table's entry in each of `count` channels on the last axis: uint8 [B, 1, ..., count], rank 3 or 4."""
        return self._vector(np.asarray(table, np.uint8), np.ones(count, np.uint8), rank, rank - 1)

    def zero_point(self, table: NDArray[np.generic]) -> ir.Value:
        """A table's entry of each sample: uint8 [B], the zero point of an axis of samples; [] with one bucket."""
        column = self._column(np.asarray(table, np.uint8))
        if self.steps == 1:
            return self._builder().constant(column[0], "zero_point")
        key = column.tobytes()
        if key not in self._zero_points:
            value = ir.Value(name=f"dq/steps/zero_point/{len(self._zero_points)}", type=ir.TensorType(UINT8))
            self._zero_points[key] = (value, column)
        return self._zero_points[key][0]

    def ones(self) -> ir.Value:
        """1 for each sample: float32 [B], the scale of an axis of samples; [] with one bucket."""
        if self.steps == 1:
            return self._builder().constant(np.float32(1), "one")
        if self._ones is None:
            self._ones = ir.Value(name="dq/steps/ones", type=ir.TensorType(FLOAT))
        return self._ones

    def write(self, bucket: ir.Value) -> None:
        """Insert the nodes; call once, after the last vector was asked for.

        Args:
            bucket: int64 [B].
        """
        b = self._builder()
        for group, vectors in self._groups.items():
            self._write_group(b, group, list(vectors.values()), bucket)
        columns = list(self._zero_points.values())
        if self._ones is not None:
            columns.append((self._ones, np.ones(self.steps, np.float32)))
        for value, column in columns:
            inputs = [b.constant(column, "table"), bucket]
            node = ir.Node("", "Gather", inputs, [ir.AttrInt64("axis", 0)], outputs=[value], name=value.name)
            self.graph.insert_before(self.before, node)

    def _builder(self) -> Builder:
        return Builder(self.graph, self.before, "dq/steps")

    def _column(self, table: NDArray[np.generic]) -> NDArray[np.generic]:
        return np.ascontiguousarray(np.broadcast_to(table, (self.steps,)))

    def _vector(self, table: NDArray[np.generic], values: NDArray[np.generic], rank: int, axis: int) -> ir.Value:
        column, values = self._column(table), np.ascontiguousarray(values)
        group = Group(count=len(values), rank=rank, axis=axis, dtype=values.dtype.name)
        if self.steps == 1:
            lead = (1,) * (rank - len(group.vector_shape))
            return self._builder().constant((column[0] * values).reshape(*lead, *group.vector_shape), "factor")
        vectors = self._groups.setdefault(group, {})
        key = column.tobytes() + values.tobytes()
        if key not in vectors:
            kind = ir.TensorType(ir.DataType.from_numpy(values.dtype))
            output = ir.Value(name=f"{group.name}/{len(vectors)}", type=kind)
            vectors[key] = _Vector(output=output, table=column, values=values)
        return vectors[key].output

    def _write_group(self, b: Builder, group: Group, vectors: list[_Vector], bucket: ir.Value) -> None:
        """[B, number, ..., C] by one Gather and one product, then split along its second axis."""
        b.prefix = group.name
        number, shape = len(vectors), group.vector_shape
        ones = (1,) * (max(group.rank, 3) - 2 - len(shape))  # between the number and C
        table = np.stack([vector.table for vector in vectors], axis=1).reshape(
            self.steps, number, *ones, *[1] * len(shape)
        )
        source = b.tensor(ir.tensor(np.ascontiguousarray(table), name=f"{b.prefix}/table"))
        made = b.op("Gather", [source, bucket], "rows", attributes={"axis": 0}, dtype=source.dtype)
        if group.dtype == "float32":
            values = np.stack([vector.values for vector in vectors]).reshape(number, *ones, *shape)
            held = b.tensor(ir.tensor(values, name=f"{b.prefix}/values"))
            made = b.op("Mul", [made, held], "products", dtype=FLOAT)
        else:
            whole = np.array([1, number, *ones, *shape], np.int64)
            made = b.op("Expand", [made, b.constant(whole, "shape")], "expanded", dtype=UINT8)
        if group.rank == 2:
            made = b.op("Reshape", [made, b.constant(np.array([0, -1]), "flat")], "flat", dtype=FLOAT)
        attributes = [ir.AttrInt64("axis", 1), ir.AttrInt64("num_outputs", number)]
        node = ir.Node("", "Split", [made], attributes, outputs=[v.output for v in vectors], name=f"{b.prefix}/split")
        self.graph.insert_before(self.before, node)
