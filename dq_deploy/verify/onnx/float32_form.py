"""The float32 form of a graph whose float operations are narrower: same record and options, but for Casts and types.

ONNX Runtime's CPU kernels compute float16 by way of float32 and drop Casts as they see fit, so what such a graph gives
there depends on which tensors are looked at. The float32 form is proven in its place, and the two files are compared
node by node and constant by constant, so that the proof holds for the integers of the file that was given.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dq_deploy.graph.onnx_file import write_onnx
from dq_deploy.manifest.values import EngineManifest
from dq_deploy.targets import engine_graph

if TYPE_CHECKING:
    import onnx_ir as ir

    from dq_deploy.record import Record

WIDE = "float32"
_NARROW = ("float16", "bfloat16")
_ADDED = "cast/"

Node = tuple[str, str, str, tuple[str, ...], tuple[str, ...], tuple[str, ...]]


def is_narrow(manifest: EngineManifest) -> bool:
    """Whether the float operations of a graph are in float16 or bfloat16."""
    return manifest.options is not None and manifest.options.float_type in _NARROW


def float32_form(
    record: Record, path: Path, manifest: EngineManifest, folder: Path, *, traced: ir.Model
) -> tuple[Path, str]:
    """Export the float32 form of a graph and compare the two.

    Args:
        record: what the graph was exported from.
        path: the graph, its float operations in float16 or bfloat16.
        manifest: of it.
        folder: where the float32 form goes.
        traced: the record's denoiser, traced.

    Returns:
        The float32 form, with its manifest; what the graphs differ in besides Casts and float types, in words, or an
        empty string.
    """
    form = folder / f"{path.stem}.{WIDE}.onnx"
    conv = None if manifest.options is None else manifest.options.conv
    made = engine_graph(record, target=manifest.target, float_type=WIDE, conv=conv, traced=traced)
    write_onnx(made.model, form, made.manifest)
    difference = first_difference(path, form)
    if not difference:
        return form, ""
    return form, (
        f"graph {path.name} differs from the {WIDE} graph of the same record in more than Casts and float types: "
        f"{difference}; export it again"
    )


def narrow_note(manifest: EngineManifest) -> str:
    """What was proven in place of the file that was given."""
    float_type = None if manifest.options is None else manifest.options.float_type
    return (
        f"the float part of this graph is in {float_type}; its {WIDE} form was proven, and the "
        "file differs from that in Casts and float types alone, compared node by node and constant by constant"
    )


def first_difference(narrow: Path, wide: Path) -> str:
    """What differs between two graphs besides Casts and float types, or an empty string.

    Args:
        narrow: ONNX file with its float operations in float16 or bfloat16.
        wide: the same in float32.
    """
    a, b = _graph(narrow), _graph(wide)
    ours, theirs = sorted(_nodes(a)), sorted(_nodes(b))
    for mine, other in zip(ours, theirs, strict=False):
        if mine != other:
            return f"node {mine[1]} ({mine[0]}) stands for {other[1]} ({other[0]})"
    if len(ours) != len(theirs):
        return f"it has {len(ours)} nodes, expected {len(theirs)}"
    return _different_constant(a, b)


def _graph(path: Path) -> ir.Graph:
    import onnx
    import onnx_ir as ir

    from dq_deploy.graph.external_data import with_values_inside

    proto = onnx.load(str(path), load_external_data=False)
    tensors = [with_values_inside(tensor, path.parent) for tensor in proto.graph.initializer]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(tensors)
    return ir.from_proto(proto).graph


def _nodes(graph: ir.Graph) -> Iterator[Node]:
    """Every node but added Casts, under the names of the float32 form."""
    source = {n.outputs[0].name: n.inputs[0] for n in graph if _is_added(n)}

    def origin(value: ir.Value | None) -> str:
        while value is not None and value.name in source:
            value = source[value.name]
        return "" if value is None else plain(str(value.name))

    ends = {origin(value) for value in graph.outputs}
    for node in graph:
        if not _is_added(node):
            inputs = tuple(origin(value) for value in node.inputs)
            outputs = tuple(origin(value) for value in node.outputs)
            attributes = tuple(sorted(_attribute(node, name) for name in node.attributes))
            at_end = tuple(name for name in outputs if name in ends)
            yield node.op_type, str(node.name), node.domain, inputs, (*outputs, *at_end), attributes


def _is_added(node: ir.Node) -> bool:
    return node.op_type == "Cast" and str(node.name).startswith(_ADDED)


def _attribute(node: ir.Node, name: str) -> str:
    """Name and value; the float types a Cast goes to count as one."""
    value = node.attributes[name].value
    if node.op_type == "Cast" and name == "to" and _is_float(value):
        return "to a float type"
    if hasattr(value, "numpy"):
        array = value.numpy()
        return f"{name}={'float' if _is_float(array.dtype) else array.dtype} {array.astype(np.float64).tolist()}"
    return f"{name}={value!r}"


def _is_float(kind: Any) -> bool:
    import onnx_ir as ir

    if isinstance(kind, np.dtype):
        return str(kind) in (WIDE, *_NARROW)
    return kind in (int(ir.DataType.FLOAT), int(ir.DataType.FLOAT16), int(ir.DataType.BFLOAT16))


def plain(name: str) -> str:
    """The name a tensor has in the float32 form."""
    for suffix in _NARROW:
        name = name.removesuffix(f"/{suffix}")
    return name


def _different_constant(narrow: ir.Graph, wide: ir.Graph) -> str:
    names = {plain(name) for name in narrow.initializers}
    if names != set(wide.initializers):
        return f"constant {min(names ^ set(wide.initializers))} is only in one of them"
    for name, value in narrow.initializers.items():
        mine, other = value.const_value, wide.initializers[plain(name)].const_value
        if mine is None or other is None:
            return f"constant {name} has no value"
        expected, got = other.numpy(), mine.numpy()
        if mine.dtype != other.dtype and _is_float(mine.dtype) and _is_float(other.dtype):
            expected = expected.astype(got.dtype)
        if expected.dtype != got.dtype or expected.shape != got.shape or expected.tobytes() != got.tobytes():
            return f"constant {name} has other values"
    return ""
