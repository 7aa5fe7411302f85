"""Arrays and streams of other libraries as an engine sees them: a device pointer, a shape, a dtype, a handle.

Nothing here calls a driver: what an object says of itself is read and checked.

`__cuda_array_interface__` version 3: https://numba.readthedocs.io/en/stable/cuda/cuda_array_interface.html
DLPack: https://dmlc.github.io/dlpack/latest/c_api.html
`__cuda_stream__`: https://nvidia.github.io/cuda-python/cuda-core/latest/interoperability.html
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dq_deploy.errors import DqError, InputError, first_line

DEVICE_KINDS = {1: "host memory", 2: "CUDA memory", 3: "pinned host memory", 10: "ROCm memory", 13: "managed memory"}
READABLE_KINDS = (2, 3, 13)
_DLPACK_DTYPES = {
    (0, 8): "int8",
    (0, 32): "int32",
    (0, 64): "int64",
    (1, 8): "uint8",
    (2, 16): "float16",
    (2, 32): "float32",
    (2, 64): "float64",
    (4, 16): "bfloat16",
    (6, 8): "bool",
}


def dtype_of(name: str) -> np.dtype[Any]:
    """A numpy dtype by name; `bfloat16` is that of ml_dtypes, which onnx brings along.

    Raises:
        DqError: numpy knows no such dtype.
    """
    if name == "bfloat16":
        import ml_dtypes

        bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return bfloat16
    try:
        return np.dtype(name)
    except TypeError as error:
        raise DqError(f"dtype is {name!r}, expected one that numpy knows, or bfloat16") from error


def nbytes_of(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    """Bytes of a dense array."""
    return math.prod(shape) * dtype.itemsize


@dataclass(frozen=True, kw_only=True)
class DeviceArray:
    """A dense array in memory the device can read, in C order.

    Attributes:
        pointer: device address.
        shape: sizes.
        dtype: numpy's, or bfloat16 of ml_dtypes.
        read_only: whether it must not be written.
        device: index of the GPU, or None where its owner does not say.
        producer_stream: stream whose work must be waited for, or None.
        producer_unknown: work may still be under way, and its owner names no stream: the whole GPU is waited for.
        owner: kept alive as long as this object.
    """

    pointer: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    read_only: bool = False
    device: int | None = None
    producer_stream: int | None = None
    producer_unknown: bool = False
    owner: Any = field(default=None, repr=False, compare=False)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return nbytes_of(self.shape, self.dtype)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """So that torch, cupy, numba and pycuda can read it."""
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.pointer, self.read_only),
            "strides": None,
            "stream": self.producer_stream,
            "version": 3,
        }


def device_array_of(value: Any, *, name: str, stream: int = 1) -> DeviceArray:
    """What an object says of its device memory.

    DLPack goes first: its owner lets the reading stream wait for what still writes the memory (of an output: reads it).
    `__cuda_array_interface__` of version 2, such as torch's, cannot name a stream, and version 3 may name none while
    kernels run (pycuda's does); such arrays are `producer_unknown`.

    Args:
        value: has `__cuda_array_interface__`, or `__dlpack__` and `__dlpack_device__`.
        name: of the tensor, for messages.
        stream: handle of the stream that will read it; DLPack makes its owner's work visible there.

    Raises:
        InputError: neither interface, host memory, not dense, or an interface that contradicts itself.
    """
    if isinstance(value, DeviceArray):
        return value
    if hasattr(value, "__dlpack__") and hasattr(value, "__dlpack_device__"):
        return _from_dlpack(value, name, stream)
    interface = _cuda_array_interface(value, name)
    if interface is not None:
        return _from_cuda_array_interface(interface, value, name)
    raise InputError(
        f"tensor {name} is {type(value).__name__}, expected device memory with __cuda_array_interface__ or DLPack; "
        "numpy arrays go to run()"
    )


def _cuda_array_interface(value: Any, name: str) -> Mapping[str, Any] | None:
    try:
        return getattr(value, "__cuda_array_interface__", None)
    except (RuntimeError, TypeError) as error:  # a library may refuse its own array
        raise InputError(f"tensor {name} does not give its memory: {first_line(error)}") from error


def _from_cuda_array_interface(interface: Mapping[str, Any], owner: Any, name: str) -> DeviceArray:
    try:
        shape = tuple(int(size) for size in interface["shape"])
        dtype = np.dtype(interface["typestr"])
        pointer, read_only = interface["data"]
        strides = interface.get("strides")
        stream = interface.get("stream") if int(interface["version"]) >= 3 else None
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"tensor {name} has a __cuda_array_interface__ that cannot be read ({first_line(error)}), expected shape, "
            "typestr, data and version"
        ) from error
    if interface.get("mask") is not None:
        raise InputError(f"tensor {name} is a masked array, expected a dense one")
    if stream == 0:
        raise InputError(f"tensor {name} names the stream 0, expected 1, 2 or a handle, as the interface demands")
    steps = None if strides is None else tuple(int(step) for step in strides)
    _check_dense(shape, steps, dtype.itemsize, name)
    return DeviceArray(
        pointer=int(pointer or 0),
        shape=shape,
        dtype=dtype,
        read_only=bool(read_only),
        producer_stream=None if stream is None else int(stream),
        producer_unknown=stream is None,
        owner=owner,
    )


def _from_dlpack(value: Any, name: str, stream: int) -> DeviceArray:
    kind, index = (int(number) for number in value.__dlpack_device__())
    if kind not in READABLE_KINDS:
        where = DEVICE_KINDS.get(kind, f"a device of DLPack's kind {kind}")
        raise InputError(f"tensor {name} lies in {where}, expected CUDA memory; numpy arrays go to run()")
    try:
        # 0 is ambiguous there: 1 is the legacy default stream
        capsule = value.__dlpack__(stream=stream or 1) if kind != 3 else value.__dlpack__()
    except (BufferError, RuntimeError, TypeError) as error:
        raise InputError(f"tensor {name} does not give its memory by DLPack: {first_line(error)}") from error
    return array_of_capsule(capsule, name, device=index if kind != 3 else None)


class _DlDevice(ctypes.Structure):
    _fields_ = (("kind", ctypes.c_int32), ("index", ctypes.c_int32))


class _DlDtype(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _DlTensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _DlDevice),
        ("ndim", ctypes.c_int32),
        ("dtype", _DlDtype),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


def array_of_capsule(capsule: Any, name: str, *, device: int | None) -> DeviceArray:
    """The tensor in a DLPack capsule named `dltensor`; the capsule stays its owner and frees it at its own end.

    Raises:
        InputError: no such capsule, an element type that numpy lacks, or not dense.
    """
    get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
    get_pointer.restype, get_pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    try:
        address = get_pointer(capsule, b"dltensor")
    except ValueError as error:
        raise InputError(f"tensor {name} gives a DLPack capsule that cannot be read: {error}") from error
    tensor = _DlTensor.from_address(address)
    kind = (int(tensor.dtype.code), int(tensor.dtype.bits))
    if kind not in _DLPACK_DTYPES or tensor.dtype.lanes != 1:
        raise InputError(
            f"tensor {name} has elements of DLPack's type {kind[0]} with {kind[1]} bits and {tensor.dtype.lanes} "
            f"lanes, expected one of {', '.join(_DLPACK_DTYPES.values())}"
        )
    dtype = dtype_of(_DLPACK_DTYPES[kind])
    shape = tuple(tensor.shape[i] for i in range(tensor.ndim))
    # DLPack counts elements, the other interface bytes
    steps = tuple(tensor.strides[i] * dtype.itemsize for i in range(tensor.ndim)) if tensor.strides else None
    _check_dense(shape, steps, dtype.itemsize, name)
    pointer = int(tensor.data or 0) + int(tensor.byte_offset)
    return DeviceArray(pointer=pointer, shape=shape, dtype=dtype, device=device, owner=capsule)


def _check_dense(shape: tuple[int, ...], strides: tuple[int, ...] | None, itemsize: int, name: str) -> None:
    if strides is None or 0 in shape:
        return
    expected, size = [], itemsize
    for length in reversed(shape):
        expected.append(size)
        size *= length
    expected.reverse()
    same = len(strides) == len(shape) and all(
        length == 1 or have == want for length, have, want in zip(shape, strides, expected, strict=True)
    )
    if not same:
        raise InputError(
            f"tensor {name} of shape {shape} has strides of {strides} bytes, expected {tuple(expected)}: make it "
            "contiguous"
        )


def stream_handle(stream: Any) -> int:
    """The driver's handle of a stream of any library: an int, `__cuda_stream__`, torch's, cupy's or pycuda's.

    Raises:
        InputError: nothing of the kind.
    """
    if isinstance(stream, int) and not isinstance(stream, bool) and stream >= 0:
        return stream
    protocol = getattr(stream, "__cuda_stream__", None)
    if callable(protocol):
        version, handle = protocol()
        if version != 0:
            raise InputError(f"stream {type(stream).__name__} speaks version {version} of __cuda_stream__, expected 0")
        return int(handle)
    for attribute in ("cuda_stream", "ptr", "handle"):  # torch, cupy, pycuda
        value = getattr(stream, attribute, None)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    raise InputError(
        f"stream is {stream!r:.60}, expected a handle, an object with __cuda_stream__, or a stream of torch, cupy or "
        "pycuda"
    )
