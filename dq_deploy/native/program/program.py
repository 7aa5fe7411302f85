"""The program of one step: what runs on a batch, as values; sizes grow in proportion to the batch.

A program knows buffers, views into them and ops in order. It holds no weights: a read of a parameter names it, an
integer product names its layer. It is JSON, so that a process that needs no torch can run what another one traced.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from dq_deploy.errors import DqError
from dq_deploy.numerics.geometry import Padding

VERSION = 2
TRACED_BATCHES = (2, 3)
"""Batches that are traced; every size of the program is a line through its values at both."""
CHECKED_BATCH = 5
"""Traced too where a size is not in proportion to the batch, which two points cannot tell from another curve."""


@dataclass(frozen=True, kw_only=True)
class View:
    """A strided window into a buffer, or a parameter of the record.

    Attributes:
        buffer: index of the buffer, or the name of a parameter.
        offset: of the first element, in elements.
        sizes: of each axis.
        strides: of each axis, in elements.
    """

    buffer: int | str
    offset: int
    sizes: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Buffer:
    """Memory of one value: number of elements and numpy dtype name."""

    elements: int
    dtype: str

    @property
    def itemsize(self) -> int:
        """Bytes of an element; numpy has no bfloat16."""
        return 2 if self.dtype == "bfloat16" else np.dtype(self.dtype).itemsize


@dataclass(frozen=True, kw_only=True)
class Op:
    """One operation; `kind` is an op of dq_kernels, or `host` for a small one done by the array library.

    Attributes:
        kind: what is done.
        reads: views by role.
        writes: views by role.
        attributes: JSON values.
    """

    kind: str
    reads: Mapping[str, View]
    writes: Mapping[str, View]
    attributes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def padded(self) -> Padding:
        """Zeros that the model puts around the image a convolution reads, besides the layer's own padding."""
        top, left, bottom, right = self.attributes["padded"]
        return top, left, bottom, right

    def views(self) -> Iterator[View]:
        """Every view it touches."""
        yield from self.reads.values()
        yield from self.writes.values()


@dataclass(frozen=True, kw_only=True)
class Program:
    """What one step does for one batch size.

    Attributes:
        buffers: memory.
        inputs: views by input name, in the order of the denoiser's inputs.
        outputs: views by output name.
        ops: in order.
        constants: small arrays folded at tracing: name -> {dtype, shape, values}.
        input_shapes: shape of each input as the caller gives it, `"B"` for the batch; with dtypes, see `specs`.
        specs: name -> [dtype, shape] of inputs and outputs as the caller sees them.
    """

    buffers: tuple[Buffer, ...]
    inputs: Mapping[str, View]
    outputs: Mapping[str, View]
    ops: tuple[Op, ...]
    constants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def to_json(program: Program) -> dict[str, Any]:
    """The program as JSON values."""

    def view(v: View) -> list[Any]:
        return [v.buffer, v.offset, list(v.sizes), list(v.strides)]

    def views(named: Mapping[str, View]) -> dict[str, Any]:
        return {name: view(v) for name, v in named.items()}

    return {
        "version": VERSION,
        "buffers": [[b.elements, b.dtype] for b in program.buffers],
        "inputs": views(program.inputs),
        "outputs": views(program.outputs),
        "ops": [[op.kind, views(op.reads), views(op.writes), dict(op.attributes)] for op in program.ops],
        "constants": {name: dict(value) for name, value in program.constants.items()},
    }


def from_json(value: Mapping[str, Any]) -> Program:
    """The inverse of `to_json`, for values without batch lines."""

    def views(named: Mapping[str, Any]) -> dict[str, View]:
        return {
            name: View(buffer=v[0], offset=v[1], sizes=tuple(v[2]), strides=tuple(v[3])) for name, v in named.items()
        }

    return Program(
        buffers=tuple(Buffer(elements=b[0], dtype=b[1]) for b in value["buffers"]),
        inputs=views(value["inputs"]),
        outputs=views(value["outputs"]),
        ops=tuple(
            Op(kind=kind, reads=views(reads), writes=views(writes), attributes=attributes)
            for kind, reads, writes, attributes in value["ops"]
        ),
        constants=value["constants"],
    )


