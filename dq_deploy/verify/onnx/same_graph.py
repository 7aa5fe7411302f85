"""An ONNX file against the graph it must hold: node by node, constant by constant, inputs, outputs and opsets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from dq_deploy.graph.external_data import with_values_inside
from dq_deploy.graph.onnx_file import IR_VERSION, MANIFEST_KEY
from dq_deploy.numerics.arrays import Array
from dq_deploy.verify.file.same_values import FileDifference, array_difference, shown

_MISSING, _NOTHING = "missing", "nothing there"
_OTHER_FIELDS = tuple(
    field.name
    for field in onnx.NodeProto.DESCRIPTOR.fields
    if field.name not in ("input", "output", "name", "op_type", "domain", "attribute")
)
"""Of a node, beside those that are named one by one."""

_TENSOR_DATA = ("raw_data", "float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data")


def graph_differences(path: Path, expected: ir.Model) -> list[FileDifference]:
    """Everything in a file that is not in a graph, and the other way round; names, order and types included.

    Args:
        path: ONNX file, with its data file beside it where it has one.
        expected: the graph it must hold; it is not changed.
    """
    got = onnx.load(str(path), load_external_data=False)
    wanted = {name: value.const_value for name, value in expected.graph.initializers.items()}
    want = _without_constants(expected)
    # lists, for protobuf may make a new object of a node each time it is asked for
    return [
        *_model_differences(got, want),
        *_value_differences("input", got.graph.input, want.graph.input, ordered=True),
        *_value_differences("output", got.graph.output, want.graph.output, ordered=True),
        *_node_differences(list(got.graph.node), list(want.graph.node), path.parent),
        *_constant_differences(got, wanted, path.parent),
        *_repeated("type of", [value.name for value in got.graph.value_info]),
        *_value_differences("type of", _inner(got.graph, wanted), _inner(want.graph, wanted), ordered=False),
    ]


def _without_constants(model: ir.Model) -> onnx.ModelProto:
    """The model as it is written, but for the constants, which may be large."""
    bare = model.clone()
    bare.ir_version = IR_VERSION
    bare.graph.initializers.clear()
    return ir.to_proto(bare)


def _inner(graph: onnx.GraphProto, constants: Collection[str]) -> list[onnx.ValueInfoProto]:
    """The tensors whose type is written down, but for constants, which carry their own."""
    return [value for value in graph.value_info if value.name not in constants]


def _model_differences(got: onnx.ModelProto, want: onnx.ModelProto) -> Iterator[FileDifference]:
    """What stands around the graph."""
    pairs: list[tuple[str, Any, Any]] = [
        (name, getattr(got, name), getattr(want, name))
        for name in ("ir_version", "producer_name", "producer_version", "domain", "model_version", "doc_string")
    ]
    pairs += [
        (f"{name} of the graph", getattr(got.graph, name), getattr(want.graph, name))
        for name in ("doc_string", "quantization_annotation", "metadata_props")
    ]
    pairs += [
        ("opsets", _opsets(got), _opsets(want)),
        ("name of the graph", got.graph.name, want.graph.name),
        ("metadata keys", sorted(p.key for p in got.metadata_props), [MANIFEST_KEY]),
        ("functions", [f.name for f in got.functions], [f.name for f in want.functions]),
        ("training steps", len(got.training_info), len(want.training_info)),
        ("sparse constants", len(got.graph.sparse_initializer), len(want.graph.sparse_initializer)),
    ]
    for place, mine, other in pairs:
        if mine != other:
            yield FileDifference(place=place, got=shown(mine), expected=shown(other))


def _opsets(proto: onnx.ModelProto) -> list[tuple[str, int]]:
    return sorted((entry.domain, entry.version) for entry in proto.opset_import)


def _value_differences(
    what: str, got: Sequence[onnx.ValueInfoProto], want: Sequence[onnx.ValueInfoProto], *, ordered: bool
) -> Iterator[FileDifference]:
    """Tensors with name, type and shape."""
    names, wanted = [v.name for v in got], [v.name for v in want]
    if ordered and names != wanted:
        yield FileDifference(place=f"{what}s", got=shown(names), expected=shown(wanted))
        return
    mine, other = {v.name: v for v in got}, {v.name: v for v in want}
    for name in dict.fromkeys([*wanted, *names]):
        a, b = mine.get(name), other.get(name)
        if a is None or b is None:
            yield FileDifference(
                place=f"{what} {name}",
                got=_MISSING if a is None else _type(a),
                expected=_NOTHING if b is None else _type(b),
            )
        elif a.type != b.type:
            yield FileDifference(place=f"{what} {name}", got=_type(a), expected=_type(b))


def _repeated(what: str, names: Sequence[str]) -> Iterator[FileDifference]:
    """Names that stand there more than once: which of the two counts is the reader's choice."""
    for name, count in Counter(names).items():
        if count > 1:
            yield FileDifference(place=f"{what} {name}", got="there twice", expected="once")


