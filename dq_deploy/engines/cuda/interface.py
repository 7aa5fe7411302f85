"""Device buffers, streams, events and captured graphs: the one interface that engines on a GPU are written against.

Two implementations: `cuda_core_backend` (default) and `pycuda_backend`; `cuda_backends` opens one. Pointers and stream
handles are ints of the CUDA driver, so that buffers of one library and streams of another meet without conversion.
"""

from __future__ import annotations

import contextlib
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from dq_deploy.engines.cuda.arrays import DeviceArray, nbytes_of
from dq_deploy.errors import DqError, MissingDependencyError
from dq_deploy.numerics.arrays import Array

ALIGNMENT = 256
"""Bytes; what both allocators promise and TensorRT asks of its activation memory."""


class DeviceMemoryError(DqError):
    """The GPU has not enough memory."""


@dataclass(frozen=True, kw_only=True)
class DeviceFacts:
    """One GPU.

    Attributes:
        index: CUDA's number of it.
        name: as the driver says.
        compute_capability: as `9.0`.
        driver_cuda: newest CUDA the driver supports, as `13.0`.
        pci_bus_id: where it sits, by which NVML knows it too.
        total_bytes: its memory.
        free_bytes: of it, at the time of asking.
    """

    index: int
    name: str
    compute_capability: str
    driver_cuda: str
    pci_bus_id: str
    total_bytes: int
    free_bytes: int


