"""A stand-in for a GPU where there is none: device memory is host memory, work is done when it is enqueued.

It exists to run the runner's own logic: which buffers are used, moved and freed, when a graph is captured again, what
is copied where. It proves nothing about CUDA or TensorRT; tests/engines/test_*_gpu.py need the real ones. Memory that
was freed, was never allocated or is not large enough is an assertion error. The numbers are ONNX Runtime's.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from dq_deploy.engines.cuda.arrays import stream_handle
from dq_deploy.engines.cuda.interface import (
    ALIGNMENT,
    CudaBackend,
    CudaEvent,
    CudaGraph,
    CudaStream,
    DeviceBuffer,
    DeviceFacts,
    PinnedBuffer,
    no_memory,
)
from dq_deploy.engines.tensorrt.library import tensorrt_library
from dq_deploy.engines.tensorrt.plan.checks import profiles_of
from dq_deploy.manifest.values import PlanManifest
from dq_deploy.open_engine import open_engine

BYTES_A_SAMPLE = 3000


class HostStream(CudaStream):
    def __init__(self, handle: int) -> None:
        self.handle = handle
        self.waits = 0

    def synchronize(self) -> None:
        pass

    def wait(self, event: CudaEvent) -> None:
        self.waits += 1


class HostEvent(CudaEvent):
    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.at = 0.0

    def record(self, stream: CudaStream) -> None:
        self.at = self._clock()

    def synchronize(self) -> None:
        pass

    def elapsed_ms(self, since: CudaEvent) -> float:
        return self.at - since.at


class HostGraph(CudaGraph):
    def __init__(self, work: list[Callable[[], None]]) -> None:
        self.work: list[Callable[[], None]] | None = work
        self.launches = 0

    def launch(self, stream: CudaStream) -> None:
        assert self.work is not None, "a closed graph is launched"
        self.launches += 1
        for step in self.work:
            step()

    def close(self) -> None:
        self.work = None


class HostCuda(CudaBackend):
    """Counts what it is asked for; `limit` bytes can be allocated."""

    name = "host"
    index = 0

    def __init__(self, limit: int = 1 << 30) -> None:
        self.limit = limit
        self.live: dict[int, int] = {}
        self.kept: dict[int, Any] = {}
        self.graphs: list[HostGraph] = []
        self.recording: list[Callable[[], None]] | None = None
        self.copies_on_device = 0
        self.gpu = "host"
        self.compiled: list[str] = []
        self._ticks = 0
        self._handles = iter(range(1000, 2000))

    def enqueue(self, step: Callable[[], None]) -> None:
        """Do it now, or record it for a graph."""
        if self.recording is None:
            step()
        else:
            self.recording.append(step)

    def view(self, pointer: int, nbytes: int) -> np.ndarray:
        """Bytes of live memory."""
        inside = [p for p, size in self.live.items() if p <= pointer and pointer + nbytes <= p + size]
        assert inside, f"{nbytes} bytes at {pointer:#x} are not allocated"
        return np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(pointer))

    def facts(self) -> DeviceFacts:
        return DeviceFacts(
            index=0,
            name="host",
            compute_capability="8.0",
            driver_cuda="13.0",
            pci_bus_id="0000:00:00.0",
            total_bytes=self.limit,
            free_bytes=self.limit - sum(self.live.values()),
        )

    def allocate(self, nbytes: int) -> DeviceBuffer:
        assert self.recording is None, "memory is allocated inside a capture"
        if sum(self.live.values()) + nbytes > self.limit:
            raise no_memory("GPU memory", nbytes, self.facts())
        memory = np.full(nbytes + ALIGNMENT, 0xAA, np.uint8)
        pointer = -(-memory.ctypes.data // ALIGNMENT) * ALIGNMENT
        self.live[pointer], self.kept[pointer] = nbytes, memory
        return DeviceBuffer(pointer, nbytes, lambda: self._free(pointer))

    def _free(self, pointer: int) -> None:
        del self.live[pointer]  # its memory stays in `kept`, so that no other gets the same address

    def allocate_pinned(self, nbytes: int) -> PinnedBuffer:
        return PinnedBuffer(np.zeros(nbytes, np.uint8), lambda: None)

    def create_stream(self) -> CudaStream:
        return HostStream(next(self._handles))

    def wrap_stream(self, stream: Any) -> CudaStream:
        return stream if isinstance(stream, HostStream) else HostStream(stream_handle(stream))

    def create_event(self) -> CudaEvent:
        return HostEvent(self._clock)

    def _clock(self) -> float:
        self._ticks += 1
        return float(self._ticks)

    def copy_to_device(self, pointer: int, source: Any, stream: CudaStream) -> None:
        self.view(pointer, source.nbytes)[...] = np.ascontiguousarray(source).reshape(-1).view(np.uint8)

    def copy_to_host(self, target: Any, pointer: int, stream: CudaStream) -> None:
        target.reshape(-1).view(np.uint8)[...] = self.view(pointer, target.nbytes)

    def copy_on_device(self, target: int, source: int, nbytes: int, stream: CudaStream) -> None:
        self.copies_on_device += 1
        self.view(target, nbytes)[...] = self.view(source, nbytes)

    def capture(self, work: Callable[[int], None], stream: CudaStream) -> CudaGraph:
        self.recording = []
        try:
            work(stream.handle)
            graph = HostGraph(self.recording)
        finally:
            self.recording = None
        self.graphs.append(graph)
        return graph

    def activate(self) -> None:
        pass

    def synchronize(self) -> None:
        pass


class HostContext:
    """An execution context with user-managed memory."""

    active_optimization_profile = 0

    def __init__(self, engine: HostEngine, config: HostConfig) -> None:
        self._engine, self._config = engine, config
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._memory: tuple[int, int] | None = None

    def set_optimization_profile_async(self, index: int, handle: int) -> bool:
        self.active_optimization_profile = index
        self._shapes.clear()
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._shapes[name] = tuple(shape)
        return shape in self._engine.profiles[self.active_optimization_profile][name]

    def infer_shapes(self) -> list[str]:
        return [spec.name for spec in self._engine.runner.inputs if spec.name not in self._shapes]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._shapes["sample"]

    def update_device_memory_size_for_shapes(self) -> int:
        return BYTES_A_SAMPLE * self._shapes["sample"][0]

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return True

    def set_device_memory(self, pointer: int, nbytes: int) -> None:
        self._memory = (pointer, nbytes)

    def is_stream_capturable(self, handle: int) -> bool:
        return True

    def execute_async_v3(self, handle: int) -> bool:
        compiled, kernel = self._config.cache, str(sorted(self._shapes.items()))
        if compiled is None or kernel not in compiled.kernels:
            self._engine.cuda.compiled.append(kernel)
            if compiled is not None:
                compiled.kernels.add(kernel)
        cuda, shapes, addresses, memory = self._engine.cuda, dict(self._shapes), dict(self._addresses), self._memory
        assert memory is not None
        assert memory[1] >= BYTES_A_SAMPLE * shapes["sample"][0]

        def step() -> None:
            assert shapes == self._shapes, "the shapes of a captured context were changed"
            cuda.view(*memory)
            feeds = {}
            for spec in self._engine.runner.inputs:
                nbytes = math.prod(shapes[spec.name]) * spec.dtype.itemsize
                feeds[spec.name] = cuda.view(addresses[spec.name], nbytes).view(spec.dtype).reshape(shapes[spec.name])
            for name, value in self._engine.runner.run(feeds).items():
                cuda.view(addresses[name], value.nbytes)[...] = value.reshape(-1).view(np.uint8)

        cuda.enqueue(step)
        return True


class HostCache:
    """Kernels by the shapes they were compiled for."""

    def __init__(self, gpu: str) -> None:
        self.gpu = gpu
        self.kernels: set[str] = set()

    def deserialize(self, data: bytes) -> bool:
        gpu, *kernels = data.decode().split("\n")
        if gpu == self.gpu:
            self.kernels |= set(kernels)
        return gpu == self.gpu

    def serialize(self) -> bytes:
        return "\n".join([self.gpu, *sorted(self.kernels)]).encode()


class HostConfig:
    """How a context is made."""

    def __init__(self, engine: HostEngine) -> None:
        self.engine = engine
        self.cache: HostCache | None = None

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        pass

    def create_runtime_cache(self) -> HostCache:
        self.engine.caches.append(HostCache(self.engine.cuda.gpu))
        return self.engine.caches[-1]

    def set_runtime_cache(self, cache: HostCache) -> bool:
        self.cache = cache
        return True


class HostEngine:
    """A deserialized plan whose numbers come from the ONNX file it was built from."""

    def __init__(self, onnx: Path, manifest: PlanManifest, cuda: HostCuda, library: Any) -> None:
        self.runner = open_engine(onnx, engine="onnxruntime", threads=1)
        self.cuda, self._library = cuda, library
        self.profiles = profiles_of(manifest, onnx)
        self.num_optimization_profiles = len(self.profiles)
        self.caches: list[HostCache] = []
        self._specs = [*self.runner.inputs, *self.runner.outputs]
        self.num_io_tensors = len(self._specs)

    def get_tensor_name(self, index: int) -> str:
        return self._specs[index].name

    def get_tensor_mode(self, name: str) -> Any:
        is_input = name in {spec.name for spec in self.runner.inputs}
        return self._library.TensorIOMode.INPUT if is_input else self._library.TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        return self._library.DataType.FLOAT

    def get_tensor_shape(self, name: str) -> list[int]:
        spec = next(spec for spec in self._specs if spec.name == name)
        return [-1 if isinstance(size, str) else size for size in spec.shape]

    def get_device_memory_size_for_profile_v2(self, index: int) -> int:
        return BYTES_A_SAMPLE * self.profiles[index]["sample"].most[0]

    def get_engine_stat(self, stat: Any) -> int:
        return 1 << 20

    def create_runtime_config(self) -> Any:
        return HostConfig(self)

    def create_execution_context(self, config: Any) -> HostContext:
        return HostContext(self, config)


class HostLibrary:
    """TensorRT-RTX as it is installed, with another `Runtime`."""

    def __init__(self, onnx: Path, manifest: PlanManifest, cuda: HostCuda) -> None:
        self._real = tensorrt_library("tensorrt-rtx")
        self._made = (onnx, manifest, cuda)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def Runtime(self, logger: Any) -> Any:
        return SimpleNamespace(deserialize_cuda_engine=lambda data: HostEngine(*self._made, self._real))
