"""What each kind of op may be asked: the form that lowering gives it, which is what its kernel reads and writes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from dq_kernels import group_norm_silu_quantize, layer_norm_quantize
from dq_kernels.cpu.structs import ELEMENTWISE_KINDS

from dq_deploy.native.check.lines import BatchNumber
from dq_deploy.native.check.memory import Place
from dq_deploy.native.cpu.numpy_ops.table import numpy_op
from dq_deploy.native.program.program import View
from dq_deploy.native.program.views import lie_alike, stored_strides
from dq_deploy.record import Layer

CODE_PITCH = 16
"""Rows of codes are as long as a multiple of this."""
MOST_AXES = 6
LARGEST_HEAD = 16384
DTYPES = (
    *("float32", "float16", "float64", "complex64", "complex128", "int64", "int32", "int16", "int8", "uint8", "bool"),
)
"""Of values that numpy's operations read and write."""
_BINARY = ("add", "sub", "mul", "div")
_NORMS = ("group_norm_silu_quantize", "layer_norm_quantize")
_HOST_ATTRIBUTES = ("function", "args", "kwargs", "compute")


def check_op(place: Place) -> None:
    """Refuse an op that its kernel would not take, or that would leave its memory.

    Raises:
        FileProblemError: it names the op.
    """
    kind = place.op.kind
    place.demand(kind in _RULES, f"expected one of {', '.join(_RULES)}")
    for role, view in place.op.writes.items():
        place.demand(not isinstance(view.buffer, str), f"{role} writes to {view.buffer}, expected a buffer")
    if kind == "host":
        _host(place)
        return
    for role, view in (*place.op.reads.items(), *place.op.writes.items()):
        place.inside(role, view, "uint8" if role.startswith("codes") else "float32")
    _RULES[kind](place)


def _layer(place: Place, name: Any, part: Any) -> Layer:
    place.demand(isinstance(name, str) and name in place.around.layers, f"names layer {name!r}, which there is not")
    layer = place.around.layers[name]
    good = isinstance(part, int) and not isinstance(part, bool) and 0 <= part < len(layer.parts)
    place.demand(good, f"names part {part!r} of {name}, which has {len(layer.parts)}")
    return layer


def _codes(place: Place, role: str, view: View, channels: int) -> tuple[BatchNumber, BatchNumber]:
    """Batch and rows of codes, which fill a buffer of their own."""
    place.demand(len(view.sizes) == 3, f"{role} has {len(view.sizes)} axes, expected 3")
    (batch, rows, own), (outer, pitch, inner) = view.sizes, view.strides
    place.demand(own == channels, f"{role} has {own} channels, expected {channels}")
    good = isinstance(pitch, int) and pitch >= channels and pitch % CODE_PITCH == 0
    good = good and outer == rows * pitch and inner == 1 and view.offset == 0 and isinstance(view.buffer, int)
    if not good:
        place.refuse(f"{role} has the strides {view.strides}, expected whole rows of a multiple of {CODE_PITCH}")
    elements = place.tensor(view).elements
    if not batch * rows * pitch <= elements:
        place.refuse(f"{role} needs {batch * rows * pitch} bytes, has {elements}")
    return batch, rows


def _outs(place: Place, batch: BatchNumber, rows: BatchNumber, channels: int, most: int) -> None:
    """The codes that an op writes of [batch, rows, channels]."""
    outs = place.op.attributes["outs"]
    place.demand(isinstance(outs, list) and len(outs) <= most, f"outs is {outs!r}, expected a list of {most} at most")
    named = {f"codes{index}" for index in range(len(outs))}
    found = {role for role in place.op.writes if role != "y"}
    place.demand(found == named, f"writes {sorted(found)}, expected {sorted(named)}")
    for index, out in enumerate(outs):
        good = isinstance(out, dict) and out.keys() == {"layer", "part", "first", "channels"}
        if not good:
            place.refuse(f"outs[{index}] is {out!r}, expected layer, part, first and channels")
        own = len(_layer(place, out["layer"], out["part"]).parts[out["part"]].pre)
        first = out["first"]
        good = isinstance(first, int) and not isinstance(first, bool) and 0 <= first <= channels - own
        place.demand(
            good and out["channels"] == own, f"outs[{index}] is {out!r}, expected {own} of {channels} channels"
        )
        seen = _codes(place, f"codes{index}", place.op.writes[f"codes{index}"], own)
        if seen != (batch, rows):
            place.refuse(f"codes{index} has {seen}, expected {(batch, rows)}")


def _quantize(place: Place) -> None:
    place.roles("x", "codes0")
    place.attributes("outs")
    _outs(place, *place.rows("x"), most=1)
    place.demand(len(place.op.attributes["outs"]) == 1, "has no outs, expected one")


