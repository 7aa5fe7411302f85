"""Copies of a shipped ONNX file that show what happens inside, and small pieces cut out of it."""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dq_deploy.open_engine import open_engine

if TYPE_CHECKING:
    import onnx

    from dq_deploy.engines.base import Runner


class ShippedGraph:
    """The ONNX file under proof; it is read once and never changed.

    Args:
        path: ONNX file, with its data file beside it where it has one.
        folder: scratch folder for the copies.
        engine: engine that runs them.
        threads: threads of one run; None lets the engine decide.
        optimize: False runs the nodes one by one as they stand.
        products: nodes that show an accumulator the file itself does not hold, see `integer_products`; each is added
            to a copy only where it is asked for.
    """

    def __init__(
        self,
        path: Path,
        folder: Path,
        *,
        engine: str,
        threads: int | None,
        optimize: bool = True,
        products: Sequence[onnx.NodeProto] = (),
    ) -> None:
        import onnx

        self.path, self.folder, self.engine, self.threads = path, folder, engine, threads
        self.optimize, self._products = optimize, tuple(products)
        self.proto = onnx.load(str(path), load_external_data=False)
        self._count = 0
        graph = self.proto.graph
        self.outputs = [value.name for value in graph.output]
        self.inputs = [value.name for value in graph.input]
        self.producer = {name: node for node in (*graph.node, *self._products) for name in node.output if name}
        self.tensors = set(self.producer) | set(self.inputs)
        for location in _external_files(self.proto):
            _link(path.parent / location, folder / location)

    def node(self, name: str, output: str) -> onnx.NodeProto | None:
        """A node by its name, or by the tensor it makes."""
        named = [node for node in self.proto.graph.node if node.name == name]
        return named[0] if named else self.producer.get(output)

    def with_outputs(self, names: Iterable[str]) -> Path:
        """A copy that also returns inner tensors: names that are no inner tensors are left out."""
        import onnx

        proto = _shallow(self.proto)
        present = [name for name in dict.fromkeys(names) if name in self.producer and name not in self.outputs]
        if self._products:
            wanted = self._leading_to(present, set())
            proto.graph.node.extend(node for node in self._products if id(node) in wanted)
        proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in present)
        return self._save(proto)

    def piece(self, inputs: Mapping[str, tuple[int, Sequence[int | str]]], outputs: Sequence[str]) -> Path:
        """The nodes that lead from some tensors to others, as a model of its own.

        Args:
            inputs: tensor to be fed: ONNX element type and shape.
            outputs: tensors to be returned.
        """
        import onnx

        graph = self.proto.graph
        nodes = self._leading_to(outputs, set(inputs))
        kept = [node for node in (*graph.node, *self._products) if id(node) in nodes]
        used = {name for node in kept for name in node.input} | set(outputs)
        proto = onnx.ModelProto(ir_version=self.proto.ir_version)
        proto.opset_import.extend(self.proto.opset_import)
        proto.graph.name = "piece"
        proto.graph.node.extend(kept)
        proto.graph.initializer.extend(v for v in graph.initializer if v.name in used)
        for name in [name for name in self.inputs if name in used and name not in inputs]:
            proto.graph.input.extend(v for v in graph.input if v.name == name)
        for name, (kind, shape) in inputs.items():
            proto.graph.input.append(onnx.helper.make_tensor_value_info(name, kind, list(shape)))
        proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
        return self._save(proto)

    def _leading_to(self, outputs: Sequence[str], given: set[str]) -> set[int]:
        """Ids of the nodes that lead from given tensors to others."""
        wanted, seen, nodes = list(outputs), set(given), set()
        while wanted:
            name = wanted.pop()
            if name in seen or name not in self.producer:
                continue
            seen.add(name)
            node = self.producer[name]
            nodes.add(id(node))
            wanted += [source for source in node.input if source]
        return nodes

    def open(self, path: Path, *, optimized: Path | None = None) -> Runner:
        """A runner of a copy, of a piece, or of the shipped file itself."""
        return open_engine(
            path,
            engine=self.engine,
            threads=self.threads,
            finite_check=False,
            optimized_model_path=optimized,
            require_manifest=False,
            optimize=self.optimize,
            hash_check=False,
        )

    def scratch(self, suffix: str) -> Path:
        """A fresh file name in the scratch folder."""
        self._count += 1
        return self.folder / f"{self._count}{suffix}"

    def _save(self, proto: onnx.ModelProto) -> Path:
        path = self.scratch(".onnx")
        path.write_bytes(proto.SerializeToString())
        return path


def _shallow(proto: onnx.ModelProto) -> onnx.ModelProto:
    return copy.deepcopy(proto)


def _external_files(proto: onnx.ModelProto) -> list[str]:
    found: dict[str, None] = {}
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                found[entry.value] = None
    return list(found)


def _link(source: Path, target: Path) -> None:
    """A second name for the data file where the disk allows it, else a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def initializer(proto: onnx.ModelProto, name: str, folder: Path) -> Any:
    """Values of an initializer or Constant, None where there is none.

    Cast, Identity and Transpose are followed back. A DequantizeLinear is followed to the integers in front of it.

    Args:
        proto: model, optimized or not.
        name: tensor.
        folder: where its data file lies.
    """
    import numpy as np
    import onnx
    from onnx import numpy_helper

    from dq_deploy.graph.external_data import with_values_inside

    for tensor in proto.graph.initializer:
        if tensor.name == name:
            return numpy_helper.to_array(with_values_inside(tensor, folder))
    node = next((n for n in proto.graph.node if name in n.output), None)
    if node is None:
        return None
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    if node.op_type == "Constant" and "value" in attributes:
        return numpy_helper.to_array(with_values_inside(attributes["value"], folder))
    if node.op_type not in ("Cast", "Identity", "Transpose", "DequantizeLinear"):
        return None
    source = initializer(proto, node.input[0], folder)
    if source is None or node.op_type in ("Identity", "DequantizeLinear"):
        return source
    if node.op_type == "Transpose":
        return np.transpose(source, attributes.get("perm"))
    return source.astype(onnx.helper.tensor_dtype_to_np_dtype(attributes["to"]))
