"""Device memory and streams in pycuda's context: for programs that have their arrays there.

The context is the one that is current, such as that of `pycuda.autoinit`, else the primary one. All else goes to the
driver by handle (`driver_calls`): pycuda has neither graphs nor foreign streams, and a thread whose stack of pycuda
contexts is not empty when it ends aborts the process. So nothing is pushed there, and any thread may use a runner.
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np

from dq_deploy.engines.cuda.arrays import stream_handle
from dq_deploy.engines.cuda.driver_calls import CAPTURE_THREAD_LOCAL, OUT_OF_MEMORY, DriverCallError, DriverCalls
from dq_deploy.engines.cuda.interface import (
    CudaBackend,
    CudaEvent,
    CudaGraph,
    CudaStream,
    DeviceBuffer,
    DeviceFacts,
    PinnedBuffer,
    check_driver_version,
    no_driver,
    no_memory,
    version_text,
)
from dq_deploy.errors import DqError, MissingDependencyError, OptionError
from dq_deploy.numerics.arrays import Array

NON_BLOCKING = 1


class PycudaStream(CudaStream):
    """A stream by its handle."""

    def __init__(self, calls: DriverCalls, stream: Any) -> None:
        """Wrap one.

        Args:
            calls: the driver.
            stream: of pycuda or any other library; kept alive.
        """
        self._calls = calls
        self._owner = stream
        self.handle = stream_handle(stream)

    def synchronize(self) -> None:
        """Wait until its work is done."""
        self._calls.call("cuStreamSynchronize", self.handle)

    def wait(self, event: CudaEvent) -> None:
        """Let later work wait for an event."""
        assert isinstance(event, PycudaEvent)
        self._calls.call("cuStreamWaitEvent", self.handle, event.handle, 0)


class _OwnStream:
    """A stream of the driver, destroyed with the last that refers to it."""

    def __init__(self, calls: DriverCalls) -> None:
        self._calls = calls
        self.handle = calls.handle_from("cuStreamCreate", NON_BLOCKING)

    def __del__(self) -> None:
        with suppress(Exception):  # the context may be gone at the end of the program
            self._calls.call("cuStreamDestroy", self.handle)


class PycudaEvent(CudaEvent):
    """An event of the driver; pycuda's own cannot be recorded on a foreign stream."""

    def __init__(self, calls: DriverCalls) -> None:
        """Create one.

        Args:
            calls: the driver.
        """
        self._calls = calls
        self.handle = calls.handle_from("cuEventCreate", 0)

    def record(self, stream: CudaStream) -> None:
        """Place it behind the work enqueued so far."""
        self._calls.call("cuEventRecord", self.handle, stream.handle)

    def synchronize(self) -> None:
        """Wait until the work before it is done."""
        self._calls.call("cuEventSynchronize", self.handle)

    def elapsed_ms(self, since: CudaEvent) -> float:
        """Time between two events that have happened, in ms."""
        assert isinstance(since, PycudaEvent)
        return self._calls.elapsed_ms(since.handle, self.handle)

    def __del__(self) -> None:
        with suppress(Exception):  # the context may be gone at the end of the program
            self._calls.call("cuEventDestroy", self.handle)


class PycudaGraph(CudaGraph):
    """An executable graph of the driver."""

    def __init__(self, calls: DriverCalls, handle: int) -> None:
        """Take it over.

        Args:
            calls: the driver.
            handle: CUgraphExec.
        """
        self._calls = calls
        self._handle = handle

    def launch(self, stream: CudaStream) -> None:
        """Enqueue it."""
        self._calls.call("cuGraphLaunch", self._handle, stream.handle)

    def close(self) -> None:
        """Free it."""
        handle, self._handle = self._handle, 0
        if handle:
            self._calls.call("cuGraphExecDestroy", handle)