def _norm(place: Place) -> None:
    place.roles("x", "", may="gamma beta", may_write="y codes0 codes1 codes2")
    grouped = place.op.kind == "group_norm_silu_quantize"
    place.attributes("eps", "outs", *(("groups", "silu") if grouped else ()))
    place.real("eps")
    batch, rows, channels = place.rows("x")
    most = (group_norm_silu_quantize if grouped else layer_norm_quantize).MAX_CHANNELS
    place.demand(channels <= most, f"has {channels} channels, expected {most} at most")
    if grouped:
        place.flag("silu")
        groups = place.whole("groups", 1)
        place.demand(channels % groups == 0, f"has {channels} channels in {groups} groups, expected whole ones")
    for role in ("gamma", "beta"):
        if role in place.op.reads:
            place.vector(role, channels)
    _normed(place, batch, rows, channels, 3)


def _normed(place: Place, batch: BatchNumber, rows: BatchNumber, channels: int, most: int) -> None:
    """The float value of a fused op, and the codes of it."""
    if "y" in place.op.writes:
        place.rows("y")
        place.sized("y", (batch, rows, channels))
    _outs(place, batch, rows, channels, most)


def _geglu(place: Place) -> None:
    place.roles("x", "", may_write="y codes0")
    place.attributes("outs")
    batch, rows, both = place.rows("x")
    place.demand(both % 2 == 0, f"x has {both} channels, expected two halves")
    _normed(place, batch, rows, both // 2, 1)


def _product(place: Place) -> tuple[Layer, BatchNumber, BatchNumber]:
    """Layer, batch and rows of the codes of a product, whose other operands are as its result."""
    op, given = place.op, place.op.attributes
    place.roles("codes", "y", may="previous row residual")
    layer = _layer(place, given["layer"], given["part"])
    kind = "int_conv2d" if layer.kind == "conv2d" else "int_linear"
    place.demand(kind == op.kind, f"runs layer {layer.name}, a {layer.kind}")
    place.flag("final")
    batch, rows = _codes(place, "codes", op.reads["codes"], len(layer.parts[given["part"]].pre))
    y = op.writes["y"]
    axis = 1 if kind == "int_conv2d" else -1
    if "previous" in op.reads:
        place.demand(op.reads["previous"] == y, "previous is another view than y, expected the same")
    if "residual" in op.reads:
        place.sized("residual", tuple(y.sizes))
        place.even("residual", axis)
    if "row" in op.reads:
        row = place.sized("row", (batch, layer.out_channels))
        place.demand(row.strides[1] == 1 or layer.out_channels == 1, "row is not adjacent, expected a stride of 1")
    return layer, batch, rows


def _int_linear(place: Place) -> None:
    place.attributes("layer", "part", "final", "padded", may=("rows", "batch"))
    layer, batch, rows = _product(place)
    place.demand(place.wholes("padded", 4) == (0, 0, 0, 0), "pads, expected a convolution for that")
    y = place.even("y", -1)
    place.demand(y.sizes[2] == layer.out_channels, f"y has {y.sizes[2]} features, expected {layer.out_channels}")
    count = y.sizes[0] * y.sizes[1]
    place.demand(count == batch * rows, f"y has {count} rows, expected {batch * rows}")


def _int_conv2d(place: Place) -> None:
    place.attributes("layer", "part", "final", "padded", "in_size", "out_size", may=("batch",))
    layer, batch, rows = _product(place)
    place.wholes("padded", 4)
    (height, width), out = place.wholes("in_size", 2, 1), place.wholes("out_size", 2, 1)
    place.demand(rows == height * width, f"codes have {rows} rows, expected {height} times {width}")
    wanted = tuple(layer.window.padded_by(place.op.padded).size_out((height, width)))
    place.demand(out == wanted, f"out_size is {out}, expected {wanted}")
    place.sized("y", (batch, layer.out_channels, *out))
    place.even("y", 1)


def _elementwise(place: Place) -> None:
    place.roles("a", "y", may="b")
    place.attributes("function", "scalar", may=("joined",))
    function = place.op.attributes["function"]
    place.demand(function in ELEMENTWISE_KINDS, f"function is {function!r}, expected one of {ELEMENTWISE_KINDS}")
    two = function in _BINARY
    place.demand(
        two == ("b" in place.op.reads), f"{function} has {sorted(place.op.reads)}, expected {1 + two} operands"
    )
    place.real("scalar")
    if "joined" in place.op.attributes:
        place.whole("joined", 1)
    sizes = tuple(place.op.writes["y"].sizes)
    place.demand(len(sizes) <= MOST_AXES, f"y has {len(sizes)} axes, expected {MOST_AXES} at most")
    for role in place.op.reads:
        place.sized(role, sizes)


def _attention(place: Place) -> None:
    place.roles("q k v", "y")
    place.attributes("scale", may=("name",))
    place.real("scale")
    if "name" in place.op.attributes:
        name = place.op.attributes["name"]
        known = isinstance(name, str) and name in place.around.attentions
        place.demand(known, f"is of attention {name!r}, which has no quantizers in the record")
    q, k = place.op.reads["q"], place.op.reads["k"]
    place.demand(len(q.sizes) == len(k.sizes) == 4, "q and k are not [batch, heads, rows, features]")
    (batch, heads, rows, dim), keys = q.sizes, k.sizes[2]
    place.demand(isinstance(dim, int) and dim <= LARGEST_HEAD, f"a head has {dim}, expected {LARGEST_HEAD} at most")
    views = (("q", rows), ("k", keys), ("v", keys), ("y", rows))
    for role, count in views:
        at = place.sized(role, (batch, heads, count, dim))
        place.demand(at.strides[3] == 1 or dim == 1, f"{role} has features {at.strides[3]} apart, expected 1")


def _weights(place: Place, sizes: tuple[BatchNumber, ...]) -> None:
    at = place.sized("weights", sizes)
    dense = lie_alike(at.strides, stored_strides(at.sizes), at.sizes)
    place.demand(dense, f"weights have the strides {at.strides}, expected {stored_strides(at.sizes)}")


def _float_linear(place: Place) -> None:
    place.roles("x weights", "y", may="bias")
    place.attributes()
    x, y = place.even("x", -1), place.even("y", -1)
    (_, _, channels), (_, _, features) = x.sizes, y.sizes
    mine, theirs = x.sizes[0] * x.sizes[1], y.sizes[0] * y.sizes[1]
    place.demand(mine == theirs, f"y has {theirs} rows, expected {mine}")
    _weights(place, (features, channels))
    if "bias" in place.op.reads:
        place.vector("bias", features)


def _float_conv2d(place: Place) -> None:
    place.roles("x weights", "y", may="bias")
    place.attributes("stride", "padding", "dilation", "groups")
    x, y, weights = place.op.reads["x"], place.op.writes["y"], place.op.reads["weights"]
    place.demand(len(x.sizes) == len(y.sizes) == len(weights.sizes) == 4, "x, y and weights have not 4 axes each")
    place.even("x", 1)
    place.even("y", 1)
    (batch, channels, *image), (n, _, *kernel) = x.sizes, weights.sizes
    known = all(isinstance(value, int) for value in (channels, n, *image, *kernel))
    place.demand(known, "its sizes follow the batch, expected the batch alone to do")
    groups = place.whole("groups", 1)
    place.demand(channels % groups == 0 and n % groups == 0, f"has {groups} groups of {channels} and {n} channels")
    stride, padding = place.wholes("stride", 2, 1), place.wholes("padding", 2)
    dilation = place.wholes("dilation", 2, 1)
    each = zip(image, kernel, stride, padding, dilation, strict=True)
    out = tuple((size + 2 * p - d * (k - 1) - 1) // s + 1 for size, k, s, p, d in each)
    place.sized("y", (batch, n, *out))
    _weights(place, (n, channels // groups, *kernel))
    if "bias" in place.op.reads:
        place.vector("bias", n)


def _host(place: Place) -> None:
    """An operation of numpy, which looks after its own memory; its views must lie inside theirs."""
    op, given = place.op, place.op.attributes
    place.attributes(*_HOST_ATTRIBUTES, may=("rounded",))
    function = given["function"]
    place.demand(isinstance(function, str) and numpy_op(function) is not None, f"there is no operation {function!r}")
    place.demand(isinstance(given["args"], list) and isinstance(given["kwargs"], dict), "has no args and kwargs")
    place.demand(given["compute"] in DTYPES, f"compute is {given['compute']!r}, expected one of {', '.join(DTYPES)}")
    place.demand(given.get("rounded", "bfloat16") == "bfloat16", f"rounded is {given.get('rounded')!r}")
    single = op.writes.keys() == {"y"}
    several = bool(op.writes) and all(role[:1] == "y" and role[1:].isdigit() for role in op.writes)
    place.demand(single or several, f"writes {sorted(op.writes)}, expected y, or y0, y1 ...")
    for role, view in (*op.reads.items(), *op.writes.items()):
        place.inside(role, view, None, empty=role in op.reads)
        place.demand(place.tensor(view).dtype in DTYPES, f"{role} is {place.tensor(view).dtype}")
    for role in _roles_of(given["args"]) | _roles_of(given["kwargs"]):
        place.demand(role in op.reads, f"reads {role!r}, which it does not have")


def _roles_of(value: Any) -> set[str]:
    if isinstance(value, dict):
        if value.keys() == {"read"}:
            return {str(value["read"])}
        return set().union(*(_roles_of(entry) for entry in value.values()))
    return set().union(*(_roles_of(entry) for entry in value)) if isinstance(value, list) else set()


_RULES: Mapping[str, Callable[[Place], None]] = {
    "quantize": _quantize,
    **dict.fromkeys(_NORMS, _norm),
    "geglu_quantize": _geglu,
    "int_linear": _int_linear,
    "int_conv2d": _int_conv2d,
    "elementwise": _elementwise,
    "attention": _attention,
    "float_linear": _float_linear,
    "float_conv2d": _float_conv2d,
    "host": _host,
}
