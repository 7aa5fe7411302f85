"""Edits of an exported engine, each one fault: the manifest stays as it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


class Engine:
    """An exported ONNX file that is damaged on purpose."""

    def __init__(self, path: Path) -> None:
        self.proto = onnx.load(str(path))
        self.graph = self.proto.graph

    def save(self, path: Path) -> Path:
        path.write_bytes(self.proto.SerializeToString())
        return path

    def node(self, name: str) -> onnx.NodeProto:
        return next(node for node in self.graph.node if node.name == name)

    def array(self, name: str) -> np.ndarray:
        return np.array(numpy_helper.to_array(self._tensor(name)))

    def store(self, name: str, array: np.ndarray) -> None:
        self._tensor(name).CopyFrom(numpy_helper.from_array(array, name))

    def add_constant(self, name: str, array: np.ndarray) -> str:
        self.graph.initializer.append(numpy_helper.from_array(array, name))
        return name

    def weight_name(self, layer: str) -> str:
        """Initializer behind the weights of a layer's product."""
        name = self.node(f"dq/{layer}/product").input[1]
        makers = {out: node for node in self.graph.node for out in node.output}
        while name in makers:
            name = makers[name].input[0]
        return name

    def change_column(self, value: str, step: int, by: float) -> None:
        """Add to one step's entry of the table column behind a per-step value, one of a `Split` or alone."""
        maker = self._maker(value)
        column = list(maker.output).index(value)
        name = self.table_behind(value)
        table = self.array(name)
        table[(step, column) if table.ndim > 1 else step] += by
        self.store(name, table)

    def change_values(self, value: str, how: Callable[[np.ndarray], np.ndarray]) -> None:
        """Edit the channels' values that a per-step value is the product of."""
        split = self._maker(value)
        name = self._maker(split.input[0]).input[1]
        values = self.array(name)
        column = list(split.output).index(value)
        values[column] = how(values[column])
        self.store(name, values)

    def table_behind(self, value: str) -> str:
        """Initializer whose rows are looked up by the step bucket for a value."""
        node = self._maker(value)
        while node.op_type != "Gather":
            node = self._maker(node.input[0])
        return node.input[0]

    def _maker(self, value: str) -> onnx.NodeProto:
        return next(node for node in self.graph.node if value in node.output)

    def insert_before(self, anchor: str, nodes: list[onnx.NodeProto]) -> None:
        at = next(i for i, node in enumerate(self.graph.node) if node.name == anchor)
        for offset, node in enumerate(nodes):
            self.graph.node.insert(at + offset, node)

    def swap_inputs(self, first: tuple[str, int], second: tuple[str, int]) -> None:
        a, b = self.node(first[0]), self.node(second[0])
        a.input[first[1]], b.input[second[1]] = b.input[second[1]], a.input[first[1]]

    def _tensor(self, name: str) -> TensorProto:
        return next(tensor for tensor in self.graph.initializer if tensor.name == name)


def flip_weight_code(engine: Engine, layer: str) -> None:
    """The last weight code becomes its neighbour."""
    name = engine.weight_name(layer)
    codes = engine.array(name)
    kind = codes.dtype
    wide = codes.astype(np.int32)
    wide[-1, -1] += -1 if wide[-1, -1] > 0 else 1
    engine.store(name, wide.astype(kind))


def shift_zero_point(engine: Engine, layer: str, step: int) -> None:
    """The zero point added to the codes is one more at one step."""
    engine.change_column(engine.node(f"dq/{layer}/codes").input[2], step, 1)


def shift_upper_bound(engine: Engine, layer: str, step: int) -> None:
    """The upper bound q_max - z is one more at one step, as a zero point off by one makes it."""
    engine.change_column(engine.node(f"dq/{layer}/at_most").input[1], step, 1)


def pad_with_another_code(engine: Engine, layer: str) -> None:
    """The padding holds z - 1 instead of z."""
    padded = engine.node(f"dq/{layer}/padded")
    one = engine.add_constant("sabotage/one", np.int32(1))
    wide = helper.make_node("Cast", [padded.input[1]], ["sabotage/wide"], to=TensorProto.INT32)
    less = helper.make_node("Sub", ["sabotage/wide", one], ["sabotage/less"])
    narrow = helper.make_node("Cast", ["sabotage/less"], ["sabotage/pad"], to=TensorProto.UINT8)
    engine.insert_before(padded.name, [wide, less, narrow])
    padded.input[1] = "sabotage/pad"


def pad_with_neighbour(engine: Engine, layer: str) -> None:
    """The first padded position takes the first pixel instead of the padding."""
    gather = engine.node(f"dq/{layer}/gathered")
    index = gather.input[1]  # computed from the size of the picture; its largest entry is the padding's
    largest = helper.make_node("ReduceMax", [index], ["sabotage/largest"], keepdims=0)
    moved = helper.make_node("Mod", [index, "sabotage/largest"], ["sabotage/index"])
    engine.insert_before(gather.name, [largest, moved])
    gather.input[1] = "sabotage/index"


def move_edge(engine: Engine, index: int) -> None:
    """One bucket edge lies one float32 number higher."""
    edges = engine.array("dq/steps/edges")
    edges[0, index] = np.nextafter(edges[0, index], np.float32(np.inf))
    engine.store("dq/steps/edges", edges)


def swap_input_tables(engine: Engine, first: str, second: str) -> None:
    """Two layers take each other's inv_s[t]."""
    engine.swap_inputs((f"dq/{first}/scaled_input", 1), (f"dq/{second}/scaled_input", 1))


def swap_output_tables(engine: Engine, first: str, second: str) -> None:
    """Two layers take each other's s[t] s_w behind the accumulator."""
    engine.swap_inputs((f"dq/{first}/scaled", 1), (f"dq/{second}/scaled", 1))


def store_weights_signed(engine: Engine, layer: str) -> None:
    """8-bit weights as s8 against u8 codes: right on this machine or not, wrong on some."""
    product = engine.node(f"dq/{layer}/product")
    codes = engine.array(product.input[1]).astype(np.int16) - 128
    product.input[1] = engine.add_constant("sabotage/weight", codes.astype(np.int8))
    product.input[5] = engine.add_constant("sabotage/zero", np.int8(0))


def fall_back_to_float(engine: Engine, layer: str) -> None:
    """The integer product becomes a float product of the same numbers."""
    product = engine.node(f"dq/{layer}/product")
    rows, weight, _, _, zero_a, zero_b = product.input
    nodes = []
    for role, name in (("rows", rows), ("weight", weight), ("zero_a", zero_a), ("zero_b", zero_b)):
        nodes.append(helper.make_node("Cast", [name], [f"sabotage/{role}"], to=TensorProto.FLOAT))
    nodes.append(helper.make_node("Sub", ["sabotage/rows", "sabotage/zero_a"], ["sabotage/a"]))
    nodes.append(helper.make_node("Sub", ["sabotage/weight", "sabotage/zero_b"], ["sabotage/b"]))
    engine.insert_before(product.name, nodes)
    product.CopyFrom(helper.make_node("MatMul", ["sabotage/a", "sabotage/b"], list(product.output), name=product.name))
