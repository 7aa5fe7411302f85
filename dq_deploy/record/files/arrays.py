"""A record as a JSON header and a flat dict of arrays, the content both file forms share.

`docs/record-schema.md` lists every key. The order is canonical: JSON keys sorted, arrays by name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dq_deploy.errors import RecordError
from dq_deploy.numerics import pack_nibbles, unpack_nibbles
from dq_deploy.record.files import extension_arrays as extensions
from dq_deploy.record.files.header import check_keys, check_type, check_unique, is_int, name_of, typed_array
from dq_deploy.record.stored_codes import StoredCodes, StoredPart
from dq_deploy.record.values import SCHEMA_VERSION, Layer, Part, Record
from dq_deploy.record.weight_only import WeightOnlyLayer

Arrays = dict[str, NDArray[np.generic]]

FORMAT = "dq_deploy.record"
HASHED_VERSION = 3
"""First schema version whose files hold the hash of their content; the bytes of older ones are as they always were."""

HASH_KEY = "content_sha256"
"""Header entry of that hash; it is added to the finished header and no part of what is hashed."""

_KNOWN_HASH = "_content_sha256"
PACKED_BITS = 4
"""Codes of this many bits and fewer are stored two a byte."""

FLOAT_PARAMETER_DTYPES = ("float32", "float16", "int64", "int32", "bool")
_TOP_KEYS = (
    "format",
    "version",
    "family",
    "model_config",
    "scheduler_config",
    "provenance",
    "float_parameters",
    "layers",
)
_SECOND_TOP_KEYS = ("weight_only", "float_ranges")
"""Keys of schema version 2 and later."""

_WEIGHT_ONLY_KEYS = ("name", "weight_bits", "block_size", "shape", "has_bias")
_LAYER_INTS = ("groups", "weight_bits", "activation_bits", "q_min", "q_max")
_LAYER_TUPLES = {"stride": 2, "padding": 4, "dilation": 2}
_LAYER_KEYS = ("name", "kind", "fold", "has_bias", "has_output", "w_shapes", *_LAYER_INTS, *_LAYER_TUPLES)
_PART_ARRAYS = {
    "pre": "float32",
    "scale": "float32",
    "zero_point": "int32",
    "w_zero_point": "int32",
    "weight_scale": "float32",
    "group_of_step": "int32",
}


def header_text(header: Mapping[str, Any]) -> str:
    """Canonical JSON: sorted keys, no spaces, ASCII.

    Raises:
        RecordError: a value is not JSON (an object, NaN or infinity).
    """
    try:
        return json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise RecordError(
            f"model_config, scheduler_config or provenance is not JSON ({error}); use plain finite values"
        ) from error


def part_key(layer: str, index: int, name: str) -> str:
    """Name of an array of one part."""
    return f"layer/{layer}/part{index}/{name}"


def version_of(record: Record) -> int:
    """The lowest schema version that can hold a record: one record has one form and one hash."""
    if extensions.says_sizes(record):
        return 4
    if extensions.extended_by(record):
        return 3
    return 2 if record.weight_only or record.float_ranges else 1


def arrays_from_record(record: Record) -> tuple[str, Arrays]:
    """The JSON header and the arrays of a record, in canonical order, C-contiguous and little-endian.

    Raises:
        RecordError: a configuration is not JSON, or a float parameter has a type that is not stored.
    """
    version = version_of(record)
    header = {
        "format": FORMAT,
        "version": version,
        "family": record.family,
        "model_config": dict(record.model_config),
        "scheduler_config": None if record.scheduler_config is None else dict(record.scheduler_config),
        "provenance": dict(record.provenance),
        "float_parameters": sorted(record.float_parameters),
        "layers": [_layer_header(layer, version) for layer in record.layers.values()],
    }
    if version >= 2:
        header["weight_only"] = [_weight_only_header(layer) for layer in record.weight_only.values()]
        header["float_ranges"] = {name: float(value) for name, value in record.float_ranges.items()}
    if version >= 3:
        header |= extensions.top_header(record)
    arrays: dict[str, NDArray[Any]] = {"timesteps": record.timesteps, "step_edges": record.step_edges}
    arrays.update(extensions.extension_arrays(record))
    for key, value in record.float_parameters.items():
        if value.dtype.name not in FLOAT_PARAMETER_DTYPES:
            raise RecordError(
                f"float parameter {key} is {value.dtype}, expected one of {', '.join(FLOAT_PARAMETER_DTYPES)}"
            )
        arrays[f"float/{key}"] = value
    for name, layer in record.layers.items():
        arrays.update(_layer_arrays(name, layer))
    for name, light in record.weight_only.items():
        arrays.update(_weight_only_arrays(name, light))
    little = {key: np.ascontiguousarray(a).reshape(a.shape) for key, a in sorted(arrays.items())}
    return header_text(header), {k: a.astype(a.dtype.newbyteorder("<"), copy=False) for k, a in little.items()}


def _layer_header(layer: Layer, version: int) -> dict[str, Any]:
    return {
        **(extensions.layer_header(layer) if version >= 3 else {}),
        "name": layer.name,
        "kind": layer.kind,
        "fold": layer.fold,
        "has_bias": layer.bias is not None,
        "has_output": layer.out_scale is not None,
        "w_shapes": [[int(n) for n in part.w_shape] for part in layer.parts],
        **{key: int(getattr(layer, key)) for key in _LAYER_INTS},
        **{key: [int(n) for n in getattr(layer, key)] for key in _LAYER_TUPLES},
    }


def _layer_arrays(name: str, layer: Layer) -> dict[str, NDArray[Any]]:
    arrays: dict[str, NDArray[Any]] = {}
    for i, part in enumerate(layer.parts):
        packed = layer.weight_bits <= PACKED_BITS
        arrays[part_key(name, i, "w_code")] = pack_nibbles(part.w_code) if packed else part.w_code
        for key in _PART_ARRAYS:
            arrays[part_key(name, i, key)] = getattr(part, key)
    if layer.bias is not None:
        arrays[f"layer/{name}/bias"] = layer.bias
    if layer.out_scale is not None and layer.out_zero_point is not None:
        arrays[f"layer/{name}/out_scale"] = layer.out_scale
        arrays[f"layer/{name}/out_zero_point"] = layer.out_zero_point
    return arrays


def _weight_only_header(layer: WeightOnlyLayer) -> dict[str, Any]:
    return {
        "name": layer.name,
        "weight_bits": int(layer.weight_bits),
        "block_size": int(layer.block_size),
        "shape": [int(n) for n in layer.w_code.shape],
        "has_bias": layer.bias is not None,
    }


def _weight_only_arrays(name: str, layer: WeightOnlyLayer) -> dict[str, NDArray[Any]]:
    packed = layer.weight_bits <= PACKED_BITS
    arrays: dict[str, NDArray[Any]] = {
        f"weight_only/{name}/w_code": pack_nibbles(layer.w_code) if packed else layer.w_code,
        f"weight_only/{name}/scale": layer.scale,
    }
    if layer.bias is not None:
        arrays[f"weight_only/{name}/bias"] = layer.bias
    return arrays


def content_sha256(record: Record) -> str:
    """Hex SHA-256 of a record's content; the same for both file forms and every place it was written to.

    Of a record as it was loaded it is known, since its file was checked by it.
    """
    known = record.__dict__.get(_KNOWN_HASH)
    return str(known) if known is not None else sha256_of_content(*arrays_from_record(record))


def with_known_sha256(record: Record, digest: str) -> Record:
    """The same record, whose `content_sha256` has just been computed; a copy made by `replace` forgets it."""
    record.__dict__[_KNOWN_HASH] = digest
    return record


def hashed_header(text: str, arrays: Mapping[str, NDArray[Any]]) -> str:
    """The header as a file holds it: with the hash of header and arrays, from schema version 3 on."""
    header = parse_header(text)
    if header["version"] < HASHED_VERSION:
        return text
    return header_text({**header, HASH_KEY: sha256_of_content(text, arrays)})


def bare_header(text: str) -> tuple[str, str | None]:
    """The inverse of `hashed_header`: the header that was hashed, and the hash; None where the version has none.

    Raises:
        RecordError: not a record's header, or a version that has a hash and none stored.
    """
    header = parse_header(text)
    if header["version"] < HASHED_VERSION:
        return text, None
    stored = header.pop(HASH_KEY, None)
    if not isinstance(stored, str):
        raise RecordError(f"header lacks {HASH_KEY}; the file is incomplete")
    return header_text(header), stored


def sha256_of_content(text: str, arrays: Mapping[str, NDArray[Any]]) -> str:
    """`content_sha256` of what `arrays_from_record` gave."""
    digest = hashlib.sha256(text.encode("ascii"))
    for key, array in arrays.items():
        digest.update(f"\n{key} {array.dtype.name} {list(array.shape)}\n".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)  # no copy
    return digest.hexdigest()


def parse_header(text: str) -> dict[str, Any]:
    """The header of a record, its format and version checked, nothing else.

    Raises:
        RecordError: not a record's header, or one of a newer schema version.
    """
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"header is not JSON ({error}); expected a record written by dq-quantize") from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise RecordError(f"header names no format {FORMAT!r}; expected a record written by dq-quantize")
    version = header.get("version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise RecordError(f"schema version is {version!r}, expected a whole number from 1")
    if version > SCHEMA_VERSION:
        raise RecordError(
            f"schema version is {version}, this dq_deploy reads up to {SCHEMA_VERSION}; upgrade dq_deploy"
        )
    return header


def record_from_arrays(
    text: str, arrays: Mapping[str, NDArray[Any]], stored: Mapping[str, StoredCodes] | None = None
) -> Record:
    """The inverse of `arrays_from_record`; every key, type, shape and invariant is checked.

    Args:
        text: the header.
        arrays: by name.
        stored: weight codes that are held in another form, by the name of the array that they stand for.

    Raises:
        RecordError: names the key, and the layer, of what is wrong.
    """
    header, held = parse_header(text), stored or {}
    version = header["version"]
    second, third = version >= 2, version >= 3
    keys = (*_TOP_KEYS, *(_SECOND_TOP_KEYS if second else ()), *(extensions.TOP_KEYS if third else ()))
    check_keys("header", header, keys)
    check_type("family", header["family"], str)
    for key in ("model_config", "provenance"):
        check_type(key, header[key], dict)
    if header["scheduler_config"] is not None:
        check_type("scheduler_config", header["scheduler_config"], dict)
    check_type("float_parameters", header["float_parameters"], list)
    check_type("layers", header["layers"], list)
    for key in header["float_parameters"]:
        check_type("float_parameters entry", key, str)
    names = [name_of("layers", entry) for entry in header["layers"]]
    for name, entry in zip(names, header["layers"], strict=True):
        _check_layer_header(name, entry, version)
    check_unique("float_parameters", header["float_parameters"])
    check_unique("layers", names)
    light = _checked_weight_only(header) if second else []
    if third:
        extensions.check_top(header)
    _check_arrays(header, light, [*arrays, *held])
    record = Record(
        family=header["family"],
        layers={name: _layer_of(e, arrays, held) for name, e in zip(names, header["layers"], strict=True)},
        timesteps=typed_array(arrays, "timesteps", "float32"),
        step_edges=typed_array(arrays, "step_edges", "float32"),
        float_parameters={key: _float_parameter(arrays, key) for key in header["float_parameters"]},
        model_config=header["model_config"],
        scheduler_config=header["scheduler_config"],
        provenance=header["provenance"],
        weight_only={entry["name"]: _weight_only_of(entry, arrays) for entry in light},
        float_ranges=header["float_ranges"] if second else {},
        **(extensions.record_extensions(header, arrays) if third else {}),
    )
    if version_of(record) != version:
        beyond = extensions.extended_by(record) or "nothing beyond it"
        raise RecordError(f"{beyond}; expected schema version {version_of(record)} for that, the header says {version}")
    return record


def _check_layer_header(name: str, entry: Mapping[str, Any], version: int) -> None:
    what = f"layer {name}:"
    check_keys(f"layer {name}", entry, (*_LAYER_KEYS, *(extensions.LAYER_KEYS if version >= 3 else ())))
    if version >= 3:
        extensions.check_layer_entry(name, entry)
    for key in ("kind", "fold"):
        check_type(f"{what} {key}", entry[key], str)
    for key in ("has_bias", "has_output"):
        check_type(f"{what} {key}", entry[key], bool)
    for key in _LAYER_INTS:
        if not is_int(entry[key]):
            raise RecordError(f"{what} {key} is {entry[key]!r}, expected a whole number")
    for key, length in _LAYER_TUPLES.items():
        value = entry[key]
        if not (isinstance(value, list) and len(value) == length and all(map(is_int, value))):
            raise RecordError(f"{what} {key} is {value!r}, expected {length} whole numbers")
    shapes = entry["w_shapes"]
    if not isinstance(shapes, list) or not shapes or (len(shapes) > 2 and version < 3):
        raise RecordError(f"{what} w_shapes is {shapes!r}, expected one shape for each of 1 or 2 parts")
    for shape in shapes:
        if not (isinstance(shape, list) and all(is_int(n) and 1 <= n < 2**31 for n in shape)):
            raise RecordError(f"{what} w_shapes holds {shape!r}, expected positive whole numbers")


def _checked_weight_only(header: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The entries of `weight_only`, their keys and types checked, and those of `float_ranges`."""
    entries, ranges = header["weight_only"], header["float_ranges"]
    check_type("weight_only", entries, list)
    check_type("float_ranges", ranges, dict)
    if header["version"] == 2 and not entries and not ranges:
        raise RecordError("weight_only and float_ranges are empty, expected schema version 1 for such a record")
    for name, value in ranges.items():
        check_type(f"float_ranges of {name!r}", value, float)
    names = [name_of("weight_only", entry) for entry in entries]
    for name, entry in zip(names, entries, strict=True):
        check_keys(f"layer {name}", entry, _WEIGHT_ONLY_KEYS)
        for key in ("weight_bits", "block_size"):
            if not is_int(entry[key]):
                raise RecordError(f"layer {name}: {key} is {entry[key]!r}, expected a whole number")
        check_type(f"layer {name}: has_bias", entry["has_bias"], bool)
        shape = entry["shape"]
        if not (isinstance(shape, list) and len(shape) == 2 and all(is_int(n) and 1 <= n < 2**31 for n in shape)):
            raise RecordError(f"layer {name}: shape is {shape!r}, expected two positive whole numbers")
    check_unique("weight_only", names)
    return list(entries)