def join_batches(first: Any, second: Any, where: str = "program") -> Any:
    """One JSON value for every batch from those of the two `TRACED_BATCHES`.

    Integers that differ become `{"B": a, "plus": b}`, the line through both; see `has_offsets`.

    Raises:
        DqError: the two differ in more than sizes: the model does other operations for another batch.
    """
    if isinstance(first, dict) and isinstance(second, dict) and first.keys() == second.keys():
        return {key: join_batches(first[key], second[key], f"{where}.{key}") for key in first}
    if isinstance(first, list) and isinstance(second, list) and len(first) == len(second):
        return [join_batches(a, b, f"{where}[{i}]") for i, (a, b) in enumerate(zip(first, second, strict=True))]
    if type(first) is type(second) and first == second:
        return first
    if type(first) is int and type(second) is int:
        low, high = TRACED_BATCHES
        slope, rest = divmod(second - first, high - low)
        if not rest:
            return {"B": slope, "plus": first - slope * low}
    raise DqError(
        f"{where} is {str(first)[:60]} for one batch and {str(second)[:60]} for another, expected sizes alone to "
        "differ; this model cannot run in the native engine"
    )


def has_offsets(value: Any) -> bool:
    """Whether a size of a joined program is not in proportion to the batch: a third batch has to confirm it."""
    if isinstance(value, dict):
        return value["plus"] != 0 if value.keys() == {"B", "plus"} else any(map(has_offsets, value.values()))
    return isinstance(value, list) and any(map(has_offsets, value))


def check_joined(joined: Any, third: Any) -> None:
    """A joined program gives that of the `CHECKED_BATCH`.

    Raises:
        DqError: it does not: a size follows the batch by no line.
    """
    if at_batch(joined, CHECKED_BATCH) != json.loads(json.dumps(third)):
        raise DqError(
            f"the program of a batch of {CHECKED_BATCH} is not on the line through those of "
            f"{' and '.join(map(str, TRACED_BATCHES))}, expected sizes that grow evenly with the batch; this model "
            "cannot run in the native engine"
        )


def at_batch(value: Any, batch: int) -> Any:
    """A joined JSON value with the batch filled in."""
    if isinstance(value, dict):
        if value.keys() == {"B", "plus"}:
            return value["B"] * batch + value["plus"]
        return {key: at_batch(entry, batch) for key, entry in value.items()}
    if isinstance(value, list):
        return [at_batch(entry, batch) for entry in value]
    return value


def dumps(joined: Mapping[str, Any]) -> str:
    """A joined program as text."""
    return json.dumps(joined, separators=(",", ":"))


def loads(text: str) -> dict[str, Any]:
    """A joined program from text.

    Raises:
        DqError: another version.
    """
    value: dict[str, Any] = json.loads(text)
    if value.get("version") != VERSION:
        raise DqError(f"program has version {value.get('version')!r}, expected {VERSION}")
    return value


def check_bounds(program: Program, batch: int, sizes_of: Mapping[str, int]) -> None:
    """Every view ends inside its buffer.

    Args:
        program: of one batch size.
        batch: of the program.
        sizes_of: elements of each parameter the program reads.

    Raises:
        DqError: one does not; the model does something else for a batch of this size.
    """
    for op in program.ops:
        for role, view in (*op.reads.items(), *op.writes.items()):
            own = sizes_of[view.buffer] if isinstance(view.buffer, str) else program.buffers[view.buffer].elements
            low = view.offset + sum(min((n - 1) * s, 0) for n, s in zip(view.sizes, view.strides, strict=True))
            high = view.offset + sum(max((n - 1) * s, 0) for n, s in zip(view.sizes, view.strides, strict=True))
            if (low < 0 or high >= own) and min(view.sizes, default=1) > 0:
                raise DqError(
                    f"{role} of {op.kind} ends at element {high} of {view.buffer}, which has {own}, at a batch of "
                    f"{batch}; the model is another one for this batch, or the record's parameters have other shapes"
                )


def without_unused_buffers(program: Program) -> Program:
    """The program with the buffers nobody touches taken out, and the others numbered anew."""
    used = {v.buffer for op in program.ops for v in op.views() if isinstance(v.buffer, int)}
    used |= {v.buffer for v in (*program.inputs.values(), *program.outputs.values()) if isinstance(v.buffer, int)}
    numbers = {old: new for new, old in enumerate(sorted(used))}

    def moved(named: Mapping[str, View]) -> dict[str, View]:
        return {
            name: v if isinstance(v.buffer, str) else replace(v, buffer=numbers[v.buffer]) for name, v in named.items()
        }

    return replace(
        program,
        buffers=tuple(program.buffers[old] for old in sorted(used)),
        inputs=moved(program.inputs),
        outputs=moved(program.outputs),
        ops=tuple(replace(op, reads=moved(op.reads), writes=moved(op.writes)) for op in program.ops),
    )
