"""Tensors of KServe V2 as numpy arrays: from JSON numbers or raw bytes, and back."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from reprlib import repr as short
from typing import Any

import numpy as np

from dq_deploy.numerics.arrays import Array
from dq_deploy.serve.web.errors import ApiError

BYTES, BOOL, BF16 = "BYTES", "BOOL", "BF16"

DTYPES: dict[str, np.dtype[Any]] = {
    BOOL: np.dtype("?"),
    "INT8": np.dtype("<i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "UINT8": np.dtype("<u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    BF16: np.dtype("<u2"),  # numpy has none of its own: its bits
}
"""Datatypes of fixed size by their names in KServe."""

_NAMES = {"bool": BOOL, "float16": "FP16", "float32": "FP32", "float64": "FP64", "bfloat16": BF16}

MOST_TEXTS = 65536
"""Texts of one BYTES tensor."""

_LENGTH = struct.Struct("<I")


@dataclass(frozen=True, kw_only=True, eq=False)
class Tensor:
    """A tensor with its name.

    Attributes:
        name: of the input or output.
        datatype: as KServe names it.
        values: of the shape and of `DTYPES`' dtype; of BYTES objects, each a `bytes`.
    """

    name: str
    datatype: str
    values: Array


def datatype_of(dtype: np.dtype[Any]) -> str:
    """KServe's name of a numpy dtype, as FP32 of float32.

    Raises:
        ApiError: it has none.
    """
    name = _NAMES.get(dtype.name, dtype.name.upper())
    if name not in DTYPES:
        raise ApiError(400, f"values of {dtype.name} have no datatype in KServe; the engine cannot be asked here")
    return name


def shown(value: object) -> str:
    """Something a client sent, short enough for an error and without control characters."""
    text = short(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def read_binary(name: str, datatype: str, shape: tuple[int, ...], data: memoryview) -> Tensor:
    """A tensor from raw bytes, little-endian and row-major; each text of BYTES behind its length in 4 bytes.

    Raises:
        ApiError: the bytes do not fit.
    """
    count = math.prod(shape)
    if datatype == BYTES:
        return Tensor(name=name, datatype=datatype, values=_objects(_read_texts(name, count, data), shape))
    dtype = DTYPES[datatype]
    if count * dtype.itemsize != len(data):
        raise ApiError(
            400,
            f"input {shown(name)} has {len(data)} bytes, expected {count * dtype.itemsize} for {datatype} "
            f"{_shape_text(shape)}",
        )
    if datatype == BOOL and np.frombuffer(data, np.uint8).max(initial=0) > 1:
        raise ApiError(400, f"input {shown(name)} is BOOL and holds a byte that is neither 0 nor 1")
    values = np.frombuffer(data, dtype).reshape(shape).copy()  # the body need not be aligned
    return Tensor(name=name, datatype=datatype, values=values)


def _read_texts(name: str, count: int, data: memoryview) -> list[bytes]:
    if count > MOST_TEXTS or count * _LENGTH.size > len(data):
        most = min(MOST_TEXTS, len(data) // _LENGTH.size)
        raise ApiError(400, f"input {shown(name)} has {len(data)} bytes for {count} texts, expected at most {most}")
    found: list[bytes] = []
    start = 0
    for number in range(count):
        left = len(data) - start - _LENGTH.size
        length = _LENGTH.unpack_from(data, start)[0] if left >= 0 else 0
        if left < length:
            raise ApiError(
                400,
                f"input {shown(name)} says that text {number} has {length} bytes, but {max(left, 0)} are left"
                if left >= 0
                else f"input {shown(name)} ends before text {number} of {count}",
            )
        start += _LENGTH.size
        found.append(bytes(data[start : start + length]))
        start += length
    if start != len(data):
        raise ApiError(400, f"input {shown(name)} has {len(data)} bytes, but its {count} texts end at {start}")
    return found


def read_json(name: str, datatype: str, shape: tuple[int, ...], data: object) -> Tensor:
    """A tensor from a list of JSON, flat or nested as its shape is.

    Raises:
        ApiError: the values do not fit.
    """
    if not isinstance(data, list):
        raise ApiError(400, f"data of input {shown(name)} is a {type(data).__name__}, expected a list")
    values = _flat(name, data, shape)
    count = math.prod(shape)
    if len(values) != count:
        raise ApiError(
            400, f"data of input {shown(name)} has {len(values)} values, expected {count} for {_shape_text(shape)}"
        )
    if datatype == BYTES:
        return Tensor(name=name, datatype=datatype, values=_objects(_texts(name, values), shape))
    if datatype == BF16:
        raise ApiError(400, f"input {shown(name)} is BF16, which JSON has no numbers for; send it as binary")
    return Tensor(name=name, datatype=datatype, values=_numbers(name, datatype, values).reshape(shape))


def _flat(name: str, data: list[Any], shape: tuple[int, ...]) -> list[Any]:
    """The values row by row."""
    if not any(isinstance(value, list) for value in data):
        return data
    level: list[Any] = [data]
    for axis, size in enumerate(shape):
        if not all(isinstance(row, list) and len(row) == size for row in level):
            raise ApiError(
                400,
                f"data of input {shown(name)} is not nested as {_shape_text(shape)}: expected lists of {size} at depth "
                f"{axis + 1}; a flat list will do",
            )
        level = [value for row in level for value in row]
    return level


def _texts(name: str, values: Sequence[Any]) -> list[bytes]:
    for value in values:
        if not isinstance(value, str):
            raise ApiError(400, f"data of input {shown(name)} holds {shown(value)}, expected texts for BYTES")
    try:
        return [value.encode() for value in values]
    except UnicodeEncodeError as error:
        raise ApiError(400, f"data of input {shown(name)} holds half a character (a lone surrogate)") from error


def _numbers(name: str, datatype: str, values: Sequence[Any]) -> Array:
    dtype = DTYPES[datatype]
    allowed = {"b": (bool,), "f": (int, float)}.get(dtype.kind, (int,))
    if not set(map(type, values)) <= set(allowed):
        odd = next(value for value in values if type(value) not in allowed)
        raise ApiError(400, f"data of input {shown(name)} holds {shown(odd)}, expected values of {datatype}")
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        if min(values) < limits.min or max(values) > limits.max:
            odd = next(value for value in values if not limits.min <= value <= limits.max)
            raise ApiError(400, f"data of input {shown(name)} holds {shown(odd)}, which is no {datatype}")
    try:
        with np.errstate(over="ignore"):
            found = np.array(values, dtype)
        fits = dtype.kind != "f" or bool(np.isfinite(found).all())
    except OverflowError:
        fits = False
    if not fits:
        raise ApiError(400, f"data of input {shown(name)} holds a number that is too large for {datatype}")
    return found


def _objects(texts: Sequence[bytes], shape: tuple[int, ...]) -> Array:
    found = np.empty(len(texts), object)
    found[:] = texts
    return found.reshape(shape)


def _shape_text(shape: Sequence[int]) -> str:
    return shown(list(shape))


def binary_of(tensor: Tensor) -> bytes:
    """A tensor's raw bytes, as `read_binary` takes them."""
    if tensor.datatype == BYTES:
        return b"".join(_LENGTH.pack(len(text)) + text for text in tensor.values.ravel().tolist())
    return np.ascontiguousarray(tensor.values, DTYPES[tensor.datatype]).tobytes()


def json_of(tensor: Tensor) -> list[Any]:
    """A tensor's values as a flat list for JSON.

    Raises:
        ApiError: JSON has no such values.
    """
    if tensor.datatype == BF16:
        raise ApiError(400, f"output {shown(tensor.name)} is BF16, which JSON has no numbers for; ask for binary data")
    values: list[Any] = tensor.values.ravel().tolist()
    if tensor.datatype != BYTES:
        return values
    try:
        return [text.decode() for text in values]
    except UnicodeDecodeError as error:
        raise ApiError(400, f"output {shown(tensor.name)} is no text; ask for binary data") from error