def _type(value: onnx.ValueInfoProto) -> str:
    kind = value.type.tensor_type
    dims = [d.dim_param or d.dim_value for d in kind.shape.dim]
    return shown(f"{_type_name(kind.elem_type)} {dims}")


def _type_name(kind: int) -> str:
    try:
        return str(onnx.TensorProto.DataType.Name(kind)).lower()
    except ValueError:
        return f"unknown type {kind}"


def _node_differences(
    got: Sequence[onnx.NodeProto], want: Sequence[onnx.NodeProto], folder: Path
) -> Iterator[FileDifference]:
    partners = _partners(got, want)
    used = {id(node) for node in partners.values()}
    for node in got:
        partner = partners.get(id(node))
        if partner is None:
            yield FileDifference(place=_name(node), got=f"made from {shown(list(node.input))}", expected=_NOTHING)
        else:
            yield from _one_node(node, partner, folder)
    for node in want:
        if id(node) not in used:
            yield FileDifference(place=_name(node), got=_MISSING, expected=f"made from {shown(list(node.input))}")
    order = [partners[id(node)] for node in got if id(node) in partners]
    wanted = [node for node in want if id(node) in used]
    for mine, other in zip(order, wanted, strict=True):
        if mine is not other:
            yield FileDifference(place="order of nodes", got=_name(mine), expected=_name(other))
            break


def _partners(got: Sequence[onnx.NodeProto], want: Sequence[onnx.NodeProto]) -> dict[int, onnx.NodeProto]:
    """The node each one stands for, by id: that of its outputs, else that of its name."""
    by_output = {name: node for node in want for name in node.output if name}
    by_name = {node.name: node for node in want if node.name}
    found: dict[int, onnx.NodeProto] = {}
    taken: set[int] = set()
    for node in got:
        partner = next((by_output[name] for name in node.output if name in by_output), None)
        if partner is not None and id(partner) not in taken:
            found[id(node)] = partner
            taken.add(id(partner))
    for node in got:
        partner = by_name.get(node.name)
        if id(node) not in found and partner is not None and id(partner) not in taken:
            found[id(node)] = partner
            taken.add(id(partner))
    return found


def _name(node: onnx.NodeProto) -> str:
    return f"node {node.name or next(iter(node.output), 'without a name')} ({node.op_type})"


