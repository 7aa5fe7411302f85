"""The float part of a graph in float16 or bfloat16: only Casts are added and types changed."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from dq_deploy.graph.pass_contract import PassResult
from dq_deploy.graph.trace import MODULE_KEY
from dq_deploy.manifest.values import KeptFloat, ManifestLayer, ManifestPart

FLOAT32 = ir.DataType.FLOAT
TYPES = {"float16": ir.DataType.FLOAT16, "bfloat16": ir.DataType.BFLOAT16}
FLOAT16_MAX = 65504.0
FLOAT16_TINY = 2.0**-14
"""Smallest normal float16."""

HEADROOM = 4
"""A layer whose largest |activation| in calibration is above a quarter of float16's range stays in float32."""

_INTEGER_OPS = frozenset(
    ("Shape", "Size", "ArgMax", "ArgMin", "NonZero", "IsNaN", "IsInf", "QuantizeLinear", "MatMulInteger", "ConvInteger")
)
_TRUTH_OPS = frozenset(("Equal", "Less", "Greater", "GreaterOrEqual", "LessOrEqual", "And", "Or", "Not"))
_BOUNDED_OPS = frozenset(
    (
        "GroupNormalization",
        "LayerNormalization",
        "InstanceNormalization",
        "Softmax",
        "Sigmoid",
        "Tanh",
        "QuantizeLinear",
    )
)
_CARRIERS = frozenset(("Gather", "Reshape", "Unsqueeze", "Squeeze", "Transpose", "Identity"))
_FLOAT32_INPUTS = {"Resize": (1, 2)}
"""Inputs that are float32 by the operator's definition."""


@dataclass
class FloatTypes:
    """Gives every float operation on image data another float type; the integer layers keep theirs.

    - Cast to the float type where a float32 value enters the float part, Cast to float32 where one leaves it
    - constants of the float part are stored in the float type, scales of its weight-only layers too

    Float32 stay: the nodes of integer layers (`dq/...`), what depends only on the step and the labels, inputs and
    outputs of the graph; in float16 also layers whose largest |activation|, or without calibration whose bias, is
    above a quarter of its range, whatever reads them, and operations with a constant that float16 cannot hold.

    Attributes:
        float_type: `float16`, `bfloat16` or `float32`; the last changes nothing.
        float_ranges: largest |activation| at the output of a module, by module path.
        entries: manifest entries whose `input` is renamed to the float32 tensor that the layer reads.
        weight_only: module paths of layers written as `dq/...` whose product is a float one.
        kept: filled by `apply`: what stayed in float32 because of its range, with the reason.
    """

    float_type: str
    float_ranges: Mapping[str, float] = field(default_factory=dict)
    entries: list[ManifestLayer] = field(default_factory=list)
    weight_only: Collection[str] = ()
    kept: list[KeptFloat] = field(default_factory=list)
    name: str = "float-types"

    def apply(self, model: ir.Model) -> PassResult:
        """Edit the model in place."""
        if self.float_type == "float32":
            return PassResult(model=model, modified=False)
        narrow = self._narrow_nodes(model.graph)
        _Retyper(model.graph, narrow, TYPES[self.float_type], self.float_type).run(self.entries)
        return PassResult(model=model, modified=True)

    def _narrow_nodes(self, graph: ir.Graph) -> set[ir.Node]:
        """The nodes that take the float type."""
        ranged = self.float_type == "float16"
        of_image = _image_nodes(graph)
        large: set[ir.Value] = set()
        narrow: set[ir.Node] = set()
        for node in graph:
            path = _path(node)
            known = self.float_ranges.get(path)
            # what a record never calibrated cannot tell, a constant that is added tells at least in part
            reached = _added_constant(node) if known is None else known
            too_large = ranged and reached > FLOAT16_MAX / HEADROOM
            reads_large = any(value in large for value in node.inputs)
            if too_large or (reads_large and known is None and node.op_type not in _BOUNDED_OPS):
                large.update(node.outputs)
            if too_large:
                why = "largest |activation| in calibration" if known is not None else "constant that is added"
                self._keep(path or node.name or node.op_type, reached, why)
            if self._in_integer_layer(node) or node not in of_image or too_large or reads_large:
                continue
            constant = _unfit_constant(node) if ranged else None
            if constant is not None:
                self._keep(node.name or node.op_type, constant, "constant outside float16's normal range")
                if known is None and constant > FLOAT16_MAX:  # so is likely what it makes
                    large.update(node.outputs)
                continue
            narrow.add(node)
        return narrow | self._unpacking_nodes(graph, narrow, ranged=ranged)

    def _unpacking_nodes(self, graph: ir.Graph, narrow: set[ir.Node], *, ranged: bool) -> set[ir.Node]:
        """What unpacks the weights of narrow weight-only products: a Cast in between would part the two kernels."""
        found: set[ir.Node] = set()
        for node in reversed(graph):
            unpacks = node.op_type in ("DequantizeLinear", "Transpose") and _path(node) in self.weight_only
            if not unpacks or any(use.node not in narrow and use.node not in found for use in node.outputs[0].uses()):
                continue
            constant = _unfit_constant(node) if ranged else None
            if constant is None:
                found.add(node)
            else:
                self._keep(node.name or node.op_type, constant, "scales outside float16's normal range")
        return found

    def _in_integer_layer(self, node: ir.Node) -> bool:
        return (node.name or "").startswith("dq/") and _path(node) not in self.weight_only

    def _keep(self, name: str, largest: float, why: str) -> None:
        row = KeptFloat(name=name, largest=float(largest), kept="float32", why=why)
        if row not in self.kept:
            self.kept.append(row)


