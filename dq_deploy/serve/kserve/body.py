"""The body of an infer request: unpacked, split into its JSON and its binary tensors, and checked."""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dq_deploy.serve.kserve.tensors import BYTES, DTYPES, Tensor, read_binary, read_json, shown
from dq_deploy.serve.web.asked import read_json_body
from dq_deploy.serve.web.errors import ApiError

MOST_JSON = 2 * 2**20
"""Bytes of the JSON of a request; what is larger is to be sent as binary tensors."""

MOST_TENSORS = 64
MOST_AXES = 8
LONGEST_ID = 256
LOWEST_PRIORITY, HIGHEST_PRIORITY = -10, 10

_WINDOW_BITS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
_SEQUENCE = ("sequence_id", "sequence_start", "sequence_end")
_SHARED = ("shared_memory_region", "shared_memory_byte_size", "shared_memory_offset")


@dataclass(frozen=True, kw_only=True)
class RequestedOutput:
    """An output that is asked for, and whether as raw bytes."""

    name: str
    binary: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class InferRequest:
    """A request whose form is right; whether a model takes it is not known yet.

    Attributes:
        id: of the client, given back; None where it sent none.
        inputs: with different names.
        outputs: likewise; empty where all are asked for.
        binary: whether outputs come as raw bytes where all are asked for.
        priority: higher ones go first.
        timeout_s: seconds the client waits; None as long as the server lets it.
        trace_parent: of the header traceparent.
    """

    id: str | None
    inputs: tuple[Tensor, ...]
    outputs: tuple[RequestedOutput, ...]
    binary: bool
    priority: int
    timeout_s: float | None
    trace_parent: str = ""


def unpacked(data: bytes, encoding: str, most: int) -> bytes:
    """A body as it was before it was compressed.

    Args:
        data: the body.
        encoding: of its header Content-Encoding; empty where there is none.
        most: bytes it may have.

    Raises:
        ApiError: another encoding, damaged, or too large.
    """
    name = encoding.strip().lower()
    if name in ("", "identity"):
        return data
    if name not in _WINDOW_BITS:
        raise ApiError(415, f"Content-Encoding is {shown(encoding)}, expected gzip, deflate or none")
    reader = zlib.decompressobj(_WINDOW_BITS[name])
    try:
        found = reader.decompress(data, most + 1)
    except zlib.error as error:
        raise ApiError(400, f"the body is no {name} ({error})") from error
    if len(found) > most:
        raise ApiError(413, f"the body is larger than {most} bytes when unpacked, which is the most")
    if not reader.eof or reader.unused_data:
        what = "has more behind its end" if reader.eof else "ends too early"
        raise ApiError(400, f"the body is no {name}: it {what}")
    return found


def read_infer(data: bytes, header_length: str | None) -> InferRequest:
    """An infer request.

    Args:
        data: the body, unpacked.
        header_length: of its header Inference-Header-Content-Length; None where the body is JSON alone.

    Raises:
        ApiError: it is none.
    """
    split = len(data) if header_length is None else _split(header_length, len(data))
    if split > MOST_JSON:
        raise json_too_large(split)
    body = read_json_body(data[:split])
    _check_keys(body, "the body", ("id", "parameters", "inputs", "outputs"))
    parameters = _parameters(body, "the body", ("binary_data_output", "priority", "timeout"))
    return InferRequest(
        id=_id(body.get("id")),
        inputs=_inputs(body, memoryview(data)[split:], header_length is not None),
        outputs=_outputs(body),
        binary=_flag(parameters, "binary_data_output"),
        priority=_priority(parameters.get("priority", 0)),
        timeout_s=_timeout(parameters.get("timeout", 0)),
    )


def json_too_large(size: int) -> ApiError:
    """Refuses a JSON."""
    return ApiError(413, f"the JSON has {size} bytes, expected at most {MOST_JSON}; send binary tensors")


def _split(header_length: str, size: int) -> int:
    if not re.fullmatch("[0-9]{1,12}", header_length) or not 0 < int(header_length) <= size:
        raise ApiError(
            400,
            f"Inference-Header-Content-Length is {shown(header_length)}, expected the bytes of the JSON: 1 to {size}, "
            "which the body has",
        )
    return int(header_length)