def _check_arrays(header: Mapping[str, Any], light: Iterable[Mapping[str, Any]], arrays: Sequence[str]) -> None:
    wanted = {"timesteps", "step_edges", *(f"float/{key}" for key in header["float_parameters"])}
    for entry in header["layers"]:
        name = entry["name"]
        for i in range(len(entry["w_shapes"])):
            wanted |= {part_key(name, i, key) for key in ("w_code", *_PART_ARRAYS)}
        if entry["has_bias"]:
            wanted.add(f"layer/{name}/bias")
        if entry["has_output"]:
            wanted |= {f"layer/{name}/out_scale", f"layer/{name}/out_zero_point"}
    if header["version"] >= 3:
        wanted |= extensions.wanted_arrays(header)
    for entry in light:
        keys = ("w_code", "scale", "bias") if entry["has_bias"] else ("w_code", "scale")
        wanted |= {f"weight_only/{entry['name']}/{key}" for key in keys}
    if missing := sorted(wanted - set(arrays)):
        raise RecordError(f"tensor {missing[0]} is missing ({len(missing)} in all); the file is incomplete")
    if unknown := sorted(set(arrays) - wanted):
        raise RecordError(f"tensor {unknown[0]} is unknown ({len(unknown)} in all); expected only listed tensors")


