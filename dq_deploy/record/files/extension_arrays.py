"""What schema version 3 added, as header entries and arrays: the counterpart of `extensions` in the two file forms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from dq_deploy.errors import RecordError
from dq_deploy.record.extensions import OUTPUT, AttentionQuantizers, Branch, Call, CallInput, CodeTable, Fold
from dq_deploy.record.files.header import check_keys, check_type, check_unique, is_int, name_of, typed_array
from dq_deploy.record.values import Layer, Record

Arrays = Mapping[str, NDArray[Any]]

TOP_KEYS = ("attention", "call")
LAYER_KEYS = ("fold_producer", "branch")
_BRANCH_KEYS = ("rank", "scale")
_TABLE_KEYS = ("bits", "q_min", "q_max")


def extended_by(record: Record) -> str:
    """The first thing in a record that only schema version 3 can hold, in words; empty where there is none."""
    if record.attention or record.call is not None:
        return "attention" if record.attention else "call"
    reasons = (f"layer {name}: {reason}" for name, layer in record.layers.items() if (reason := _beyond(layer)))
    return next(reasons, "")


def _beyond(layer: Layer) -> str:
    for index, part in enumerate(layer.parts):
        if not part.fits_int8:
            low, high = part.q_weight_span
            return f"part {index}: w_code - w_zero_point spans [{low}, {high}], beyond int8"
    found = {
        "folded": layer.folded is not None,
        "branch": layer.branch is not None,
        "a bias row a step": layer.bias is not None and layer.bias.ndim == 2,
        f"{len(layer.parts)} parts": len(layer.parts) > 2,
    }
    return next((what for what, there in found.items() if there), "")


def top_header(record: Record) -> dict[str, Any]:
    """Header entries of the whole record."""
    call = record.call
    return {
        "attention": [
            {
                "name": name,
                "tables": {
                    role: {key: int(getattr(table, key)) for key in _TABLE_KEYS} for role, table in own.tables.items()
                },
            }
            for name, own in record.attention.items()
        ],
        "call": None if call is None else _call_header(call),
    }


def says_sizes(record: Record) -> bool:
    """Whether the call has what schema version 4 added: values of its sizes, and limits of its inputs."""
    return record.call is not None and _says_sizes(record.call)


def _says_sizes(call: Call) -> bool:
    return bool(call.sizes or call.outputs or any(item.limits is not None for item in call.inputs))


def _call_header(call: Call) -> dict[str, Any]:
    inputs: list[dict[str, Any]] = [{"name": i.name, "dtype": i.dtype, "shape": list(i.shape)} for i in call.inputs]
    if not _says_sizes(call):
        return {"inputs": inputs, "constants": dict(call.constants)}
    for entry, item in zip(inputs, call.inputs, strict=True):
        entry["limits"] = None if item.limits is None else list(item.limits)
    said = {"inputs": inputs, "constants": dict(call.constants)}
    # the one output that has no other name is a list by itself, as all were before there were several
    if call.outputs.keys() <= {OUTPUT}:
        return {**said, "sizes": dict(call.sizes), "output": list(call.outputs.get(OUTPUT, ()))}
    outputs = {name: list(shape) for name, shape in call.outputs.items()}
    return {**said, "sizes": dict(call.sizes), "outputs": outputs}


def layer_header(layer: Layer) -> dict[str, Any]:
    """Header entries of one layer."""
    branch = layer.branch
    return {
        "fold_producer": None if layer.folded is None else layer.folded.producer,
        "branch": None if branch is None else {"rank": len(branch.down), "scale": float(branch.scale)},
    }


def extension_arrays(record: Record) -> dict[str, NDArray[Any]]:
    """Arrays that the other versions do not have."""
    arrays: dict[str, NDArray[Any]] = {}
    for name, layer in record.layers.items():
        if layer.folded is not None:
            arrays[f"layer/{name}/fold_factor"] = layer.folded.factor
        if layer.branch is not None:
            arrays[f"layer/{name}/branch_down"] = layer.branch.down
            arrays[f"layer/{name}/branch_up"] = layer.branch.up
    for name, own in record.attention.items():
        for role, table in own.tables.items():
            arrays[f"attention/{name}/{role}/scale"] = table.scale
            arrays[f"attention/{name}/{role}/zero_point"] = table.zero_point
    return arrays


def check_layer_entry(name: str, entry: Mapping[str, Any]) -> None:
    """Types of a layer's entries.

    Raises:
        RecordError: names the layer and the key.
    """
    if entry["fold_producer"] is not None:
        check_type(f"layer {name}: fold_producer", entry["fold_producer"], str)
    branch = entry["branch"]
    if branch is not None:
        check_type(f"layer {name}: branch", branch, dict)
        check_keys(f"layer {name}: branch", branch, _BRANCH_KEYS)
        if not is_int(branch["rank"]) or branch["rank"] < 1:
            raise RecordError(f"layer {name}: branch rank is {branch['rank']!r}, expected a whole number from 1")
        check_type(f"layer {name}: branch scale", branch["scale"], float)


def check_top(header: Mapping[str, Any]) -> None:
    """Types of the record's entries.

    Raises:
        RecordError: names the key.
    """
    check_type("attention", header["attention"], list)
    names = [name_of("attention", entry) for entry in header["attention"]]
    check_unique("attention", names)
    for name, entry in zip(names, header["attention"], strict=True):
        check_keys(f"attention {name}", entry, ("name", "tables"))
        check_type(f"attention {name}: tables", entry["tables"], dict)
        for role, table in entry["tables"].items():
            check_type(f"attention {name}: {role}", table, dict)
            check_keys(f"attention {name}: {role}", table, _TABLE_KEYS)
            for key, value in table.items():
                if not is_int(value):
                    raise RecordError(f"attention {name}: {role} {key} is {value!r}, expected a whole number")
    if header["call"] is not None:
        check_type("call", header["call"], dict)
        new = header["version"] >= 4
        several = new and "outputs" in header["call"]
        own = ("sizes", "outputs" if several else "output") if new else ()
        check_keys("call", header["call"], ("inputs", "constants", *own))
        if new:
            check_type("call sizes", header["call"]["sizes"], dict)
            outputs = header["call"]["outputs"] if several else {OUTPUT: header["call"]["output"]}
            check_type("call outputs", outputs, dict)
            for name, shape in outputs.items():
                check_type(f"call output {name}", shape, list)
                _check_shape(f"call output {name}", shape)
        check_type("call inputs", header["call"]["inputs"], list)
        check_type("call constants", header["call"]["constants"], dict)
        for entry in header["call"]["inputs"]:
            _check_input(entry, new=new)


def _check_input(entry: Any, *, new: bool) -> None:
    check_type("call input", entry, dict)
    check_keys("call input", entry, ("name", "dtype", "shape", *(("limits",) if new else ())))
    check_type("call input name", entry["name"], str)
    check_type(f"call input {entry['name']}: dtype", entry["dtype"], str)
    check_type(f"call input {entry['name']}: shape", entry["shape"], list)
    _check_shape(f"call input {entry['name']}", entry["shape"])
    limits = entry.get("limits")
    if limits is not None:
        check_type(f"call input {entry['name']}: limits", limits, list)
        if len(limits) != 2 or not all(is_int(v) or isinstance(v, float) for v in limits):
            raise RecordError(f"call input {entry['name']} has the limits {limits!r}, expected two numbers")


def _check_shape(what: str, shape: list[Any]) -> None:
    for size in shape:
        if not is_int(size) and not isinstance(size, str):
            raise RecordError(f"{what} has the size {size!r}, expected a number or a name")


def wanted_arrays(header: Mapping[str, Any]) -> set[str]:
    """Names of the arrays that the checked header asks for."""
    wanted = {f"layer/{e['name']}/fold_factor" for e in header["layers"] if e["fold_producer"] is not None}
    for entry in header["layers"]:
        if entry["branch"] is not None:
            wanted |= {f"layer/{entry['name']}/branch_{end}" for end in ("down", "up")}
    for entry in header["attention"]:
        for role in entry["tables"]:
            wanted |= {f"attention/{entry['name']}/{role}/{key}" for key in ("scale", "zero_point")}
    return wanted


def layer_extensions(entry: Mapping[str, Any], arrays: Arrays) -> dict[str, Any]:
    """Fields `folded` and `branch` of a layer.

    Raises:
        RecordError: names the array or the layer.
    """
    name = entry["name"]
    folded = branch = None
    try:
        if entry["fold_producer"] is not None:
            factor = typed_array(arrays, f"layer/{name}/fold_factor", "float32")
            folded = Fold(producer=entry["fold_producer"], factor=factor)
        if entry["branch"] is not None:
            down, up = (typed_array(arrays, f"layer/{name}/branch_{end}", "float32") for end in ("down", "up"))
            if not len(down) == entry["branch"]["rank"]:
                raise RecordError(f"branch rank is {entry['branch']['rank']}, branch_down has {len(down)} rows")
            branch = Branch(down=down, up=up, scale=entry["branch"]["scale"])
    except RecordError as error:
        raise RecordError(f"layer {name}: {error}") from error
    return {"folded": folded, "branch": branch}


def record_extensions(header: Mapping[str, Any], arrays: Arrays) -> dict[str, Any]:
    """Fields `attention` and `call` of a record.

    Raises:
        RecordError: names the array or the key.
    """
    attention = {e["name"]: _quantizers(e, arrays) for e in header["attention"]}
    said = header["call"]
    if said is None:
        return {"attention": attention, "call": None}
    inputs = tuple(
        CallInput(name=e["name"], dtype=e["dtype"], shape=tuple(e["shape"]), limits=_limits(e.get("limits")))
        for e in said["inputs"]
    )
    outputs = said.get("outputs", {OUTPUT: said["output"]} if said.get("output") else {})
    call = Call(
        inputs=inputs,
        constants=said["constants"],
        sizes=said.get("sizes", {}),
        outputs={name: tuple(shape) for name, shape in outputs.items()},
    )
    return {"attention": attention, "call": call}


def _limits(value: list[float] | None) -> tuple[float, float] | None:
    return None if value is None else (value[0], value[1])


def _quantizers(entry: Mapping[str, Any], arrays: Arrays) -> AttentionQuantizers:
    name, tables = entry["name"], {}
    for role, numbers in entry["tables"].items():
        prefix = f"attention/{name}/{role}"
        scale = typed_array(arrays, f"{prefix}/scale", "float32")
        zero_point = typed_array(arrays, f"{prefix}/zero_point", "int32")
        try:
            tables[role] = CodeTable(**numbers, scale=scale, zero_point=zero_point)
        except RecordError as error:
            raise RecordError(f"attention {name}: {role}: {error}") from error
    return AttentionQuantizers(name=name, tables=tables)
