"""On a GPU that TensorRT-RTX builds for: a plan gives its ONNX file's numbers, on any stream and in a graph."""

from __future__ import annotations

import numpy as np
import pytest

from dq_deploy.engines.cuda.backends import open_cuda
from dq_deploy.engines.cuda.interface import SharedWorkspace
from dq_deploy.errors import FileProblemError, InputError
from dq_deploy.manifest.plan import read_plan_manifest
from tests.engines.cuda.gpu import needs_gpu

RTX_BUILDS_FOR = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
NEEDS = needs_gpu("TensorRT-RTX, and a GPU it builds for")


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    pytest.importorskip("tensorrt_rtx", reason="needs an NVIDIA driver and tensorrt-rtx")
    from tests.engines.tensorrt.plans import build_linear

    capability = open_cuda().facts().compute_capability
    if capability not in RTX_BUILDS_FOR:
        pytest.skip(f"needs an NVIDIA driver and a GPU that TensorRT-RTX builds for, this one has {capability}")
    return build_linear(tmp_path_factory.mktemp("plan"), capability)


def opened(plan, **options):
    from dq_deploy.engines.tensorrt.runner import TensorRtRunner

    return TensorRtRunner(plan, read_plan_manifest(plan), **options)


def reference(plan, feeds):
    from dq_deploy.open_engine import open_engine

    onnx = plan.with_suffix(".onnx")
    with open_engine(onnx, engine="onnxruntime", threads=1) as runner:
        return next(iter(runner.run(feeds).values()))


def feeds(batch, seed=0):
    return {"sample": (3 * np.random.default_rng(seed).standard_normal((batch, 64))).astype(np.float32)}


@NEEDS
@pytest.mark.parametrize("cuda_graph", [False, True])
def test_numpy_in_gives_the_numbers_of_the_onnx_file(plan, cuda_graph):
    with opened(plan, cuda_graph=cuda_graph) as runner:
        for batch, seed in ((2, 0), (8, 1), (2, 2), (1, 3)):
            found = next(iter(runner.run(feeds(batch, seed)).values()))
            # one int32 sum, one float32 multiplication
            np.testing.assert_allclose(found, reference(plan, feeds(batch, seed)), rtol=2**-22)


@NEEDS
@pytest.mark.parametrize("backend", ["cuda-core", "pycuda"])
def test_both_backends_give_the_same_bits(plan, backend):
    if backend == "pycuda":
        pytest.importorskip("pycuda", reason="needs an NVIDIA driver and pycuda")
    with opened(plan) as runner, opened(plan, cuda=backend) as other:
        for a, b in zip(runner.run(feeds(4)).values(), other.run(feeds(4)).values(), strict=True):
            np.testing.assert_array_equal(a, b)


@NEEDS
def test_device_memory_and_a_stream_of_torch_give_the_same_bits(plan):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA driver and torch with CUDA")
    stream = torch.cuda.Stream()
    with opened(plan) as runner:
        wanted = next(iter(runner.run(feeds(3)).values()))
        with torch.cuda.stream(stream):
            sample = torch.from_numpy(feeds(3)["sample"]).cuda(non_blocking=False)
            target = torch.empty(3, 64, device="cuda")
            for graph in (False, True):
                name = runner.outputs[0].name
                runner.run_device({"sample": sample}, stream=stream, outputs={name: target}, cuda_graph=graph)
                stream.synchronize()
                np.testing.assert_array_equal(target.cpu().numpy(), wanted)


@NEEDS
def test_two_engines_share_one_workspace(plan):
    cuda = open_cuda()
    with (
        SharedWorkspace(cuda) as workspace,
        opened(plan, cuda=cuda, workspace=workspace) as first,
        opened(plan, cuda=cuda, workspace=workspace) as second,
    ):
        for batch in (1, 8, 2):
            a, b = (next(iter(runner.run(feeds(batch)).values())) for runner in (first, second))
            np.testing.assert_array_equal(a, b)


@NEEDS
def test_shapes_outside_the_profile_and_strided_memory_are_refused(plan):
    with opened(plan) as runner:
        with pytest.raises(InputError, match="the plan takes 1x64 to 8x64"):
            runner.run(feeds(9))
        with pytest.raises(InputError, match="host memory"):
            runner.run_device(feeds(2))


@NEEDS
def test_a_damaged_plan_is_one_line(plan, tmp_path):
    from tests.engines.tensorrt.plans import copy_with

    other = copy_with(plan, tmp_path, build={})
    data = bytearray(plan.read_bytes())
    data[: len(data) // 2] = bytes(len(data) // 2)
    other.write_bytes(data)
    from dq_deploy.engines.tensorrt.runner import TensorRtRunner

    with pytest.raises(FileProblemError) as caught:
        TensorRtRunner(other, read_plan_manifest(other, check_hash=False))
    assert "\n" not in str(caught.value)


@NEEDS
def test_the_engine_says_what_memory_it_needs(plan):
    with opened(plan) as runner:
        memory = runner.memory()
    assert memory.weights_mib > 0
    assert memory.activations_mib >= 0