class DeviceBuffer:
    """Device memory; `free` may be called more than once."""

    def __init__(self, pointer: int, nbytes: int, release: Callable[[], None]) -> None:
        """Take over memory.

        Args:
            pointer: device address.
            nbytes: size.
            release: gives it back.
        """
        self.pointer = pointer
        self.nbytes = nbytes
        self._release: Callable[[], None] | None = release

    def array(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> DeviceArray:
        """The front of the buffer as an array.

        Raises:
            DqError: it does not fit.
        """
        if nbytes_of(shape, dtype) > self.nbytes or self._release is None:
            have = "it is freed" if self._release is None else f"it has {self.nbytes}"
            raise DqError(f"an array of {nbytes_of(shape, dtype)} bytes is asked of a buffer, {have}; ask for less")
        return DeviceArray(pointer=self.pointer, shape=shape, dtype=dtype, owner=self)

    def free(self) -> None:
        """Give the memory back."""
        release, self._release = self._release, None
        if release is not None:
            release()


class PinnedBuffer:
    """Page-locked host memory as a numpy array of bytes; copies from and to it do not block."""

    def __init__(self, data: NDArray[np.uint8], release: Callable[[], None]) -> None:
        """Take over memory.

        Args:
            data: the bytes.
            release: gives them back.
        """
        self.nbytes = data.nbytes
        self._data: NDArray[np.uint8] | None = data
        self._release = release

    def array(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """The front of the buffer as an array; not to be used after `free`.

        Raises:
            DqError: it does not fit.
        """
        need = nbytes_of(shape, dtype)
        if self._data is None or need > self.nbytes:
            have = "it is freed" if self._data is None else f"it has {self.nbytes}"
            raise DqError(f"an array of {need} bytes is asked of a pinned buffer, {have}; ask for less")
        return self._data[:need].view(dtype).reshape(shape)

    def free(self) -> None:
        """Give the memory back."""
        data, self._data = self._data, None
        if data is not None:
            self._release()


class CudaEvent(ABC):
    """A point in a stream's work, with its time."""

    @abstractmethod
    def record(self, stream: CudaStream) -> None:
        """Place it behind the work enqueued so far."""

    @abstractmethod
    def synchronize(self) -> None:
        """Wait until the work before it is done."""

    @abstractmethod
    def elapsed_ms(self, since: CudaEvent) -> float:
        """Time between two events that have happened, in ms."""


class CudaStream(ABC):
    """A queue of device work, own or foreign.

    Attributes:
        handle: the driver's; 0 is the legacy default stream.
    """

    handle: int

    @abstractmethod
    def synchronize(self) -> None:
        """Wait until its work is done."""

    @abstractmethod
    def wait(self, event: CudaEvent) -> None:
        """Let later work wait for an event; the host does not wait."""

    def __cuda_stream__(self) -> tuple[int, int]:
        """Protocol version 0 and the handle."""
        return 0, self.handle


class CudaGraph(ABC):
    """Work that was captured once and is launched as a whole."""

    @abstractmethod
    def launch(self, stream: CudaStream) -> None:
        """Enqueue it."""

    @abstractmethod
    def close(self) -> None:
        """Free it."""


class CudaBackend(ABC):
    """One GPU, through one library.

    Attributes:
        name: `cuda-core` or `pycuda`.
        index: CUDA's number of the GPU.
    """

    name: str
    index: int

    @abstractmethod
    def facts(self) -> DeviceFacts:
        """What the GPU is."""

    @abstractmethod
    def allocate(self, nbytes: int) -> DeviceBuffer:
        """Device memory, aligned to `ALIGNMENT`, usable on every stream at once.

        Raises:
            DeviceMemoryError: not enough.
        """

    @abstractmethod
    def allocate_pinned(self, nbytes: int) -> PinnedBuffer:
        """Page-locked host memory.

        Raises:
            DeviceMemoryError: not enough.
        """

    @abstractmethod
    def create_stream(self) -> CudaStream:
        """A stream that does not wait for the default stream."""

    @abstractmethod
    def wrap_stream(self, stream: Any) -> CudaStream:
        """A stream of another library, kept alive; see `device_arrays.stream_handle`.

        Raises:
            InputError: not a stream.
        """

    @abstractmethod
    def create_event(self) -> CudaEvent:
        """An event that takes the time."""

    @abstractmethod
    def copy_to_device(self, pointer: int, source: Array, stream: CudaStream) -> None:
        """Enqueue a copy of a dense host array; pinned ones must stay as they are until it is done."""

    @abstractmethod
    def copy_to_host(self, target: Array, pointer: int, stream: CudaStream) -> None:
        """Enqueue a copy into a dense host array; it holds the values once the stream is synchronized."""

    @abstractmethod
    def copy_on_device(self, target: int, source: int, nbytes: int, stream: CudaStream) -> None:
        """Enqueue a copy between device addresses."""

    @abstractmethod
    def capture(self, work: Callable[[int], None], stream: CudaStream) -> CudaGraph:
        """Capture what `work` enqueues.

        Args:
            work: called once with the handle of the capturing stream; enqueues there only, waits for nothing.
            stream: an own stream; nothing is run on it.
        """

    @abstractmethod
    def activate(self) -> None:
        """Make the GPU's context current in the calling thread, which may end with it."""

    @abstractmethod
    def synchronize(self) -> None:
        """Wait until all work of the GPU's context is done, on whatever stream."""


class SharedWorkspace:
    """Activation memory that several engines use in turn: as large as the largest of them needs.

    Runs that use it wait for each other on the device, in the order in which they were enqueued, whatever streams and
    threads they are of. Streams are not told apart by their handles: a destroyed one's comes back, and 0 and 1 are the
    same stream. `generation` changes when the memory moves; a captured graph holds its address and is captured anew.
    """

    def __init__(self, cuda: CudaBackend) -> None:
        """An empty one.

        Args:
            cuda: the GPU it lies on.
        """
        self.cuda = cuda
        self.generation = 0
        self._buffer: DeviceBuffer | None = None
        self._last: CudaEvent | None = None
        self._lock = threading.RLock()

    @property
    def nbytes(self) -> int:
        """Bytes it holds now."""
        return 0 if self._buffer is None else self._buffer.nbytes

    @property
    def pointer(self) -> int:
        """Device address, 0 while it is empty."""
        return 0 if self._buffer is None else self._buffer.pointer

    def reserve(self, nbytes: int) -> None:
        """Hold at least so many bytes; waits for the runs that use it where it has to move.

        Raises:
            DeviceMemoryError: not enough.
        """
        with self._lock:
            if nbytes <= self.nbytes:
                return
            self._free()
            self._buffer = self.cuda.allocate(-(-nbytes // ALIGNMENT) * ALIGNMENT)
            self.generation += 1

    def wait_on(self, stream: CudaStream) -> None:
        """Let a stream wait for the last run that was enqueued."""
        with self._lock:
            if self._last is not None:
                stream.wait(self._last)

    @contextlib.contextmanager
    def turn(self, stream: CudaStream) -> Iterator[None]:
        """What is enqueued on the stream within the block is one run; other threads wait until the block is left.

        The memory does not move meanwhile, unless the block itself reserves more.
        """
        with self._lock:
            self.wait_on(stream)
            try:
                yield
            finally:  # a run that failed may have enqueued a part of its work
                if self._last is None:
                    self._last = self.cuda.create_event()
                self._last.record(stream)

    def wait(self) -> None:
        """Wait until the last run that was enqueued is done."""
        if self._last is not None:
            self._last.synchronize()

    def _free(self) -> None:
        self.wait()
        if self._buffer is not None:
            self._buffer.free()
            self._buffer = None

    def close(self) -> None:
        """Give the memory back; engines that use it must not run any more."""
        with self._lock:
            self._free()

    def __enter__(self) -> Self:
        """The workspace itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the memory back."""
        self.close()


def version_text(version: int) -> str:
    """CUDA's version number as text: 13050 is 13.5."""
    return f"{version // 1000}.{version % 1000 // 10}"


def check_driver_version(driver: int, needed: int, *, needed_by: str) -> None:
    """Refuse a driver that is too old.

    Args:
        driver: newest CUDA it supports, as 12040.
        needed: least version, as 13000.
        needed_by: what needs it, such as `cuda-bindings 13.5.0`.

    Raises:
        MissingDependencyError: it is older.
    """
    if driver < needed:
        raise MissingDependencyError(
            f"the NVIDIA driver supports CUDA {version_text(driver)}, expected {version_text(needed)} or newer for "
            f"{needed_by}; update the driver, or install {needed_by.split()[0]} for CUDA {driver // 1000}"
        )


def no_driver(error: Exception) -> MissingDependencyError:
    """The error for a machine without an NVIDIA driver."""
    reason = " ".join(str(error).split())
    return MissingDependencyError(
        f"no NVIDIA driver: libcuda cannot be loaded or started ({reason:.160}); a plan runs on a machine with an "
        "NVIDIA GPU only: install its driver (nvidia-smi must list the GPU), in a container start it with --gpus all"
    )


def no_memory(what: str, nbytes: int, facts: DeviceFacts | None) -> DeviceMemoryError:
    """The error for an allocation that failed."""
    have = "" if facts is None else f", {facts.name} has {facts.free_bytes / 2**20:.0f} MiB free"
    return DeviceMemoryError(
        f"not enough memory for {nbytes / 2**20:.1f} MiB of {what}{have}; use a smaller batch or size, end other "
        "programs on the GPU, or share the workspace between engines"
    )
