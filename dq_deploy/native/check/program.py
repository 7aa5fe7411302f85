"""A joined program, checked whole: its form as JSON, then every address, for a batch of one and for all others."""

from __future__ import annotations

import binascii
from collections.abc import Callable
from typing import Any, cast

import numpy as np

from dq_deploy.errors import FileProblemError
from dq_deploy.native.check.lines import BATCH, BatchNumber
from dq_deploy.native.check.memory import MOST, Place, Surroundings, Tensor, demand
from dq_deploy.native.check.ops import DTYPES, check_op
from dq_deploy.native.program.constants import array_of
from dq_deploy.native.program.program import VERSION, Op, Program, View, at_batch, from_json

_KEYS = {"version", "buffers", "inputs", "outputs", "ops", "constants"}
_LINE = {"B", "plus"}
_DEEPEST = 24
"""Levels of JSON values; lowering makes 9."""


def check_joined_program(joined: Any, around: Callable[[BatchNumber], Surroundings]) -> None:
    """Refuse a program that could leave its memory at any batch, or asks a kernel for what it does not do.

    Args:
        joined: of a file; any JSON value.
        around: what a program of one batch is checked against.

    Raises:
        FileProblemError: it names the op and what is wrong.
    """
    _check_form(joined)
    for batch in (1, BATCH):
        program = from_json(at_batch(joined, cast(int, batch)))
        check_program(program, around(batch))
        _check_order(program)


def check_program(program: Program, around: Surroundings) -> None:
    """Every buffer, input, output and op of a program of one batch, or of all at once.

    Raises:
        FileProblemError: it names the op.
    """
    for index, buffer in enumerate(program.buffers):
        demand(buffer.elements >= 1, f"buffer {index} has {buffer.elements} elements, expected 1 or more")
    for what, views, wanted in (
        ("input", program.inputs, around.inputs),
        ("output", program.outputs, around.outputs),
    ):
        demand(list(views) == list(wanted), f"{what}s are {list(views)}, expected {list(wanted)}")
        for name, view in views.items():
            _check_border(program, around, f"{what} {name}", view, wanted[name])
    places = [Place(program, index, around) for index in range(len(program.ops))]
    for place in places:
        check_op(place)
    multiplied = {(op.attributes["layer"], op.attributes["part"]) for op in program.ops if op.kind in _PRODUCTS}
    for place in places:
        for out in place.op.attributes.get("outs", ()):
            known = (out["layer"], out["part"]) in multiplied
            if not known:
                place.refuse(f"writes codes of part {out['part']} of {out['layer']}, which nothing multiplies")


_PRODUCTS = ("int_linear", "int_conv2d")


def _check_border(program: Program, around: Surroundings, name: str, view: View, wanted: Tensor) -> None:
    """An input or an output: a whole view of the shape and type that the denoiser has."""
    op = Op(kind=name, reads={}, writes={name: view})
    place = Place(Program(buffers=program.buffers, inputs={}, outputs={}, ops=(op,)), 0, around)
    given = name.startswith("input")
    place.demand(not (given and isinstance(view.buffer, str)), f"is {view.buffer}, expected a buffer")
    place.inside(name, view, wanted.dtype)
    place.sized(name, wanted.shape)


def _check_order(program: Program) -> None:
    """Nothing is read before it was written, and what threads read is not what they write."""
    written = {view.buffer for view in program.inputs.values()}
    for index, op in enumerate(program.ops):
        for role, view in op.reads.items():
            known = isinstance(view.buffer, str) or view.buffer in written
            if not known:
                raise FileProblemError(f"op {index} ({op.kind}): reads {role} before anything is there")
            mixed = op.kind not in ("host", "elementwise") and role not in ("previous", "residual", "row")
            apart = not mixed or all(other.buffer != view.buffer for other in op.writes.values())
            if not apart:
                raise FileProblemError(f"op {index} ({op.kind}): {role} lies in a buffer that it writes")
        written |= {view.buffer for view in op.writes.values()}
    for name, view in program.outputs.items():
        known = isinstance(view.buffer, str) or view.buffer in written
        demand(known, f"output {name} lies in buffer {view.buffer}, which nothing writes")


def _check_form(joined: Any) -> None:
    """Types and keys of every JSON value that `from_json` takes apart."""
    demand(isinstance(joined, dict) and joined.keys() == _KEYS, "the program has other keys than a program has")
    demand(joined["version"] == VERSION, f"the program has version {joined['version']!r}, expected {VERSION}")
    _check_numbers(joined, 0)
    for key, kind in (("buffers", list), ("ops", list), ("inputs", dict), ("outputs", dict), ("constants", dict)):
        demand(isinstance(joined[key], kind), f"{key} of the program is no {kind.__name__}")
    for buffer in joined["buffers"]:
        good = isinstance(buffer, list) and len(buffer) == 2 and _is_number(buffer[0]) and buffer[1] in (*DTYPES,)
        demand(good, f"a buffer is {str(buffer)[:80]}, expected elements and a dtype")
    for key in ("inputs", "outputs"):
        _check_views(key, joined[key])
    for index, op in enumerate(joined["ops"]):
        good = isinstance(op, list) and len(op) == 4 and isinstance(op[0], str)
        demand(
            good and isinstance(op[3], dict), f"op {index} is {str(op)[:80]}, expected kind, reads, writes, attributes"
        )
        _check_views(f"reads of op {index}", op[1])
        _check_views(f"writes of op {index}", op[2])
    for name, constant in joined["constants"].items():
        _check_constant(name, constant)


def _check_views(where: str, views: Any) -> None:
    demand(isinstance(views, dict), f"{where} are {str(views)[:80]}, expected views by role")
    for view in views.values():
        good = isinstance(view, list) and len(view) == 4 and type(view[0]) in (int, str) and _is_number(view[1])
        good = good and all(isinstance(part, list) and all(map(_is_number, part)) for part in view[2:])
        if not good or len(view[2]) != len(view[3]):
            raise FileProblemError(f"{where} hold {str(view)[:80]}, expected a view")


def _is_number(value: Any) -> bool:
    return type(value) is int or (isinstance(value, dict) and value.keys() == _LINE)


def _check_numbers(value: Any, depth: int) -> None:
    """Every whole number is one that products of do not overflow, and every line has two of them."""
    if type(value) is int:
        if abs(value) > MOST:
            raise FileProblemError(f"a number is {value}, expected {MOST} at most")
        return
    if depth > _DEEPEST:
        raise FileProblemError("the program is nested deeper than programs are")
    if isinstance(value, dict):
        if value.keys() == _LINE and not all(type(entry) is int for entry in value.values()):
            raise FileProblemError(f"a size is {str(value)[:80]}, expected whole numbers")
        for entry in value.values():
            _check_numbers(entry, depth + 1)
    elif isinstance(value, list):
        for entry in value:
            _check_numbers(entry, depth + 1)


def _check_constant(name: str, constant: Any) -> None:
    """A folded value is an array of a known type whose bytes are all there."""
    words = f"constant {name} is no array"
    demand(isinstance(constant, dict) and constant.keys() == {"dtype", "shape", "bytes"}, words)
    demand(constant["dtype"] in DTYPES and isinstance(constant["bytes"], str), words)
    shape = constant["shape"]
    demand(isinstance(shape, list) and all(type(size) is int and size >= 0 for size in shape), words)
    try:
        values = array_of(constant)
        demand(values.dtype != np.bool_ or not (values.view(np.uint8) > 1).any(), words)
    except (ValueError, binascii.Error) as error:
        raise FileProblemError(f"{words}: {error}") from error