def _float_parameter(arrays: Mapping[str, NDArray[Any]], key: str) -> NDArray[Any]:
    array = arrays[f"float/{key}"]
    if array.dtype.name not in FLOAT_PARAMETER_DTYPES:
        expected = ", ".join(FLOAT_PARAMETER_DTYPES)
        raise RecordError(f"tensor float/{key} is {array.dtype}, expected one of {expected}")
    return array


def _part_of(entry: Mapping[str, Any], i: int, arrays: Mapping[str, NDArray[Any]], code: StoredCodes | None) -> Part:
    name, shape, packed = entry["name"], entry["w_shapes"][i], entry["weight_bits"] <= PACKED_BITS
    found = None if code is None else list(code.shape)
    if code is None:
        stored = typed_array(arrays, part_key(name, i, "w_code"), "uint8" if packed else "int8")
        found = shape if packed else list(stored.shape)
    if found != shape:
        raise RecordError(f"layer {name}: w_code has shape {found}, w_shapes says {shape}")
    values = {key: typed_array(arrays, part_key(name, i, key), dtype) for key, dtype in _PART_ARRAYS.items()}
    try:
        if code is not None:
            return StoredPart(code, **values)
        return Part(w_code=unpack_nibbles(stored, tuple(shape)) if packed else stored, **values)
    except RecordError as error:
        raise RecordError(f"layer {name}: part {i}: {error}") from error