class _Retyper:
    """Changes the types of the narrow nodes and puts Casts on every edge between the two parts."""

    def __init__(self, graph: ir.Graph, narrow: set[ir.Node], dtype: ir.DataType, suffix: str) -> None:
        self.graph, self.narrow, self.dtype, self.suffix = graph, narrow, dtype, suffix
        self._casts: dict[tuple[str, int], ir.Value] = {}
        self._constants: dict[str, ir.Value] = {}

    def run(self, entries: list[ManifestLayer]) -> None:
        for node in list(self.graph):
            for index, value in enumerate(node.inputs):
                if value is None or not is_float(value) or index in _FLOAT32_INPUTS.get(node.op_type, ()):
                    continue
                if node in self.narrow:
                    node.replace_input_with(index, self._narrowed(value))
                elif value.producer() in self.narrow:
                    node.replace_input_with(index, self._cast(value, FLOAT32, "float32"))
        for index, value in enumerate(list(self.graph.outputs)):
            if value.producer() in self.narrow and is_float(value):
                self._widen_output(index, value)
        for node in self.narrow:
            if node.op_type == "Cast" and node.attributes["to"].as_int() == int(FLOAT32):
                node.attributes["to"] = ir.AttrInt64("to", int(self.dtype))
            for value in node.outputs:
                if is_float(value):
                    value.type = ir.TensorType(self.dtype)
        for index, entry in enumerate(entries):
            entries[index] = replace(entry, parts=tuple(self._widened(part) for part in entry.parts or ()))

    def _widened(self, part: ManifestPart) -> ManifestPart:
        """The part with the float32 tensor that its layer reads now."""
        wide = self._casts.get((str(part.input), int(FLOAT32)))
        return part if wide is None else replace(part, input=wide.name)

    def _narrowed(self, value: ir.Value) -> ir.Value:
        if value.producer() in self.narrow:
            return value
        if value.const_value is not None:
            return self._constant(value)
        return self._cast(value, self.dtype, self.suffix)

    def _cast(self, value: ir.Value, dtype: ir.DataType, suffix: str) -> ir.Value:
        """One Cast a value and type, right behind what makes it."""
        key = (str(value.name), int(dtype))
        if key not in self._casts:
            name = f"cast/{value.name}/{suffix}"
            node = ir.node("Cast", [value], attributes={"to": int(dtype)}, name=name)
            node.outputs[0].name, node.outputs[0].shape = name, value.shape
            node.outputs[0].type = ir.TensorType(dtype)
            producer = value.producer()
            if producer is None:
                self.graph.insert_before(next(iter(self.graph)), node)
            else:
                self.graph.insert_after(producer, node)
            self._casts[key] = node.outputs[0]
        return self._casts[key]

    def _constant(self, value: ir.Value) -> ir.Value:
        """The constant in the float type: in its place where nothing else reads it, else a second one."""
        name = str(value.name)
        if name not in self._constants:
            source = value.const_value
            assert source is not None
            uses = [use for use in value.uses() if use.idx not in _FLOAT32_INPUTS.get(use.node.op_type, ())]
            alone = len(uses) == len(value.uses()) and all(use.node in self.narrow for use in uses)
            if alone:
                self.graph.initializers.pop(name)
            else:
                name = f"{name}/{self.suffix}"
            tensor = narrowed_tensor(source, self.dtype, name)
            made = ir.Value(name=name, type=ir.TensorType(self.dtype), shape=source.shape, const_value=tensor)
            self.graph.register_initializer(made)
            self._constants[str(value.name)] = made
        return self._constants[str(value.name)]

    def _widen_output(self, index: int, value: ir.Value) -> None:
        name = str(value.name)
        value.name = f"{name}/{self.suffix}"
        wide = self._cast(value, FLOAT32, "float32")
        wide.name = name
        self.graph.outputs[index] = wide


