"""The calls of the CUDA driver that the backend of pycuda makes itself, through ctypes.

pycuda 2026.1 takes its own `Stream` objects only, has no graphs, and keeps its contexts on a stack of each thread that
must be empty when the thread ends; so memory, streams and the context of a thread go to the driver too. The
declarations are those of cuda.h; tests/engines/cuda/test_interface.py compares them with the ones that cuda-bindings
ships.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

from dq_deploy.engines.cuda.interface import no_driver
from dq_deploy.errors import DqError

LIBRARY = "libcuda.so.1"
CAPTURE_THREAD_LOCAL = 1
SUCCESS = 0
OUT_OF_MEMORY = 2

# pointers, stream, event and graph handles
_HANDLE = ctypes.c_void_p
_DEVICE_POINTER = ctypes.c_uint64
_BYTES = ctypes.c_size_t
_UINT = ctypes.c_uint
_OUT = ctypes.POINTER(ctypes.c_void_p)

# name in cuda.h -> (symbol of the library, arguments); the suffix is what cuda.h itself defines the name to be
CALLS: dict[str, tuple[str, Sequence[Any]]] = {
    "cuDriverGetVersion": ("cuDriverGetVersion", (ctypes.POINTER(ctypes.c_int),)),
    "cuGetErrorName": ("cuGetErrorName", (ctypes.c_int, ctypes.POINTER(ctypes.c_char_p))),
    "cuCtxGetCurrent": ("cuCtxGetCurrent", (_OUT,)),
    "cuCtxSetCurrent": ("cuCtxSetCurrent", (_HANDLE,)),
    "cuCtxSynchronize": ("cuCtxSynchronize", ()),
    "cuMemGetInfo": ("cuMemGetInfo_v2", (ctypes.POINTER(ctypes.c_size_t), ctypes.POINTER(ctypes.c_size_t))),
    "cuMemAlloc": ("cuMemAlloc_v2", (ctypes.POINTER(_DEVICE_POINTER), _BYTES)),
    "cuMemFree": ("cuMemFree_v2", (_DEVICE_POINTER,)),
    "cuMemAllocHost": ("cuMemAllocHost_v2", (_OUT, _BYTES)),
    "cuMemFreeHost": ("cuMemFreeHost", (_HANDLE,)),
    "cuMemcpyHtoDAsync": ("cuMemcpyHtoDAsync_v2", (_DEVICE_POINTER, _HANDLE, _BYTES, _HANDLE)),
    "cuMemcpyDtoHAsync": ("cuMemcpyDtoHAsync_v2", (_HANDLE, _DEVICE_POINTER, _BYTES, _HANDLE)),
    "cuMemcpyDtoDAsync": ("cuMemcpyDtoDAsync_v2", (_DEVICE_POINTER, _DEVICE_POINTER, _BYTES, _HANDLE)),
    "cuStreamCreate": ("cuStreamCreate", (_OUT, _UINT)),
    "cuStreamDestroy": ("cuStreamDestroy_v2", (_HANDLE,)),
    "cuStreamSynchronize": ("cuStreamSynchronize", (_HANDLE,)),
    "cuStreamWaitEvent": ("cuStreamWaitEvent", (_HANDLE, _HANDLE, _UINT)),
    "cuStreamBeginCapture": ("cuStreamBeginCapture_v2", (_HANDLE, ctypes.c_int)),
    "cuStreamEndCapture": ("cuStreamEndCapture", (_HANDLE, _OUT)),
    "cuEventCreate": ("cuEventCreate", (_OUT, _UINT)),
    "cuEventRecord": ("cuEventRecord", (_HANDLE, _HANDLE)),
    "cuEventSynchronize": ("cuEventSynchronize", (_HANDLE,)),
    "cuEventElapsedTime": ("cuEventElapsedTime", (ctypes.POINTER(ctypes.c_float), _HANDLE, _HANDLE)),
    "cuEventDestroy": ("cuEventDestroy_v2", (_HANDLE,)),
    "cuGraphInstantiate": ("cuGraphInstantiateWithFlags", (_OUT, _HANDLE, ctypes.c_ulonglong)),
    "cuGraphLaunch": ("cuGraphLaunch", (_HANDLE, _HANDLE)),
    "cuGraphDestroy": ("cuGraphDestroy", (_HANDLE,)),
    "cuGraphExecDestroy": ("cuGraphExecDestroy", (_HANDLE,)),
}


class DriverCallError(DqError):
    """The driver answers with an error.

    Attributes:
        status: its number in cuda.h.
    """

    status: int = 0


class DriverCalls:
    """The driver's library, with the status of every call checked."""

    def __init__(self, library: str = LIBRARY) -> None:
        """Load it.

        Args:
            library: file name.

        Raises:
            MissingDependencyError: there is no driver, or it lacks one of the calls.
        """
        try:
            loaded = ctypes.CDLL(library)
            self._calls = {name: getattr(loaded, symbol) for name, (symbol, _) in CALLS.items()}
        except (OSError, AttributeError) as error:
            raise no_driver(error) from error
        for name, function in self._calls.items():
            function.argtypes, function.restype = list(CALLS[name][1]), ctypes.c_int

    def call(self, name: str, *arguments: Any) -> None:
        """Make one call.

        Raises:
            DriverCallError: the driver answers with an error, which is named.
        """
        status = self._calls[name](*arguments)
        if status != SUCCESS:
            text = ctypes.c_char_p()
            self._calls["cuGetErrorName"](status, ctypes.byref(text))
            named = text.value.decode() if text.value else f"error {status}"
            error = DriverCallError(f"the CUDA driver answers {named} to {name}; see nvidia-smi")
            error.status = status
            raise error

    def handle_from(self, name: str, *arguments: Any) -> int:
        """Make a call whose first argument is where a new handle goes, and return that.

        Raises:
            DqError: see `call`.
        """
        handle = ctypes.c_void_p()
        self.call(name, ctypes.byref(handle), *arguments)
        return int(handle.value or 0)

    def version(self) -> int:
        """Newest CUDA the driver supports, as 13000."""
        found = ctypes.c_int()
        self.call("cuDriverGetVersion", ctypes.byref(found))
        return int(found.value)

    def allocate(self, nbytes: int) -> int:
        """Address of new device memory."""
        found = _DEVICE_POINTER()
        self.call("cuMemAlloc", ctypes.byref(found), nbytes)
        return int(found.value)

    def memory(self) -> tuple[int, int]:
        """Bytes of device memory that are free, and all."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self.call("cuMemGetInfo", ctypes.byref(free), ctypes.byref(total))
        return int(free.value), int(total.value)

    def elapsed_ms(self, start: int, end: int) -> float:
        """Time between two events in ms."""
        found = ctypes.c_float()
        self.call("cuEventElapsedTime", ctypes.byref(found), start, end)
        return float(found.value)

    def end_capture(self, stream: int) -> int:
        """The graph captured on a stream; 0 where the capture broke."""
        handle = ctypes.c_void_p()
        self.call("cuStreamEndCapture", stream, ctypes.byref(handle))
        return int(handle.value or 0)
