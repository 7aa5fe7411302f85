"""The gate in front of every speed: a kernel's results on the very shape, bit for bit against its reference."""

from __future__ import annotations

import ctypes as c
import importlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.kernels.shapes import Shape

CHUNK_BYTES = 64 << 20
"""Of the float matrix that an exact product makes of the image at a time."""


def exact_accumulators(inputs: dict[str, Any]) -> Any:
    """Canonical accumulators of a product, int32: a float product of integers whose sums no rounding touches."""
    from dq_kernels.int_linear.reference import zero_codes

    codes, weights = inputs["codes"], inputs["weights"]
    zero = zero_codes(inputs["zero_point"], inputs["q_min"], inputs["step"], 0)
    centred = codes.astype(np.int32) - zero.astype(np.int32).reshape(-1, *[1] * (codes.ndim - 1))
    largest = int(np.abs(centred).max()) * int(np.abs(weights.astype(np.int32)).max()) * weights[0].size
    kind = np.float32 if largest < 1 << 24 else np.float64
    matrix = np.ascontiguousarray(weights.reshape(len(weights), -1).T, kind)
    if weights.ndim == 2:
        return np.stack([(sample.astype(kind) @ matrix).astype(np.int32) for sample in centred])
    height, width = inputs["out_size"]
    (top, left), (down, across), (by_h, by_w) = inputs["padding"], inputs["stride"], inputs["dilation"]
    kernel_h, kernel_w = weights.shape[1:3]
    reach_h = (height - 1) * down + (kernel_h - 1) * by_h + 1
    reach_w = (width - 1) * across + (kernel_w - 1) * by_w + 1
    below, right = (
        max(0, reach - size - first)
        for reach, size, first in zip((reach_h, reach_w), codes.shape[1:3], (top, left), strict=True)
    )
    more = [(0, 0), (top, below), (left, right), (0, 0)]
    padded = np.pad(centred.astype(kind), more)
    found = np.empty((len(codes), height, width, len(weights)), np.int32)
    at_once = max(1, CHUNK_BYTES // (width * matrix.shape[0] * matrix.itemsize))
    for b in range(len(codes)):
        for first in range(0, height, at_once):
            rows = np.arange(first, min(first + at_once, height))
            parts = [
                padded[b, rows[:, None] * down + i * by_h, (np.arange(width) * across + j * by_w)[None]]
                for i in range(kernel_h)
                for j in range(kernel_w)
            ]
            product = np.concatenate(parts, axis=-1).reshape(len(rows) * width, -1) @ matrix
            found[b, rows] = product.reshape(len(rows), width, -1).astype(np.int32)
    return found


def expected_results(shape: Shape, inputs: dict[str, Any]) -> dict[str, Any]:
    """What the kernel has to give, by name: `y` and `accumulators`, or `y` and the codes of each output."""
    if shape.op.startswith("int_"):
        from dq_kernels.int_linear.reference import bias_of, epilogue, scale_of

        accumulators = exact_accumulators(inputs)
        extras = [bias_of(inputs["bias"], inputs["step"]), *(inputs[name] for name in ("row", "residual", "previous"))]
        scale = scale_of(inputs["scale"], inputs["step"])
        return {"y": epilogue(accumulators, scale, inputs["weight_scale"], *extras), "accumulators": accumulators}
    module = importlib.import_module(f"dq_kernels.{shape.op}.reference")
    return named(shape.op, getattr(module, shape.op)(**inputs))


def named(op: str, results: tuple[Any, ...]) -> dict[str, Any]:
    """Results of a reference or of `run`, by name."""
    if op.startswith("int_"):
        return {"y": results[0], "accumulators": results[1]}
    if op == "quantize":
        return {"codes 0": results[0]}
    codes = results[1] if isinstance(results[1], list) else [results[1]]
    return {"y": results[0], **{f"codes {i}": value for i, value in enumerate(codes)}}


class Recorder:
    """A context that keeps the last call's arguments, so that the same call can be timed alone."""

    def __init__(self, context: Any) -> None:
        self.context = context
        self.op, self.args = "", None

    def pack(self, weights: Any, code_span: int, weight_zero: Any = None) -> Any:
        """As the context's."""
        return self.context.pack(weights, code_span, weight_zero)

    def call(self, op: str, args: Any) -> None:
        """Run and keep."""
        self.op, self.args = op, args
        self.context.call(op, args)


@dataclass
class Prepared:
    """A call that passed the gate, or what it got wrong.

    Attributes:
        red: which result differs and where, in words; empty for a kernel whose every bit is right.
        calls: for `Context.run`.
        form: how packed weights are multiplied, of a product.
        results: what the call writes; other arrays it points to are kept in `keep`.
    """

    red: str
    calls: Any = None
    form: str = ""
    results: dict[str, Any] = field(default_factory=dict)
    keep: tuple[Any, ...] = ()


def kernel_results(shape: Shape, inputs: dict[str, Any], recorder: Any) -> dict[str, Any]:
    """The op's numpy entry on a context."""
    run = importlib.import_module(f"dq_kernels.{shape.op}").run
    more = {} if shape.op.startswith("int_") else {"pitch_multiple": 4}
    return named(shape.op, run(recorder, **inputs, **more))


def difference(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    """First result that is not the same bit for bit, in words; empty where all are."""
    for name, value in wanted.items():
        got = found[name]
        if got.shape != value.shape:
            got = got[..., : value.shape[-1]]  # bytes between the channels and the pitch
        same = got.view(np.int32) == value.view(np.int32) if value.dtype == np.float32 else got == value
        if not same.all():
            return f"{int((~same).sum())} of {value.size} values of {name} differ from the reference"
    return ""


def prepare(shape: Shape, inputs: dict[str, Any], wanted: dict[str, Any], context: Any) -> Prepared:
    """Run the kernel once, hold it against `wanted`, and leave the call ready to be timed.

    The timed call writes what the engine needs: of a product no accumulators, of a norm no float values.
    """
    from dq_kernels.cpu.library import call_list, packed_form

    recorder, packed, form = Recorder(context), None, ""
    if shape.op.startswith("int_"):
        inputs, packed = packed_inputs(shape.op, inputs, context)
        form = packed_form(packed)
    found = kernel_results(shape, inputs, recorder)
    red = difference(found, wanted)
    if red or recorder.args is None:
        return Prepared(red=red or "the kernel was not called", form=form)
    args, seen = recorder.args, np.zeros(1, np.int32)
    if shape.op.startswith("int_"):
        args.epilogue.accumulators = None
    else:
        args.nan_seen = seen.ctypes.data
        if shape.op != "quantize":
            args.y = None
    calls = call_list([(recorder.op, args)])
    return Prepared(red="", calls=calls, form=form, results=found, keep=(inputs, packed, seen, args))


def packed_inputs(op: str, inputs: dict[str, Any], context: Any) -> tuple[dict[str, Any], Any]:
    """Inputs whose codes lie as the kernel reads them, with packed weights."""
    from dq_kernels.int_conv2d import packing_span
    from dq_kernels.int_linear.arguments import codes_of_pitch

    weights = inputs["weights"]
    ends = {name: inputs[name] for name in ("q_min", "q_max", "zero_point")}
    padded = op == "int_conv2d" and max(inputs["padding"]) > 0
    packed = context.pack(weights.reshape(len(weights), -1, weights.shape[-1]), packing_span(**ends, padded=padded))
    return {**inputs, "codes": codes_of_pitch(inputs["codes"], weights.shape[-1]), "packed": packed}, packed


def still_right(prepared: Prepared, shape: Shape, wanted: dict[str, Any]) -> str:
    """The gate once more on what the timed calls left behind."""
    names = ("y",) if shape.op.startswith("int_") else tuple(name for name in wanted if name.startswith("codes"))
    return difference(prepared.results, {name: wanted[name] for name in names})


def clear(prepared: Prepared, shape: Shape) -> None:
    """Overwrite the results, so that what stands there later comes from the timed calls."""
    for name, value in prepared.results.items():
        if value is not None and (name.startswith("codes") or (name == "y" and shape.op.startswith("int_"))):
            c.memset(value.ctypes.data, 0x55, value.nbytes)
