"""Device memory, streams and graphs through NVIDIA's cuda-core, and cuda-bindings where it has no call for a copy."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np

from dq_deploy.engines.cuda.arrays import stream_handle
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

OUT_OF_MEMORY = "CUDA_ERROR_OUT_OF_MEMORY"
BUS_ID_BYTES = 16
"""Of a PCI address as text: 0000:00:00.0 and its end."""


class CudaCoreStream(CudaStream):
    """A `cuda.core.Stream`."""

    def __init__(self, stream: Any, owner: Any = None) -> None:
        """Wrap one.

        Args:
            stream: `cuda.core.Stream`.
            owner: the foreign stream it stands for, kept alive.
        """
        self.stream = stream
        self.handle = stream_handle(stream)
        self._owner = owner

    def synchronize(self) -> None:
        """Wait until its work is done."""
        self.stream.sync()

    def wait(self, event: CudaEvent) -> None:
        """Let later work wait for an event."""
        assert isinstance(event, CudaCoreEvent)
        self.stream.wait(event.event)


class CudaCoreEvent(CudaEvent):
    """A `cuda.core.Event` that takes the time."""

    def __init__(self, event: Any) -> None:
        """Wrap one.

        Args:
            event: `cuda.core.Event`.
        """
        self.event = event

    def record(self, stream: CudaStream) -> None:
        """Place it behind the work enqueued so far."""
        assert isinstance(stream, CudaCoreStream)
        stream.stream.record(self.event)

    def synchronize(self) -> None:
        """Wait until the work before it is done."""
        self.event.sync()

    def elapsed_ms(self, since: CudaEvent) -> float:
        """Time between two events that have happened, in ms."""
        assert isinstance(since, CudaCoreEvent)
        return float(self.event - since.event)


class CudaCoreGraph(CudaGraph):
    """A `cuda.core.graph.Graph`."""

    def __init__(self, graph: Any) -> None:
        """Wrap one.

        Args:
            graph: executable graph.
        """
        self._graph = graph

    def launch(self, stream: CudaStream) -> None:
        """Enqueue it."""
        assert isinstance(stream, CudaCoreStream)
        self._graph.launch(stream.stream)

    def close(self) -> None:
        """Free it."""
        self._graph.close()


class CudaCoreBackend(CudaBackend):
    """One GPU through cuda-core; its primary context, which torch and TensorRT use too."""

    name = "cuda-core"

    def __init__(self, device: int = 0) -> None:
        """Start the driver and make the GPU current.

        Args:
            device: CUDA's number of the GPU.

        Raises:
            MissingDependencyError: cuda-core, the driver or a GPU is missing, or the driver is too old.
            OptionError: no GPU has this number.
        """
        try:
            import cuda.bindings
            from cuda import core
            from cuda.bindings import driver
        except ImportError as error:
            raise MissingDependencyError(
                f"cuda-core cannot be imported ({error}); install it: pip install 'dq-deploy[cuda]'"
            ) from error
        self._core, self._driver = core, driver
        self.index = device
        bindings = str(cuda.bindings.__version__)
        self._driver_cuda = _started(driver, bindings)
        count = int(_value(driver.cuDeviceGetCount()))
        if count == 0:
            raise MissingDependencyError("the NVIDIA driver runs and lists no GPU, expected one; see nvidia-smi -L")
        if device >= count:
            raise OptionError(f"device is {device}, expected 0 to {count - 1}: the driver lists {count}")
        self.activate()
        self._pinned = core.LegacyPinnedMemoryResource()

    @property
    def _device(self) -> Any:
        # cuda-core has one of each GPU in every thread
        return self._core.Device(self.index)

    def activate(self) -> None:
        """Make the GPU's context current in the calling thread."""
        self._device.set_current()

    def facts(self) -> DeviceFacts:
        """What the GPU is."""
        free, total = _values(self._driver.cuMemGetInfo())
        capability = self._device.compute_capability
        return DeviceFacts(
            index=self.index,
            name=str(self._device.name),
            compute_capability=f"{capability.major}.{capability.minor}",
            driver_cuda=version_text(self._driver_cuda),
            # by the driver: cuda-core asks the runtime library, which starts a second time for that
            pci_bus_id=_value(self._driver.cuDeviceGetPCIBusId(BUS_ID_BYTES, self.index)).split(b"\0")[0].decode(),
            total_bytes=int(total),
            free_bytes=int(free),
        )

    def allocate(self, nbytes: int) -> DeviceBuffer:
        """Device memory; not of cuda-core's pool, which keeps what is freed and belongs to a stream.

        Raises:
            DeviceMemoryError: not enough.
        """
        self.activate()
        status, pointer = self._driver.cuMemAlloc(nbytes)
        if getattr(status, "name", "") == OUT_OF_MEMORY:
            raise no_memory("GPU memory", nbytes, self.facts())
        _values((status,))
        return DeviceBuffer(int(pointer), nbytes, lambda: self._release(int(pointer)))

    def _release(self, pointer: int) -> None:
        self.activate()  # whatever thread gives it back
        self.synchronize()
        _value(self._driver.cuMemFree(pointer))

    def allocate_pinned(self, nbytes: int) -> PinnedBuffer:
        """Page-locked host memory.

        Raises:
            DeviceMemoryError: not enough.
        """
        self.activate()
        try:
            buffer = self._pinned.allocate(nbytes)
        except Exception as error:  # see above
            if OUT_OF_MEMORY in str(error):
                raise no_memory("page-locked host memory", nbytes, None) from error
            raise _failed("the allocation of page-locked memory", error) from error
        data = np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(int(buffer.handle)))

        def release() -> None:
            self.activate()
            buffer.close()

        return PinnedBuffer(data, release)

    def synchronize(self) -> None:
        """Wait until all work of the GPU's context is done; cuda-core's own call starts the runtime library."""
        _value(self._driver.cuCtxSynchronize())

    def create_stream(self) -> CudaStream:
        """A stream that does not wait for the default stream."""
        return CudaCoreStream(self._device.create_stream())

    def wrap_stream(self, stream: Any) -> CudaStream:
        """A stream of another library, kept alive.

        Raises:
            InputError: not a stream.
        """
        if isinstance(stream, CudaCoreStream):
            return stream
        handle = stream_handle(stream)
        if handle in (0, 1):
            return CudaCoreStream(self._core.LEGACY_DEFAULT_STREAM)
        if handle == 2:
            return CudaCoreStream(self._core.PER_THREAD_DEFAULT_STREAM)
        return CudaCoreStream(self._core.Stream.from_handle(handle), owner=stream)

    def create_event(self) -> CudaEvent:
        """An event that takes the time."""
        return CudaCoreEvent(self._device.create_event(self._core.EventOptions(timing_enabled=True)))

    def copy_to_device(self, pointer: int, source: Array, stream: CudaStream) -> None:
        """Enqueue a copy of a dense host array."""
        _value(self._driver.cuMemcpyHtoDAsync(pointer, source.ctypes.data, source.nbytes, stream.handle))

    def copy_to_host(self, target: Array, pointer: int, stream: CudaStream) -> None:
        """Enqueue a copy into a dense host array."""
        _value(self._driver.cuMemcpyDtoHAsync(target.ctypes.data, pointer, target.nbytes, stream.handle))

    def copy_on_device(self, target: int, source: int, nbytes: int, stream: CudaStream) -> None:
        """Enqueue a copy between device addresses."""
        _value(self._driver.cuMemcpyDtoDAsync(target, source, nbytes, stream.handle))

    def capture(self, work: Callable[[int], None], stream: CudaStream) -> CudaGraph:
        """Capture what `work` enqueues; see `CudaBackend.capture`."""
        assert isinstance(stream, CudaCoreStream)
        builder = stream.stream.create_graph_builder()
        builder.begin_building(mode="thread_local")
        try:
            work(stream_handle(builder))
        except BaseException:
            with suppress(Exception):  # a broken capture ends with an error of its own
                builder.end_building()
            builder.close()
            raise
        try:
            graph = builder.end_building().complete()
        except Exception as error:  # see above
            raise _failed("the capture of a CUDA graph", error) from error
        finally:
            builder.close()
        return CudaCoreGraph(graph)


def _started(driver: Any, bindings: str) -> int:
    """Newest CUDA the started driver supports."""
    try:
        version = int(_value(driver.cuDriverGetVersion()))
    except Exception as error:  # the loader has an error of its own where libcuda is missing
        raise no_driver(error) from error
    check_driver_version(version, int(bindings.split(".")[0]) * 1000, needed_by=f"cuda-bindings {bindings}")
    try:
        _value(driver.cuInit(0))
    except DqError as error:
        raise no_driver(error) from error
    return version


def _values(answer: tuple[Any, ...]) -> tuple[Any, ...]:
    """What a call of cuda-bindings returned behind its status.

    Raises:
        DqError: the status is an error.
    """
    status, *values = answer
    if int(status) != 0:
        raise DqError(f"the CUDA driver answers {getattr(status, 'name', status)}; see nvidia-smi")
    return tuple(values)


def _value(answer: tuple[Any, ...]) -> Any:
    values = _values(answer)
    return values[0] if values else None


def _failed(what: str, error: Exception) -> DqError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return DqError(f"{what} failed: {reason}; see nvidia-smi")
