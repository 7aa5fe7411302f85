"""TensorRT and TensorRT-RTX plans on an NVIDIA GPU."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dq_deploy.engines.base import Runner, TensorSpec
from dq_deploy.engines.capabilities import DeviceRuns, PlanMemory
from dq_deploy.engines.cuda.arrays import DeviceArray, device_array_of, nbytes_of
from dq_deploy.engines.cuda.backends import open_cuda
from dq_deploy.engines.cuda.interface import (
    CudaBackend,
    CudaGraph,
    CudaStream,
    DeviceBuffer,
    PinnedBuffer,
    SharedWorkspace,
)
from dq_deploy.engines.tensorrt.engine import PlanContext, PlanEngine, check_library
from dq_deploy.engines.tensorrt.plan.checks import largest_batch, profile_for
from dq_deploy.errors import DqError, InputError
from dq_deploy.manifest.values import PlanManifest
from dq_deploy.numerics.arrays import Array

KEPT_GRAPHS = 4
"""Captured shapes that are kept; the one not used for longest goes first."""

Shapes = dict[str, tuple[int, ...]]


@dataclass
class _Captured:
    """A graph with the context it was captured from: the context's state for these shapes must stay as it is."""

    context: PlanContext
    graph: CudaGraph
    generation: int


class TensorRtRunner(Runner):
    """A plan on one GPU.

    `run` takes and gives numpy arrays through page-locked buffers. `run_device` takes device memory of any library and
    gives device memory, on a foreign stream if one is given. With `cuda_graph` the work of each set of input shapes is
    captured once; the graph reads the timestep, as every input, from device memory, so that a new timestep is a copy of
    a few bytes and not a new capture.

    Threads follow one another. What `run_device` gives in the runner's own buffers is overwritten by the next run, also
    of another thread: threads that share a runner give `outputs`.

    Attributes:
        cuda: the GPU.
        stream: own stream, on which `run` works.
        workspace: activation memory, own or shared with other runners.
    """

    forkable = False

    def __init__(
        self,
        plan: Path,
        manifest: PlanManifest,
        *,
        finite_check: bool = True,
        cuda: CudaBackend | str = "cuda-core",
        device: int = 0,
        workspace: SharedWorkspace | None = None,
        cuda_graph: bool = False,
        any_gpu: bool = False,
    ) -> None:
        """Load a plan.

        Args:
            plan: file.
            manifest: of the plan.
            finite_check: refuse NaN and infinity in `run`; `run_device` looks at no values.
            cuda: `cuda-core`, `pycuda`, or an open one.
            device: CUDA's number of the GPU; not used with an open one.
            workspace: activation memory shared with other runners of the same GPU; None makes an own one.
            cuda_graph: capture the work of each set of shapes.
            any_gpu: also try a plan that was built for other GPUs.

        Raises:
            FileProblemError: the plan is damaged, of another version, or for another GPU.
            MissingDependencyError: TensorRT, the CUDA library, the driver or a GPU is missing or too old.
            DeviceMemoryError: not enough memory.
        """
        self.engine = manifest.runtime
        super().__init__(manifest, finite_check=finite_check)
        check_library(plan, manifest)  # before the driver: it is said on any machine
        self.cuda = open_cuda(cuda, device=device) if isinstance(cuda, str) else cuda
        if workspace is not None and workspace.cuda is not self.cuda:
            raise DqError("the shared workspace lies on another CudaBackend, expected the one given as cuda")
        self.cuda_graph = cuda_graph
        self.cuda.activate()
        self._plan = PlanEngine(plan, manifest, self.cuda, any_gpu=any_gpu)
        self.inputs, self.outputs, self.profiles = self._plan.inputs, self._plan.outputs, self._plan.profiles
        self.stream: CudaStream = self.cuda.create_stream()
        self._owns_workspace = workspace is None
        self.workspace = SharedWorkspace(self.cuda) if workspace is None else workspace
        self._context = self._plan.create_context()
        self._activation_bytes = 0
        self._graphs: OrderedDict[tuple[tuple[str, tuple[int, ...]], ...], _Captured] = OrderedDict()
        self._buffers: dict[str, DeviceBuffer] = {}
        self._pinned: dict[str, PinnedBuffer] = {}

    @property
    def largest_batch(self) -> int:
        """The largest batch the plan was built for."""
        return largest_batch(self.profiles)

    @property
    def version(self) -> str:
        """Of TensorRT or TensorRT-RTX."""
        return self._plan.version

    @property
    def device_runs(self) -> DeviceRuns:
        """Itself."""
        return self

    def memory(self) -> PlanMemory:
        """GPU memory of the plan, as the engine says."""
        with self.using():
            return self._plan.memory(self._activation_bytes)

    def _check(self, feeds: Mapping[str, Array]) -> None:
        super()._check(feeds)
        profile_for(self.profiles, {name: value.shape for name, value in feeds.items()})

    def _run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        placed = self.place(feeds)
        results = self.run_device(placed, stream=self.stream)
        found: dict[str, Array] = {}
        for name, value in results.items():
            host = self._pinned_for(name, value.nbytes).array(value.shape, value.dtype)
            self.cuda.copy_to_host(host, value.pointer, self.stream)
            found[name] = host
        self.stream.synchronize()
        # the next run overwrites the page-locked memory
        return {name: np.array(value) for name, value in found.items()}

    def place(self, feeds: Mapping[str, Array]) -> dict[str, DeviceArray]:
        """Copy numpy inputs into the runner's own device buffers, on its own stream.

        Args:
            feeds: inputs as of `run`.

        Returns:
            The buffers as arrays; valid until the next call with larger shapes.
        """
        with self.using():
            return self._placed(feeds)

    def _placed(self, feeds: Mapping[str, Array]) -> dict[str, DeviceArray]:
        self.cuda.activate()
        placed: dict[str, DeviceArray] = {}
        self._grow({name: value.nbytes for name, value in feeds.items()})
        # the copies of the last call must have read the page-locked memory, the last run these buffers
        self.stream.synchronize()
        self.workspace.wait_on(self.stream)
        for name, value in feeds.items():
            pinned = self._pinned_for(name, value.nbytes).array(value.shape, value.dtype)
            np.copyto(pinned, value)
            placed[name] = self._buffers[name].array(value.shape, value.dtype)
            self.cuda.copy_to_device(placed[name].pointer, pinned, self.stream)
        return placed

    def run_device(
        self,
        inputs: Mapping[str, Any],
        *,
        stream: Any = None,
        outputs: Mapping[str, Any] | None = None,
        cuda_graph: bool | None = None,
    ) -> dict[str, DeviceArray]:
        """Run on device memory; names, dtypes and shapes are checked, values are not.

        Args:
            inputs: by name, objects with `__cuda_array_interface__` or DLPack, dense.
            stream: a stream of any library, or its handle; the call returns when the work is enqueued there. None is
                the runner's own, and the call returns when the work is done.
            outputs: where to write, by name; None gives the runner's own buffers, valid until its next run.
            cuda_graph: overrides the runner's.

        Returns:
            Outputs by name, device arrays that torch, cupy and others read by `__cuda_array_interface__`.

        Raises:
            InputError: a name, dtype, shape, stride or device is not what the engine takes.
            DqError: the engine fails.
        """
        with self.using():
            results = self._run_device(inputs, stream, outputs, self.cuda_graph if cuda_graph is None else cuda_graph)
        if stream is not self.stream:  # `run` counts its own
            with self._turns.moment:
                self.runs += 1
        return results

    def _run_device(
        self, inputs: Mapping[str, Any], stream: Any, outputs: Mapping[str, Any] | None, cuda_graph: bool
    ) -> dict[str, DeviceArray]:
        self.cuda.activate()
        queue = self.stream if stream is None else self.cuda.wrap_stream(stream)
        arrays = self._checked(inputs, self.inputs, queue.handle, "inputs")
        shapes = {name: value.shape for name, value in arrays.items()}
        profile = profile_for(self.profiles, shapes)
        self._wait_for_producers(arrays, queue)
        if cuda_graph:
            results = self._launch(arrays, shapes, profile, outputs, queue)
        else:
            results = self._enqueue(arrays, shapes, profile, outputs, queue)
        if stream is None:
            queue.synchronize()
        elif stream is not self.stream:  # so that another library waits for it where it reads this
            results = {name: replace(value, producer_stream=queue.handle or 1) for name, value in results.items()}
        return results

    def _enqueue(
        self,
        arrays: Mapping[str, DeviceArray],
        shapes: Shapes,
        profile: int,
        outputs: Mapping[str, Any] | None,
        queue: CudaStream,
    ) -> dict[str, DeviceArray]:
        """Enqueue the kernels one by one, reading and writing the given memory."""
        self._context.bind(shapes, profile, queue)
        targets = self._targets(self._context, outputs, queue)
        addresses = {name: value.pointer for name, value in (*arrays.items(), *targets.items())}
        with self.workspace.turn(queue):
            self._reserve(self._context)
            self._context.enqueue(addresses, queue.handle)
        return targets

    def _reserve(self, context: PlanContext) -> None:
        """Give a context the memory that its shapes need."""
        self._activation_bytes = max(self._activation_bytes, context.activation_bytes)
        self.workspace.reserve(context.activation_bytes)
        context.use(self.workspace)

    def _launch(
        self,
        arrays: Mapping[str, DeviceArray],
        shapes: Shapes,
        profile: int,
        outputs: Mapping[str, Any] | None,
        queue: CudaStream,
    ) -> dict[str, DeviceArray]:
        """Copy the inputs to where the graph reads them, launch it, and copy the outputs to where they are wanted."""
        self._grow({name: value.nbytes for name, value in arrays.items()})
        with self.workspace.turn(queue):  # from the look at the generation: another thread may move the memory
            captured = self._graph_of(shapes, profile, queue)
            own = self._own_outputs(captured.context)
            targets = own if outputs is None else self._targets(captured.context, outputs, queue)
            for name, value in arrays.items():
                if value.pointer != self._buffers[name].pointer:
                    self.cuda.copy_on_device(self._buffers[name].pointer, value.pointer, value.nbytes, queue)
            captured.graph.launch(queue)
            for name, value in targets.items():
                if value.pointer != own[name].pointer:
                    self.cuda.copy_on_device(value.pointer, own[name].pointer, value.nbytes, queue)
        return targets

    def _graph_of(self, shapes: Shapes, profile: int, queue: CudaStream) -> _Captured:
        key = tuple(sorted(shapes.items()))
        captured = self._graphs.get(key)
        if captured is None or captured.generation != self.workspace.generation:
            captured = self._captured(shapes, profile, queue)
            self._graphs[key] = captured
        self._graphs.move_to_end(key)
        return captured

    def _captured(self, shapes: Shapes, profile: int, queue: CudaStream) -> _Captured:
        """Capture the work of one set of shapes, with a context of its own; buffers are the runner's."""
        queue.synchronize()  # what it still runs may use the buffers and the graph that is replaced
        stale = self._graphs.pop(tuple(sorted(shapes.items())), None)
        if stale is not None:
            stale.graph.close()
        while len(self._graphs) >= KEPT_GRAPHS:
            self.workspace.wait()
            self._graphs.popitem(last=False)[1].graph.close()
        context = self._plan.create_context()
        context.bind(shapes, profile, self.stream)
        results = self._own_outputs(context)
        addresses = {name: self._buffers[name].pointer for name in shapes}
        addresses |= {name: value.pointer for name, value in results.items()}
        self._reserve(context)
        # the first run of new shapes may allocate and compile, which no capture can hold
        with self.workspace.turn(self.stream):
            context.enqueue(addresses, self.stream.handle)
        self.stream.synchronize()
        if not context.can_be_captured(self.stream.handle):
            raise DqError(f"plan {self._plan.plan} says it cannot be captured in a CUDA graph; run it without one")
        graph = self.cuda.capture(lambda handle: context.enqueue(addresses, handle), self.stream)
        return _Captured(context=context, graph=graph, generation=self.workspace.generation)

    def _checked(
        self, given: Mapping[str, Any], specs: tuple[TensorSpec, ...], handle: int, kind: str
    ) -> dict[str, DeviceArray]:
        """Device arrays of the right names, dtypes and ranks, in the order of the specifications."""
        wanted = [spec.name for spec in specs]
        if set(given) != set(wanted):
            raise InputError(f"{kind} are {', '.join(sorted(given))}; expected {', '.join(wanted)}")
        found = {}
        for spec in specs:
            value = device_array_of(given[spec.name], name=spec.name, stream=handle)
            check_device_array(value, spec, self.cuda.index)
            if kind == "outputs" and value.read_only:
                raise InputError(f"output {spec.name} is read-only, expected memory that can be written")
            found[spec.name] = value
        return found

    def _targets(
        self, context: PlanContext, outputs: Mapping[str, Any] | None, queue: CudaStream
    ) -> dict[str, DeviceArray]:
        own = self._own_outputs(context) if outputs is None else {}
        if outputs is None:
            return own
        given = self._checked(outputs, self.outputs, queue.handle, "outputs")
        self._wait_for_producers(given, queue)
        for name, value in given.items():
            if value.shape != context.output_shape(name):
                raise InputError(f"output {name} has shape {value.shape}, expected {context.output_shape(name)}")
        return given

    def _own_outputs(self, context: PlanContext) -> dict[str, DeviceArray]:
        shapes = {spec.name: context.output_shape(spec.name) for spec in self.outputs}
        self._grow({spec.name: nbytes_of(shapes[spec.name], spec.dtype) for spec in self.outputs})
        return {spec.name: self._buffers[spec.name].array(shapes[spec.name], spec.dtype) for spec in self.outputs}

    def _wait_for_producers(self, arrays: Mapping[str, DeviceArray], queue: CudaStream) -> None:
        """`__cuda_array_interface__` names the stream that writes an array, or none: the run comes behind it."""
        if any(value.producer_unknown for value in arrays.values()):
            self.cuda.synchronize()
        for handle in {value.producer_stream for value in arrays.values()} - {None}:
            event = self.cuda.create_event()
            event.record(self.cuda.wrap_stream(handle))
            queue.wait(event)

    def _grow(self, needs: Mapping[str, int]) -> None:
        """Have device buffers of these sizes; where one moves, graphs that hold its address are dropped."""
        small = [name for name, need in needs.items() if name not in self._buffers or self._buffers[name].nbytes < need]
        if any(name in self._buffers for name in small):
            self._drop_graphs()
        for name in small:
            if name in self._buffers:
                self._buffers.pop(name).free()
            self._buffers[name] = self.cuda.allocate(max(needs[name], 1))

    def _pinned_for(self, name: str, nbytes: int) -> PinnedBuffer:
        have = self._pinned.get(name)
        if have is None or have.nbytes < nbytes:
            if have is not None:
                self.stream.synchronize()
                have.free()
            self._pinned[name] = self.cuda.allocate_pinned(max(nbytes, 1))
        return self._pinned[name]

    def _drop_graphs(self) -> None:
        self.workspace.wait()
        for captured in self._graphs.values():
            captured.graph.close()
        self._graphs.clear()

    def _free(self) -> None:
        """Free the engine and its buffers; a shared workspace stays."""
        self.cuda.activate()
        self.stream.synchronize()
        self._drop_graphs()
        del self._context
        self._plan.close()
        for buffer in self._buffers.values():
            buffer.free()
        for pinned in self._pinned.values():
            pinned.free()
        self._buffers.clear()
        self._pinned.clear()
        if self._owns_workspace:
            self.workspace.close()


def check_device_array(value: DeviceArray, spec: TensorSpec, device: int) -> None:
    """Refuse device memory that a tensor of the engine cannot be.

    Args:
        value: what was given.
        spec: of the tensor.
        device: CUDA's number of the engine's GPU.

    Raises:
        InputError: another dtype, shape or GPU, or no memory at all.
    """
    if value.dtype != spec.dtype:
        raise InputError(f"tensor {spec.name} is {value.dtype}, expected {spec.dtype} in device memory")
    fits = len(value.shape) == len(spec.shape) and all(
        isinstance(want, str) or want == have for want, have in zip(spec.shape, value.shape, strict=True)
    )
    if not fits or 0 in value.shape:
        wanted = ", ".join(str(size) for size in spec.shape)
        raise InputError(f"tensor {spec.name} has shape {value.shape}, expected [{wanted}]")
    if value.pointer == 0:
        raise InputError(f"tensor {spec.name} has the address 0, expected device memory")
    if value.device not in (None, device):
        raise InputError(f"tensor {spec.name} lies on GPU {value.device}, expected {device}, where the engine is")