def _inputs(body: Mapping[str, Any], rest: memoryview, has_binary: bool) -> tuple[Tensor, ...]:
    entries = _entries(body, "inputs")
    if not entries:
        raise ApiError(400, "the request has no inputs, expected a list of tensors as inputs")
    found: list[Tensor] = []
    start = 0
    for entry in entries:
        name = _name(entry, "input")
        _check_keys(entry, f"input {shown(name)}", ("name", "datatype", "shape", "parameters", "data"))
        parameters = _parameters(entry, f"input {shown(name)}", ("binary_data_size",))
        datatype, shape = entry.get("datatype"), _shape(name, entry.get("shape"))
        if not isinstance(datatype, str) or datatype not in (*DTYPES, BYTES):
            known = ", ".join((*DTYPES, BYTES))
            raise ApiError(400, f"input {shown(name)} has the datatype {shown(datatype)}, expected one of {known}")
        size = parameters.get("binary_data_size")
        if (size is None) == ("data" not in entry):
            raise ApiError(400, f"input {shown(name)} has data twice or not at all, expected data or binary_data_size")
        if size is None:
            found.append(read_json(name, datatype, shape, entry["data"]))
            continue
        if type(size) is not int or not 0 <= size <= len(rest) - start or not has_binary:
            got = shown(size)
            where = f"{len(rest) - start} bytes of the body are left" if has_binary else (
                "the header Inference-Header-Content-Length is missing"
            )  # fmt: skip
            raise ApiError(400, f"binary_data_size of input {shown(name)} is {got}, but {where}")
        found.append(read_binary(name, datatype, shape, rest[start : start + size]))
        start += size
    _check_different([tensor.name for tensor in found], "input")
    if start != len(rest):
        raise ApiError(400, f"{len(rest)} bytes come behind the JSON, but the inputs say {start}")
    return tuple(found)


def _outputs(body: Mapping[str, Any]) -> tuple[RequestedOutput, ...]:
    default = _flag(_parameters(body, "the body", None), "binary_data_output")
    found: list[RequestedOutput] = []
    for entry in _entries(body, "outputs"):
        name = _name(entry, "output")
        _check_keys(entry, f"output {shown(name)}", ("name", "parameters"))
        parameters = _parameters(entry, f"output {shown(name)}", ("binary_data", "classification"))
        if parameters.get("classification", 0) != 0:
            raise ApiError(400, f"classification of output {shown(name)} is not served here; ask for the values")
        found.append(RequestedOutput(name=name, binary=_flag(parameters, "binary_data", default)))
    _check_different([output.name for output in found], "output")
    return tuple(found)


def _entries(body: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    entries = body.get(key)
    if entries is None:
        return []
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ApiError(400, f"{key} is {shown(entries)}, expected a list of objects")
    if len(entries) > MOST_TENSORS:
        raise ApiError(400, f"{key} has {len(entries)} entries, expected at most {MOST_TENSORS}")
    return entries


def _name(entry: Mapping[str, Any], kind: str) -> str:
    name = entry.get("name")
    if not isinstance(name, str) or not name:
        raise ApiError(400, f"the name of an {kind} is {shown(name)}, expected a text")
    return name


def _shape(name: str, shape: object) -> tuple[int, ...]:
    if not isinstance(shape, list) or len(shape) > MOST_AXES or not all(type(size) is int for size in shape):
        got = f"a list of {len(shape)}" if isinstance(shape, list) else shown(shape)
        raise ApiError(400, f"the shape of input {shown(name)} is {got}, expected up to {MOST_AXES} whole numbers")
    if any(not 0 < size < 2**31 for size in shape) or math.prod(shape) >= 2**31:
        raise ApiError(
            400,
            f"the shape of input {shown(name)} is [{', '.join(map(shown, shape))}], expected sizes from 1, and "
            "fewer than 2^31 values",
        )
    return tuple(shape)


def _parameters(owner: Mapping[str, Any], whose: str, known: tuple[str, ...] | None) -> dict[str, Any]:
    found = owner.get("parameters")
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise ApiError(400, f"parameters of {whose} are {shown(found)}, expected an object")
    if known is None:
        return found
    for name in found:
        if name in _SEQUENCE:
            raise ApiError(400, f"{name}: sequences are not served here; each request stands alone")
        if name in _SHARED:
            raise ApiError(400, f"{name}: shared memory is not served here; send tensors in the body")
        if name not in known:
            raise ApiError(400, f"{whose} has the parameter {shown(name)}, expected {' or '.join(known)}")
    return found


def _check_keys(owner: Mapping[str, Any], whose: str, known: tuple[str, ...]) -> None:
    odd = next((key for key in owner if key not in known), None)
    if odd is not None:
        raise ApiError(400, f"{whose} has {shown(odd)}, expected {', '.join(known)}")


def _check_different(names: list[str], kind: str) -> None:
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if twice is not None:
        raise ApiError(400, f"{kind} {shown(twice)} is given twice, expected once")


def _flag(parameters: Mapping[str, Any], name: str, default: bool = False) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise ApiError(400, f"{name} is {shown(value)}, expected true or false")
    return value


def _id(value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or len(value) > LONGEST_ID:
        got = f"a text of {len(value)} characters" if isinstance(value, str) else shown(value)
        raise ApiError(400, f"id is {got}, expected a text of at most {LONGEST_ID} characters")
    return value


def _priority(value: object) -> int:
    if type(value) is not int or not LOWEST_PRIORITY <= value <= HIGHEST_PRIORITY:
        got = shown(value)
        raise ApiError(
            400,
            f"priority is {got}, expected {LOWEST_PRIORITY} to {HIGHEST_PRIORITY}; higher ones go first",
        )
    return value


def _timeout(value: object) -> float | None:
    """Seconds; None for 0, which by Triton is no limit of the client's."""
    if type(value) is not int or not 0 <= value < 2**63:
        got = shown(value)
        raise ApiError(400, f"timeout is {got}, expected microseconds from 0")
    return value / 1e6 or None