def _layer_of(entry: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], held: Mapping[str, StoredCodes]) -> Layer:
    name, count = entry["name"], len(entry["w_shapes"])
    parts = [_part_of(entry, i, arrays, held.get(part_key(name, i, "w_code"))) for i in range(count)]
    return Layer(
        name=name,
        kind=entry["kind"],
        fold=entry["fold"],
        **(extensions.layer_extensions(entry, arrays) if "branch" in entry else {}),
        parts=tuple(parts),
        bias=typed_array(arrays, f"layer/{name}/bias", "float32") if entry["has_bias"] else None,
        out_scale=typed_array(arrays, f"layer/{name}/out_scale", "float32") if entry["has_output"] else None,
        out_zero_point=typed_array(arrays, f"layer/{name}/out_zero_point", "int32") if entry["has_output"] else None,
        **_numbers_of(entry),
    )


def _numbers_of(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: entry[key] for key in _LAYER_INTS} | {key: tuple(entry[key]) for key in _LAYER_TUPLES}


def _weight_only_of(entry: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> WeightOnlyLayer:
    name, shape = entry["name"], tuple(entry["shape"])
    packed = entry["weight_bits"] <= PACKED_BITS
    code = typed_array(arrays, f"weight_only/{name}/w_code", "uint8" if packed else "int8")
    if not packed and code.shape != shape:
        raise RecordError(f"layer {name}: w_code has shape {list(code.shape)}, shape says {list(shape)}")
    try:
        w_code = unpack_nibbles(code, shape) if packed else code
    except RecordError as error:
        raise RecordError(f"layer {name}: {error}") from error
    return WeightOnlyLayer(
        name=name,
        weight_bits=entry["weight_bits"],
        block_size=entry["block_size"],
        w_code=w_code,
        scale=typed_array(arrays, f"weight_only/{name}/scale", "float32"),
        bias=typed_array(arrays, f"weight_only/{name}/bias", "float32") if entry["has_bias"] else None,
    )