class PycudaBackend(CudaBackend):
    """One GPU through pycuda."""

    name = "pycuda"

    def __init__(self, device: int = 0) -> None:
        """Start pycuda and make a context current.

        Args:
            device: CUDA's number of the GPU; that of the current context, if there is one.

        Raises:
            MissingDependencyError: pycuda, the driver or a GPU is missing, or the driver is too old.
            OptionError: no GPU has this number, or another one's context is current.
        """
        try:
            driver = importlib.import_module("pycuda.driver")
        except ImportError as error:
            if "libcuda" in str(error):
                raise no_driver(error) from error
            raise MissingDependencyError(
                f"pycuda cannot be imported ({error}); install it: pip install 'dq-deploy[pycuda]', which compiles it "
                "with a CUDA toolkit, or use the default, cuda-core"
            ) from error
        self._calls = DriverCalls()
        self._cuda: Any = driver
        self.index = device
        built = tuple(int(part) for part in driver.get_version())
        needed = built[0] * 1000
        check_driver_version(self._calls.version(), needed, needed_by=f"pycuda built with CUDA {built[0]}.{built[1]}")
        try:
            driver.init()
            count = int(driver.Device.count())
        except driver.Error as error:
            raise no_driver(error) from error
        if device >= count:
            raise OptionError(f"device is {device}, expected 0 to {count - 1}: the driver lists {count}")
        self._device = driver.Device(device)
        current = driver.Context.get_current()
        if current is None:
            current = self._device.retain_primary_context()
        elif driver.Context.get_device() != self._device:
            raise OptionError(f"device is {device}, and the current context of pycuda is of another GPU; make them one")
        self._context = current  # kept alive; the driver knows it by its handle
        self._context_handle = int(current.handle)
        self.activate()

    def activate(self) -> None:
        """Make the GPU's context current in the calling thread, which may end with it."""
        if self._calls.handle_from("cuCtxGetCurrent") != self._context_handle:
            self._calls.call("cuCtxSetCurrent", self._context_handle)

    def synchronize(self) -> None:
        """Wait until all work of the GPU's context is done."""
        self._calls.call("cuCtxSynchronize")

    def facts(self) -> DeviceFacts:
        """What the GPU is."""
        free, total = self._calls.memory()
        major, minor = self._device.compute_capability()
        return DeviceFacts(
            index=self.index,
            name=str(self._device.name()),
            compute_capability=f"{major}.{minor}",
            driver_cuda=version_text(self._calls.version()),
            pci_bus_id=str(self._device.pci_bus_id()),
            total_bytes=int(total),
            free_bytes=int(free),
        )

    def allocate(self, nbytes: int) -> DeviceBuffer:
        """Device memory.

        Raises:
            DeviceMemoryError: not enough.
        """
        self.activate()
        try:
            pointer = self._calls.allocate(nbytes)
        except DriverCallError as error:
            if error.status == OUT_OF_MEMORY:
                raise no_memory("GPU memory", nbytes, self.facts()) from error
            raise
        return DeviceBuffer(pointer, nbytes, lambda: self._release("cuMemFree", pointer))

    def _release(self, call: str, pointer: int) -> None:
        self.activate()  # whatever thread gives it back
        self._calls.call(call, pointer)

    def allocate_pinned(self, nbytes: int) -> PinnedBuffer:
        """Page-locked host memory.

        Raises:
            DeviceMemoryError: not enough.
        """
        self.activate()
        try:
            pointer = self._calls.handle_from("cuMemAllocHost", nbytes)
        except DriverCallError as error:
            if error.status == OUT_OF_MEMORY:
                raise no_memory("page-locked host memory", nbytes, None) from error
            raise
        data = np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(pointer))
        return PinnedBuffer(data, lambda: self._release("cuMemFreeHost", pointer))

    def create_stream(self) -> CudaStream:
        """A stream that does not wait for the default stream."""
        self.activate()
        return PycudaStream(self._calls, _OwnStream(self._calls))

    def wrap_stream(self, stream: Any) -> CudaStream:
        """A stream of another library, kept alive.

        Raises:
            InputError: not a stream.
        """
        return stream if isinstance(stream, PycudaStream) else PycudaStream(self._calls, stream)

    def create_event(self) -> CudaEvent:
        """An event that takes the time."""
        return PycudaEvent(self._calls)

    def copy_to_device(self, pointer: int, source: Array, stream: CudaStream) -> None:
        """Enqueue a copy of a dense host array."""
        self._calls.call("cuMemcpyHtoDAsync", pointer, source.ctypes.data, source.nbytes, stream.handle)

    def copy_to_host(self, target: Array, pointer: int, stream: CudaStream) -> None:
        """Enqueue a copy into a dense host array."""
        self._calls.call("cuMemcpyDtoHAsync", target.ctypes.data, pointer, target.nbytes, stream.handle)

    def copy_on_device(self, target: int, source: int, nbytes: int, stream: CudaStream) -> None:
        """Enqueue a copy between device addresses."""
        self._calls.call("cuMemcpyDtoDAsync", target, source, nbytes, stream.handle)

    def capture(self, work: Callable[[int], None], stream: CudaStream) -> CudaGraph:
        """Capture what `work` enqueues; see `CudaBackend.capture`."""
        self._calls.call("cuStreamBeginCapture", stream.handle, CAPTURE_THREAD_LOCAL)
        try:
            work(stream.handle)
        except BaseException:
            with suppress(DqError):  # a broken capture ends with an error of its own
                graph = self._calls.end_capture(stream.handle)
                if graph:
                    self._calls.call("cuGraphDestroy", graph)
            raise
        graph = self._calls.end_capture(stream.handle)
        try:
            return PycudaGraph(self._calls, self._calls.handle_from("cuGraphInstantiate", graph, 0))
        finally:
            self._calls.call("cuGraphDestroy", graph)
