"""What a native engine holds against what its record makes: the program, its calls, packed weights, tables, parameters.

All of it is made again from the record as the engine makes it, and must be the same bit for bit.
"""

from __future__ import annotations

import ctypes as c
import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from dq_deploy.native.cpu.arguments import product_codes_struct, struct_of
from dq_deploy.native.cpu.executor import CpuExecutor, Plan
from dq_deploy.native.program.layer_constants import FloatConstants, LayerConstants, padded_parts
from dq_deploy.native.program.program import View, at_batch, from_json
from dq_deploy.native.runner import NativeRunner
from dq_deploy.native.trace.traced import traced_program
from dq_deploy.record import Record
from dq_deploy.record.files.arrays import arrays_from_record
from dq_deploy.verify.file.same_values import FileDifference, array_difference, value_differences

_TABLES = ("pre", "scale", "inverse", "zero_point", "weight_scale", "bias", "packed")


def native_differences(record: Record, runner: Any) -> Iterator[FileDifference]:
    """Everything in an opened native engine that the record does not make.

    Args:
        record: read apart from the engine.
        runner: a `NativeRunner` or a `NativeCudaRunner`, after it ran.
    """
    executor = runner.executor
    if isinstance(runner, NativeRunner) and runner.held is not None:
        yield from _record_differences(record, runner.held.record)
    joined = traced_program(record, anew=True)
    yield from value_differences("program", _as_json(executor.joined), _as_json(joined))
    edges = executor.edges if isinstance(executor.edges, np.ndarray) else executor.edges.cpu().numpy()
    difference = array_difference("step edges", edges, np.asarray(record.step_edges, np.float32))
    if difference is not None:
        yield difference
    yield from _parameter_differences(record, executor.floats, joined)
    if isinstance(executor, CpuExecutor):
        yield from _layer_differences(record, executor, joined)
        for (batch, sizes), plan in executor.kept_plans().items():
            where = " and ".join([f"a batch of {batch}", *(f"{size} {name}" for name, size in sizes)])
            yield from _call_differences(where, plan)


def _as_json(joined: Mapping[str, Any]) -> Any:
    """Lists where there are tuples, as in a copy that was read from a file."""
    return json.loads(json.dumps(joined))


def _record_differences(record: Record, held: Record) -> Iterator[FileDifference]:
    """What a program file holds of its record: the header, and every array, weight codes among them."""
    (mine, arrays), (text, stored) = arrays_from_record(record), arrays_from_record(held)
    yield from value_differences("record", json.loads(text), json.loads(mine))
    for name in sorted({*arrays, *stored}):
        if name not in arrays or name not in stored:
            words = ("there", "nothing there") if name in stored else ("missing", "there")
            yield FileDifference(place=f"record {name}", got=words[0], expected=words[1])
            continue
        difference = array_difference(f"record {name}", stored[name], arrays[name])
        if difference is not None:
            yield difference


def _parameter_differences(record: Record, held: FloatConstants, joined: Mapping[str, Any]) -> Iterator[FileDifference]:
    made = FloatConstants(record, joined["constants"])
    views: dict[str, View] = {}
    for op in from_json(at_batch(joined, 1)).ops:
        views |= {str(v.buffer): v for v in op.views() if isinstance(v.buffer, str)}
    for name, got in held.held().items():
        if name not in views:
            yield FileDifference(place=f"constant {name}", got="there", expected="nothing there")
            continue
        difference = array_difference(f"constant {name}", got, made.base(views[name]))
        if difference is not None:
            yield difference


def _layer_differences(record: Record, executor: CpuExecutor, joined: Mapping[str, Any]) -> Iterator[FileDifference]:
    """Weights and tables of every part; a layer the record lacks was named with the program."""
    parts = padded_parts(from_json(at_batch(joined, 1)), record.layers)
    for name, part in dict.fromkeys([*parts, *executor.constants]):
        place = f"layer {name}" + (f" part {part}" if part else "")
        own = executor.constants.get((name, part))
        if own is None or (name, part) not in parts:
            there = "nothing there" if own is not None else "there"
            yield FileDifference(place=place, got="missing" if own is None else "there", expected=there)
            continue
        made = LayerConstants(record.layers[name], part, executor.context, padded=parts[name, part])
        if (own.reason, own.form) != (made.reason, made.form):
            yield FileDifference(place=f"{place}, form", got=own.form, expected=made.form)
        for table in _TABLES:
            got, expected = getattr(own, table), getattr(made, table)
            if got is None or expected is None:
                if got is not expected:
                    words = tuple("missing" if value is None else "there" for value in (got, expected))
                    yield FileDifference(place=f"{place}, {table}", got=words[0], expected=words[1])
                continue
            difference = array_difference(f"{place}, {table}", got, expected)
            if difference is not None:
                yield difference


def _call_differences(where: str, plan: Plan) -> Iterator[FileDifference]:
    """The structs the kernels are called with, field by field, against those the program makes of the same memory."""
    for index, got in plan.structs.items():
        op = plan.program.ops[index]
        expected = struct_of(plan.bound, op, index)
        named = op.attributes.get("layer") or ", ".join(out["layer"] for out in op.attributes.get("outs", ()))
        place = f"call {index} ({op.kind}{f' of {named}' if named else ''}) at {where}"
        yield from _field_differences(place, got, expected)
    for index, (found, got) in plan.at_once.items():
        named = plan.program.ops[index].attributes["layer"]
        place = f"calls {index} to {found.last} (int_linear_codes of {named}) at {where}"
        yield from _field_differences(place, got, product_codes_struct(plan.bound, plan.program, found))


def _field_differences(place: str, got: Any, expected: Any) -> Iterator[FileDifference]:
    if bytes(got) == bytes(expected):
        return
    for name, _ in type(got)._fields_:
        mine, other = getattr(got, name), getattr(expected, name)
        if isinstance(mine, c.Structure):
            yield from _field_differences(f"{place}, {name}", mine, other)
        elif isinstance(mine, c.Array):
            for i, (a, b) in enumerate(zip(mine, other, strict=True)):
                if isinstance(a, c.Structure):
                    yield from _field_differences(f"{place}, {name}[{i}]", a, b)
                elif a != b:
                    yield FileDifference(place=f"{place}, {name}[{i}]", got=str(a), expected=str(b))
        elif mine != other:
            yield FileDifference(place=f"{place}, {name}", got=str(mine), expected=str(other))