def _one_node(got: onnx.NodeProto, want: onnx.NodeProto, folder: Path) -> Iterator[FileDifference]:
    place = _name(want)
    pairs: list[tuple[str, Any, Any]] = [
        ("operation", f"{got.domain}.{got.op_type}", f"{want.domain}.{want.op_type}"),
        ("name", got.name, want.name),
    ]
    for what, mine, other in (("input", got.input, want.input), ("output", got.output, want.output)):
        if len(mine) != len(other):
            pairs.append((f"number of {what}s", len(mine), len(other)))
        pairs += [(f"{what} {i}", a, b) for i, (a, b) in enumerate(zip(mine, other, strict=False))]
    pairs += [(name, getattr(got, name), getattr(want, name)) for name in _OTHER_FIELDS]
    for what, a, b in pairs:
        if a != b:
            yield FileDifference(place=f"{place}, {what}", got=shown(a), expected=shown(b))
    yield from _repeated(f"{place}, attribute", [a.name for a in got.attribute])
    attributes = {a.name: a for a in got.attribute}
    wanted = {a.name: a for a in want.attribute}
    for name in dict.fromkeys([*wanted, *attributes]):
        where = f"{place}, attribute {name}"
        yield from _attribute_differences(where, attributes.get(name), wanted.get(name), folder)


def _attribute_differences(
    place: str, got: onnx.AttributeProto | None, want: onnx.AttributeProto | None, folder: Path
) -> Iterator[FileDifference]:
    if got == want:
        return
    if got is None or want is None or got.type != want.type or got.type != onnx.AttributeProto.TENSOR:
        yield FileDifference(
            place=place,
            got=_MISSING if got is None else _attribute(got),
            expected=_NOTHING if want is None else _attribute(want),
        )
        return
    try:
        mine, other = (_values(a.t, folder) for a in (got, want))
    except Exception as error:  # damaged tensors raise what their reader likes
        yield FileDifference(place=place, got=f"unreadable ({shown(str(error))})", expected="there")
        return
    difference = array_difference(place, mine, other)
    if difference is not None:
        yield difference


def _attribute(attribute: onnx.AttributeProto) -> str:
    if attribute.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS):
        return "another graph"
    try:
        return shown(onnx.helper.get_attribute_value(attribute))
    except ValueError as error:
        return f"unreadable ({shown(str(error))})"


def _constant_differences(
    got: onnx.ModelProto, want: Mapping[str, ir.TensorProtocol | None], folder: Path
) -> Iterator[FileDifference]:
    seen: set[str] = set()
    readers = {name: node for node in reversed(got.graph.node) for name in node.input}
    for proto in got.graph.initializer:
        place = f"constant {proto.name}"
        if proto.name in readers and _is_anonymous(proto.name):
            place += f" of {_name(readers[proto.name])}"
        if proto.name in seen:
            yield FileDifference(place=place, got="there twice", expected="once")
        seen.add(proto.name)
        expected = want.get(proto.name)
        if expected is None:
            yield FileDifference(place=place, got=f"{list(proto.dims)}", expected=_NOTHING)
            continue
        difference = _constant_difference(place, proto, expected, folder)
        if difference is not None:
            yield difference
    for name in want:
        if name not in seen:
            yield FileDifference(place=f"constant {name}", got=_MISSING, expected="there")


def _is_anonymous(name: str) -> bool:
    """Whether the name of a constant tells nobody anything: made of a hash, or numbered by the tracer."""
    return name.startswith("dq/const/") or not ("/" in name or "." in name)


def _constant_difference(
    place: str, proto: onnx.TensorProto, expected: ir.TensorProtocol, folder: Path
) -> FileDifference | None:
    if proto.data_type != int(expected.dtype):
        return FileDifference(place=place, got=_type_name(proto.data_type), expected=str(expected.dtype).lower())
    held = [name for name in _TENSOR_DATA if len(getattr(proto, name))]
    if len(held) > 1:
        return FileDifference(place=place, got=f"values in {' and '.join(held)}", expected="values once")
    try:
        mine = _values(proto, folder)
    except Exception as error:  # a data file that is missing or short raises what its reader likes
        return FileDifference(place=place, got=f"unreadable ({shown(str(error))})", expected="there")
    return array_difference(place, mine, expected.numpy())


def _values(tensor: onnx.TensorProto, folder: Path) -> Array:
    """Of a tensor, whatever its data file's name is a link to."""
    values: Array = ir.serde.deserialize_tensor(with_values_inside(tensor, folder)).numpy()
    return values
