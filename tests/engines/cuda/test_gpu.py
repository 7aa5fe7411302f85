"""On a GPU: both implementations copy, order, time and capture as the interface says."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from dq_deploy.engines.cuda.arrays import device_array_of
from dq_deploy.engines.cuda.backends import open_cuda
from dq_deploy.engines.cuda.interface import DeviceMemoryError, SharedWorkspace
from tests.engines.cuda.gpu import needs_gpu

PACKAGES = {"cuda-core": "cuda", "pycuda": "pycuda"}


@pytest.fixture(scope="module", params=list(PACKAGES))
def cuda(request):
    if importlib.util.find_spec(PACKAGES[request.param]) is None:
        pytest.skip(f"needs an NVIDIA driver and {request.param}")
    return open_cuda(request.param)


def upload(cuda, values, stream):
    """A buffer that holds these values, and the page-locked memory they came from."""
    pinned = cuda.allocate_pinned(values.nbytes)
    pinned.array(values.shape, values.dtype)[...] = values
    buffer = cuda.allocate(values.nbytes)
    cuda.copy_to_device(buffer.pointer, pinned.array(values.shape, values.dtype), stream)
    return buffer, pinned


def download(cuda, pointer, like, stream):
    found = np.empty_like(like)
    cuda.copy_to_host(found, pointer, stream)
    stream.synchronize()
    return found


@needs_gpu("cuda-core or pycuda")
def test_values_come_back_as_they_went(cuda):
    stream = cuda.create_stream()
    values = np.random.default_rng(0).standard_normal((5, 7)).astype(np.float32)
    buffer, pinned = upload(cuda, values, stream)
    other = cuda.allocate(values.nbytes)
    cuda.copy_on_device(other.pointer, buffer.pointer, values.nbytes, stream)
    np.testing.assert_array_equal(download(cuda, other.pointer, values, stream), values)
    assert buffer.pointer % 256 == 0
    for memory in (buffer, other, pinned):
        memory.free()


@needs_gpu("cuda-core or pycuda")
def test_the_device_says_what_it_is(cuda):
    facts = cuda.facts()
    assert 0 < facts.free_bytes <= facts.total_bytes
    assert len(facts.compute_capability.split(".")) == len(facts.driver_cuda.split(".")) == 2
    assert facts.name
    assert facts.pci_bus_id.count(":") == 2


@needs_gpu("cuda-core or pycuda")
def test_a_graph_reads_its_buffers_anew_at_each_launch(cuda):
    """What a denoising loop rests on: the timestep changes in device memory, the graph stays."""
    stream = cuda.create_stream()
    values = np.arange(4, dtype=np.float32)
    source, pinned = upload(cuda, values, stream)
    target = cuda.allocate(values.nbytes)
    stream.synchronize()
    own = cuda.create_stream()

    def work(handle):
        cuda.copy_on_device(target.pointer, source.pointer, values.nbytes, cuda.wrap_stream(handle))

    graph = cuda.capture(work, own)
    for step in range(3):
        pinned.array(values.shape, values.dtype)[...] = values + step
        cuda.copy_to_device(source.pointer, pinned.array(values.shape, values.dtype), stream)
        graph.launch(stream)
        np.testing.assert_array_equal(download(cuda, target.pointer, values, stream), values + step)
    graph.close()


@needs_gpu("cuda-core or pycuda")
def test_an_error_inside_a_capture_leaves_the_stream_usable(cuda):
    stream = cuda.create_stream()

    def work(handle):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        cuda.capture(work, stream)
    values = np.ones(3, np.float32)
    buffer, _ = upload(cuda, values, stream)
    np.testing.assert_array_equal(download(cuda, buffer.pointer, values, stream), values)


@needs_gpu("cuda-core or pycuda")
def test_events_take_the_time_and_order_streams(cuda):
    first, second = cuda.create_stream(), cuda.create_stream()
    start, end = cuda.create_event(), cuda.create_event()
    values = np.zeros(1 << 22, np.float32)
    start.record(first)
    buffer, _ = upload(cuda, values, first)
    end.record(first)
    second.wait(end)
    np.testing.assert_array_equal(download(cuda, buffer.pointer, values, second), values)
    assert end.elapsed_ms(start) > 0


@needs_gpu("cuda-core or pycuda")
def test_too_much_memory_is_one_line(cuda):
    with pytest.raises(DeviceMemoryError, match="not enough memory") as caught:
        cuda.allocate(1 << 50)
    assert "\n" not in str(caught.value)


@needs_gpu("cuda-core or pycuda")
def test_a_shared_workspace_moves_only_to_grow(cuda):
    with SharedWorkspace(cuda) as workspace:
        workspace.reserve(1000)
        before = (workspace.pointer, workspace.generation)
        workspace.reserve(500)
        assert (workspace.pointer, workspace.generation) == before
        workspace.reserve(1 << 20)
        assert workspace.generation == before[1] + 1
        assert workspace.nbytes >= 1 << 20


@needs_gpu("torch with CUDA")
def test_tensors_and_streams_of_torch_are_taken():
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA driver and torch with CUDA")
    cuda = open_cuda()
    stream = cuda.wrap_stream(torch.cuda.Stream())
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.int64):
        tensor = torch.arange(6, device="cuda").reshape(2, 3).to(dtype)
        found = device_array_of(tensor, name="sample", stream=stream.handle)
        assert (found.pointer, found.shape) == (tensor.data_ptr(), (2, 3))
    again = torch.as_tensor(device_array_of(tensor, name="sample"), device="cuda")
    assert torch.equal(again, tensor)
