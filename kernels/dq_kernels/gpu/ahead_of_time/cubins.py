"""Compiled kernels from a folder, launched through the CUDA driver: no torch, no triton, no compiler.

The driver is called by ctypes, so that it does not matter who made the context: cuda-core, pycuda or torch. The caller
makes it current, owns the memory and the stream; handles and device addresses are integers. Arrays of a call are
`DeviceArray`s here, or torch's. `dq_kernels.gpu.launch.launching` launches from such a folder where it is told to.

Never run on a GPU: argument memory, metadata and refusals are tested against a driver of paper, loading, order and
lifetimes on a stand-in for libcuda.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dq_kernels.cpu.library import KernelInputError
from dq_kernels.gpu.launch.calls import Blank, KernelCall, key_of

LIBRARY = "libcuda.so.1"
INDEX = "cubins.json"
FORMAT = 1
MAX_DYNAMIC_SHARED = 8
"""CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES."""
FREE_SHARED_BYTES = 48 << 10
"""Shared memory a launch may have without asking for more."""
SCRATCH_POINTERS = 2
"""Pointers behind a kernel's own arguments: Triton's global and profiling scratch memory, null here."""
WARP = 32

_HANDLE = ctypes.c_void_p
_UINT = ctypes.c_uint
CALLS: dict[str, tuple[Any, ...]] = {
    "cuModuleLoadData": (ctypes.POINTER(ctypes.c_void_p), _HANDLE),
    "cuModuleGetFunction": (ctypes.POINTER(ctypes.c_void_p), _HANDLE, ctypes.c_char_p),
    "cuModuleUnload": (_HANDLE,),
    "cuFuncSetAttribute": (_HANDLE, ctypes.c_int, ctypes.c_int),
    "cuLaunchKernel": (_HANDLE, *[_UINT] * 7, _HANDLE, ctypes.POINTER(ctypes.c_void_p), _HANDLE),
    "cuGetErrorName": (ctypes.c_int, ctypes.POINTER(ctypes.c_char_p)),
}
"""Declarations of cuda.h."""


class DriverMissingError(ImportError):
    """There is no NVIDIA driver on this machine; the message says what to do."""


class DriverError(RuntimeError):
    """The driver refused a call."""


@dataclass(frozen=True)
class DeviceArray(Blank):
    """An array in device memory.

    Attributes:
        pointer: device address.
    """

    pointer: int = 0


class Driver:
    """The few calls of the driver that a launch needs, each status checked."""

    def __init__(self, library: Any = None) -> None:
        """Load it.

        Args:
            library: instead of the driver's own.

        Raises:
            DriverMissingError: there is no driver, or it lacks a call.
        """
        try:
            loaded = ctypes.CDLL(LIBRARY) if library is None else library
            self._calls = {name: getattr(loaded, name) for name in CALLS}
        except (OSError, AttributeError) as error:
            raise DriverMissingError(
                f"no NVIDIA driver: {error}; install one, or use the CPU kernels or the onnxruntime engine"
            ) from error
        if library is None:
            for name, function in self._calls.items():
                function.argtypes, function.restype = list(CALLS[name]), ctypes.c_int

    def call(self, name: str, *arguments: Any) -> None:
        """Make one call.

        Raises:
            DriverError: the driver answers with an error, which is named.
        """
        status = self._calls[name](*arguments)
        if status != 0:
            text = ctypes.c_char_p()
            self._calls["cuGetErrorName"](status, ctypes.byref(text))
            word = text.value.decode() if text.value else f"error {status}"
            raise DriverError(f"the CUDA driver answers {word} to {name}; see nvidia-smi")

    def handle_from(self, name: str, *arguments: Any) -> int:
        """Make a call whose first argument is where a new handle goes, and return that."""
        handle = ctypes.c_void_p()
        self.call(name, ctypes.byref(handle), *arguments)
        return int(handle.value or 0)


def address_of(array: Any) -> int:
    """Device address of a `DeviceArray` or of a tensor of torch."""
    return int(array.pointer if hasattr(array, "pointer") else array.data_ptr())


def argument_values(order: Sequence[Sequence[str]], call: KernelCall) -> list[Any]:
    """Arguments of a compiled kernel as ctypes values, in its order, with the scratch pointers behind them.

    Args:
        order: (name, type) pairs of the index, types as `argument_types` writes them.
        call: where the values come from.

    Raises:
        KernelInputError: a pointer is null or not aligned to 16 bytes, an integer does not fit or is not divisible
            by 16 where the code was compiled for that.
    """
    values: list[Any] = []
    for name, kind in order:
        given = call.arguments[name]
        if kind.startswith("*"):
            pointer = address_of(given)
            if pointer == 0 or pointer % 16:
                raise KernelInputError(f"{name} is at address {pointer:#x}, expected one that 16 divides; align it")
            values.append(ctypes.c_uint64(pointer))
            continue
        bits = 64 if kind == "i64" else 32
        if not -(1 << (bits - 1)) <= given < 1 << (bits - 1) or (kind.endswith(":16") and given % 16):
            raise KernelInputError(f"{name} is {given}, expected {kind}; compile this call")
        values.append(ctypes.c_int64(given) if bits == 64 else ctypes.c_int32(given))
    return values + [ctypes.c_uint64(0)] * SCRATCH_POINTERS


class CubinStore:
    """A folder of cubins, loaded when they are first launched into the context that is then current."""

    def __init__(self, folder: Path, architecture: int, driver: Driver | None = None) -> None:
        """Read the index.

        Args:
            folder: written by `dq_kernels.gpu.ahead_of_time.compile`.
            architecture: of the GPU, as `architecture_of` says.
            driver: by default the machine's.

        Raises:
            KernelInputError: not such a folder.
            DriverMissingError: there is no driver.
        """
        self.folder, self.architecture = folder, architecture
        self.entries = read_index(folder)
        self._driver = driver or Driver()
        self._functions: dict[str, int] = {}
        self._modules: list[int] = []

    def entry_of(self, call: KernelCall) -> tuple[str, Mapping[str, Any]]:
        """Key and index entry of a call.

        Raises:
            KernelInputError: it was not compiled.
        """
        key = key_of(call, self.architecture)
        if key not in self.entries:
            raise KernelInputError(
                f"{self.folder} has no {call.kernel} for sm_{self.architecture} with {dict(call.constants)} and these "
                "types; compile it: python -m dq_kernels.gpu.ahead_of_time.compile"
            )
        return key, self.entries[key]

    def launch(self, call: KernelCall, stream: int) -> None:
        """Enqueue a call on a stream, which may be capturing a graph once the cubin is loaded.

        Raises:
            KernelInputError: see `entry_of` and `argument_values`.
            DriverError: the driver refuses.
        """
        key, entry = self.entry_of(call)
        function = self._functions.get(key) or self._load(key, entry)
        values = argument_values(entry["arguments"], call)
        pointers = (ctypes.c_void_p * len(values))(*[ctypes.addressof(value) for value in values])
        threads = WARP * entry["warps"]
        shape = (*call.grid, threads, 1, 1, entry["shared_bytes"])
        self._driver.call("cuLaunchKernel", function, *shape, stream, pointers, None)

    def load(self, calls: Sequence[KernelCall]) -> None:
        """Load the cubins of calls before they are needed, as a graph capture asks for."""
        for call in calls:
            key, entry = self.entry_of(call)
            if key not in self._functions:
                self._load(key, entry)

    def close(self) -> None:
        """Unload all modules; nothing may still run."""
        while self._modules:
            self._driver.call("cuModuleUnload", self._modules.pop())
        self._functions.clear()

    def _load(self, key: str, entry: Mapping[str, Any]) -> int:
        image = _image(self.folder / f"{key}.cubin", entry)
        module = self._driver.handle_from("cuModuleLoadData", image)
        self._modules.append(module)
        function = self._driver.handle_from("cuModuleGetFunction", module, entry["symbol"].encode())
        if entry["shared_bytes"] > FREE_SHARED_BYTES:
            self._driver.call("cuFuncSetAttribute", function, MAX_DYNAMIC_SHARED, entry["shared_bytes"])
        self._functions[key] = function
        return function


def _image(path: Path, entry: Mapping[str, Any]) -> bytes:
    """Bytes of a cubin, which must be what was compiled; an index of an earlier version has no hash.

    Raises:
        KernelInputError: it is not there, or not what was compiled.
    """
    try:
        image = path.read_bytes()
    except OSError as error:
        raise KernelInputError(f"{path} cannot be read ({error.strerror}); compile it again") from error
    found, wanted = hashlib.sha256(image).hexdigest(), entry.get("sha256")
    if wanted not in (None, found):
        raise KernelInputError(
            f"{path} is not what was written: its content hash is {found[:12]}, {INDEX} says {str(wanted)[:12]}; copy "
            "or compile it again"
        )
    return image


def read_index(folder: Path) -> dict[str, Any]:
    """Entries of a folder by their keys.

    Raises:
        KernelInputError: there is none, or it is of another format.
    """
    path = folder / INDEX
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise KernelInputError(f"{path} has format {content['format']}, expected {FORMAT}; compile again")
        return dict(content["cubins"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, KernelInputError):
            raise
        raise KernelInputError(
            f"{path} is no index of cubins ({error}); write one: dq_kernels.gpu.ahead_of_time.compile"
        ) from error