def narrowed_tensor(source: ir.TensorProtocol, dtype: ir.DataType, name: str) -> ir.LazyTensor:
    """A float32 tensor in another float type, converted when it is written, so that both never lie in memory."""

    def convert() -> ir.TensorProtocol:
        return ir.tensor(source.numpy().astype(dtype.numpy()), name=name)

    return ir.LazyTensor(convert, dtype=dtype, shape=ir.Shape(source.shape), name=name)


def is_float(value: ir.Value) -> bool:
    """Whether a tensor is float32; where its type is not written down, by what makes it."""
    if value.dtype is not None:
        return bool(value.dtype == FLOAT32)
    node = value.producer()
    if node is None or node.op_type in _INTEGER_OPS | _TRUTH_OPS:
        return False
    if node.op_type == "Cast":
        return bool(node.attributes["to"].as_int() == int(FLOAT32))
    source = node.inputs[1 if node.op_type in ("Where", "DequantizeLinear") else 0]
    return source is not None and is_float(source)


def _path(node: ir.Node) -> str:
    """Module path of a node, of an integer layer's too."""
    name = node.name or ""
    if name.startswith("dq/") and name.count("/") > 1:
        return name.split("/")[1]
    return str(node.metadata_props.get(MODULE_KEY, ""))


def _image_nodes(graph: ir.Graph) -> set[ir.Node]:
    """Nodes whose values depend on an image or on text; a shape taken of one does not."""
    reached = {value for value in graph.inputs if _is_of_image(value)}
    found: set[ir.Node] = set()
    for node in graph:
        if node.op_type not in ("Shape", "Size") and any(value in reached for value in node.inputs):
            found.add(node)
            reached.update(node.outputs)
    return found


def _is_of_image(value: ir.Value) -> bool:
    """Whether an input is an image, a text or a mask of one.

    It has a batch and then at least two axes, or one whose size varies. What else there is, a timestep, labels, an
    embedding of a whole text, positions, is small, and what depends on it alone stays in float32.
    """
    if value.shape is None:
        return True
    batch, *sizes = (*list(value.shape), 0)
    return not isinstance(batch, int) and (len(sizes) > 2 or any(not isinstance(size, int) for size in sizes))


def _added_constant(node: ir.Node) -> float:
    """Largest magnitude of a constant that a node adds: a bias, an offset; 0 where it adds none."""
    added = {"Add": (0, 1), "Sub": (1,), "Conv": (2,), "Gemm": (2,)}.get(node.op_type, ())
    largest = 0.0
    for index in added:
        value = node.inputs[index] if index < len(node.inputs) else None
        while value is not None and (maker := value.producer()) is not None and maker.op_type in _CARRIERS:
            value = maker.inputs[0]  # a bias by step is a row of a table
        if value is not None and value.const_value is not None and is_float(value):
            array: NDArray[np.generic] = value.const_value.numpy()
            largest = max(largest, float(max(array.max(initial=0), -array.min(initial=0))))
    return largest


def _unfit_constant(node: ir.Node) -> float | None:
    """Largest magnitude of a constant operand that float16 would make infinite or flush, or None."""
    skipped = _FLOAT32_INPUTS.get(node.op_type, ())
    for index, value in enumerate(node.inputs):
        if value is None or value.const_value is None or index in skipped or not is_float(value):
            continue
        array: NDArray[np.generic] = value.const_value.numpy()
        largest = float(max(array.max(initial=0), -array.min(initial=0)))
        if largest > FLOAT16_MAX or 0 < largest < FLOAT16_TINY:
            return largest
    return None
