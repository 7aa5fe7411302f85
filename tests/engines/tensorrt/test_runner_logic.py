"""The runner's own decisions, on a stand-in for the GPU: what is captured again, moved, shared and freed."""

from __future__ import annotations

import json
import os
import shutil
import threading
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx to build a plan")

from dq_deploy.bench.clocks import CUDA, CUDA_GRAPH, HOST, feeds_for, time_runs
from dq_deploy.engines.cuda.arrays import device_array_of
from dq_deploy.engines.cuda.interface import DeviceMemoryError, SharedWorkspace
from dq_deploy.engines.tensorrt import engine as tensorrt_engine
from dq_deploy.engines.tensorrt.runner import KEPT_GRAPHS, TensorRtRunner
from dq_deploy.errors import DqError, InputError, NonFiniteError
from dq_deploy.manifest.plan import read_plan_manifest
from dq_deploy.open_engine import open_engine
from tests.engines.cuda.host_gpu import BYTES_A_SAMPLE, HostCuda, HostLibrary
from tests.engines.tensorrt.plans import build_linear, copy_with


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    return build_linear(tmp_path_factory.mktemp("plan"))


@pytest.fixture
def cuda():
    return HostCuda()


@pytest.fixture
def opened(plan, cuda, monkeypatch):
    """Function (options) to a runner of the plan on the stand-in."""
    manifest = read_plan_manifest(plan)

    def make(path=plan, **options):
        found = read_plan_manifest(path)
        library = HostLibrary(plan.with_suffix(".onnx"), found, options.get("cuda", cuda))
        monkeypatch.setattr(tensorrt_engine, "tensorrt_library", lambda runtime: library)
        return TensorRtRunner(path, found, **{"cuda": cuda, **options})

    assert manifest.compute_capabilities == ("8.0",)
    return make


@pytest.fixture(scope="module")
def wanted(plan):
    """Function (feeds) to the output of the ONNX file."""
    with open_engine(plan.with_suffix(".onnx"), engine="onnxruntime", threads=1) as runner:
        yield lambda feeds: next(iter(runner.run(feeds).values()))


def feeds(batch, seed=0):
    return {"sample": (3 * np.random.default_rng(seed).standard_normal((batch, 64))).astype(np.float32)}


def only(results):
    (value,) = results.values()
    return value


def on_device(cuda, values):
    """Foreign device memory that holds these values, and a reader of it."""
    buffer = cuda.allocate(values.nbytes)
    cuda.copy_to_device(buffer.pointer, values, cuda.create_stream())
    found = buffer.array(values.shape, values.dtype)
    foreign = SimpleNamespace(__cuda_array_interface__=found.__cuda_array_interface__, keep=buffer)
    return foreign, lambda: cuda.view(buffer.pointer, values.nbytes).view(values.dtype).reshape(values.shape)


def read(cuda, array):
    return cuda.view(array.pointer, array.nbytes).view(array.dtype).reshape(array.shape).copy()


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_numpy_in_gives_numpy_out_for_growing_and_shrinking_batches(opened, wanted, cuda_graph):
    with opened(cuda_graph=cuda_graph) as runner:
        for batch, seed in ((2, 0), (1, 1), (8, 2), (2, 3), (8, 4)):
            np.testing.assert_array_equal(only(runner.run(feeds(batch, seed))), wanted(feeds(batch, seed)))
        assert runner.runs == 5


def test_results_do_not_change_when_the_runner_runs_again(opened, wanted):
    with opened() as runner:
        first = only(runner.run(feeds(2, 0)))
        runner.run(feeds(2, 1))
        np.testing.assert_array_equal(first, wanted(feeds(2, 0)))


def test_a_graph_is_captured_once_a_shape_and_reads_new_values(opened, wanted, cuda):
    with opened(cuda_graph=True) as runner:
        for seed in range(5):
            np.testing.assert_array_equal(only(runner.run(feeds(4, seed))), wanted(feeds(4, seed)))
        assert len(cuda.graphs) == 1
        assert cuda.graphs[0].launches == 5
        runner.run(feeds(3))
        runner.run(feeds(4))
        assert len(cuda.graphs) == 2


def test_larger_buffers_drop_the_graphs_that_hold_their_addresses(opened, wanted, cuda):
    with opened(cuda_graph=True) as runner:
        runner.run(feeds(2))
        runner.run(feeds(8))
        assert cuda.graphs[0].work is None
        np.testing.assert_array_equal(only(runner.run(feeds(2, 5))), wanted(feeds(2, 5)))
        assert len(cuda.graphs) == 3


def test_graphs_are_kept_for_the_last_shapes_only(opened, cuda):
    with opened(cuda_graph=True) as runner:
        for batch in (8, 1, 2, 3, 4, 5):
            runner.run(feeds(batch))
        alive = [graph for graph in cuda.graphs if graph.work is not None]
        assert len(alive) == KEPT_GRAPHS
        count = len(cuda.graphs)
        runner.run(feeds(5))
        assert len(cuda.graphs) == count


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_device_memory_of_another_library_is_read_and_written(opened, wanted, cuda, cuda_graph):
    with opened() as runner:
        sample, _ = on_device(cuda, feeds(3)["sample"])
        target, value_of = on_device(cuda, np.zeros((3, 64), np.float32))
        name = runner.outputs[0].name
        found = runner.run_device({"sample": sample}, stream=77, outputs={name: target}, cuda_graph=cuda_graph)
        np.testing.assert_array_equal(value_of(), wanted(feeds(3)))
        assert only(found).pointer == target.__cuda_array_interface__["data"][0]
        own = only(runner.run_device({"sample": sample}, stream=77, cuda_graph=cuda_graph))
        np.testing.assert_array_equal(read(cuda, own), wanted(feeds(3)))
        assert own.producer_stream == 77
        assert own.__cuda_array_interface__["stream"] == 77
        assert runner.runs == 2


def test_without_a_graph_foreign_memory_is_used_in_place(opened, cuda):
    with opened() as runner:
        sample, _ = on_device(cuda, feeds(3)["sample"])
        target, _ = on_device(cuda, np.zeros((3, 64), np.float32))
        before = cuda.copies_on_device
        runner.run_device({"sample": sample}, outputs={runner.outputs[0].name: target}, cuda_graph=False)
        assert cuda.copies_on_device == before


def test_a_run_comes_behind_the_stream_that_writes_its_input(opened, cuda):
    with opened() as runner:
        sample, _ = on_device(cuda, feeds(2)["sample"])
        sample.__cuda_array_interface__["stream"] = 55
        stream = cuda.create_stream()
        runner.run_device({"sample": sample}, stream=stream)
        assert stream.waits == 1


@pytest.mark.parametrize("cuda_graph", [False, True])
@pytest.mark.parametrize("said", [{"stream": 55}, {"stream": None}])
def test_a_run_comes_behind_what_still_reads_the_memory_of_its_output(opened, cuda, monkeypatch, cuda_graph, said):
    waits = []
    monkeypatch.setattr(type(cuda), "synchronize", lambda self: waits.append("the GPU"))
    with opened() as runner:
        name = runner.outputs[0].name
        sample, target = (on_device(cuda, value)[0] for value in (feeds(2)["sample"], np.zeros((2, 64), np.float32)))
        sample.__cuda_array_interface__["stream"] = 44
        target.__cuda_array_interface__ |= said
        stream = cuda.create_stream()
        runner.run_device({"sample": sample}, outputs={name: target}, stream=stream, cuda_graph=cuda_graph)
        assert (stream.waits, "the GPU" in waits) == ((2, False) if said["stream"] else (1, True))


def test_runs_on_two_streams_wait_for_each_other(opened, cuda):
    with opened() as runner:
        sample, _ = on_device(cuda, feeds(2)["sample"])
        first, second = cuda.create_stream(), cuda.create_stream()
        for stream in (first, second, second, first):
            runner.run_device({"sample": sample}, stream=stream)
        # each but the first, the same stream too: handles do not tell streams apart
        assert (first.waits, second.waits) == (1, 2)


def test_activation_memory_is_that_of_the_shapes_that_run(opened, cuda):
    """The engine's own number is that of its largest profile."""
    with opened() as runner:
        largest = runner.memory().activations_mib
        runner.run(feeds(1))
        assert runner.workspace.nbytes < BYTES_A_SAMPLE + 256
        assert runner.memory().activations_mib == BYTES_A_SAMPLE / 2**20
        runner.run(feeds(runner.largest_batch))
        assert runner.memory().activations_mib == largest


@pytest.fixture
def own_plan(plan, tmp_path):
    """The plan in a folder of its own, beside which compiled kernels are kept."""
    for path in (plan, plan.with_name(plan.name + ".json")):
        shutil.copy(path, tmp_path / path.name)
    return tmp_path / plan.name


def test_kernels_compiled_for_shapes_are_compiled_once(opened, cuda, own_plan):
    """Each captured graph has a context of its own; they share what is compiled, and so does the next process."""
    for _ in range(2):
        with opened(own_plan, cuda_graph=True) as runner:
            for batch in (1, 2, 1):
                runner.run_device({"sample": on_device(cuda, feeds(batch)["sample"])[0]}, cuda_graph=False)
                runner.run(feeds(batch))
    assert len(cuda.compiled) == 2
    assert list(own_plan.parent.glob("*.plan.kernels"))


def test_kernels_of_another_gpu_are_not_taken(opened, cuda, own_plan):
    with opened(own_plan) as runner:
        runner.run(feeds(1))
    other = HostCuda()
    other.gpu = "another"
    with opened(own_plan, cuda=other) as runner:
        runner.run(feeds(1))
    assert (len(cuda.compiled), len(other.compiled)) == (1, 1)


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_cannot_be_written_costs_compiling_again(opened, cuda, own_plan):
    own_plan.parent.chmod(0o555)
    for _ in range(2):
        with opened(own_plan) as runner:
            runner.run(feeds(1))
    assert len(cuda.compiled) == 2


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_two_runners_share_one_workspace(opened, wanted, cuda, cuda_graph):
    with SharedWorkspace(cuda) as workspace:
        with opened(workspace=workspace, cuda_graph=cuda_graph) as first:
            with opened(workspace=workspace, cuda_graph=cuda_graph) as second:
                for batch in (2, 4):
                    for runner in (first, second):
                        np.testing.assert_array_equal(only(runner.run(feeds(batch))), wanted(feeds(batch)))
                assert workspace.generation == 2  # it moved once, for the larger batch of whichever came first
            workspace.reserve(1 << 20)  # a larger engine comes: it moves
            np.testing.assert_array_equal(only(first.run(feeds(4, 9))), wanted(feeds(4, 9)))
        assert workspace.nbytes == 1 << 20
    assert workspace.nbytes == 0


def test_a_workspace_of_another_gpu_is_refused(opened, cuda):
    with pytest.raises(DqError, match="another CudaBackend"):
        opened(workspace=SharedWorkspace(HostCuda()))


def test_all_memory_is_given_back(opened, cuda):
    runner = opened(cuda_graph=True)
    runner.run(feeds(2))
    runner.run(feeds(8))
    assert cuda.live
    runner.close()
    runner.close()
    assert not cuda.live


def test_a_closed_runner_says_so(opened, cuda):
    with opened() as runner:
        placed = runner.place(feeds(2))
    for call in (
        lambda: runner.run(feeds(2)),
        lambda: runner.run_device(placed),
        lambda: runner.place(feeds(2)),
        runner.memory,
    ):
        with pytest.raises(InputError, match="closed"):
            call()
    assert runner.manifest.runtime == runner.engine


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_each_thread_gets_its_own_answer(opened, wanted, cuda_graph):
    expected = [wanted(feeds(batch, batch)) for batch in (1, 2, 4)]
    found = {}
    with opened(cuda_graph=cuda_graph) as runner:

        def work(index, batch):
            found[index] = [only(runner.run(feeds(batch, batch))) for _ in range(20)]

        threads = [threading.Thread(target=work, args=pair) for pair in enumerate((1, 2, 4))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for index, want in enumerate(expected):
        assert len(found[index]) == 20
        assert all(np.array_equal(answer, want) for answer in found[index])


def test_too_little_memory_is_one_line(opened):
    limited = opened(cuda=HostCuda(limit=1000))
    with pytest.raises(DeviceMemoryError, match="not enough memory") as caught:
        limited.run(feeds(1))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: {"sample": f["sample"][:, :32]}, r"expected \[B, 64\]"),
        (lambda f: {"sample": np.concatenate([f["sample"]] * 5)}, "has shape 10x64, the plan takes 1x64 to 8x64"),
        (lambda f: {"other": f["sample"]}, "expected sample"),
        (lambda f: {"sample": f["sample"].astype(np.float16)}, "float16"),
    ],
)
def test_wrong_inputs_are_refused_in_host_and_in_device_memory(opened, cuda, change, message):
    wrong = change(feeds(2))
    with opened() as runner:
        with pytest.raises(InputError, match=message):
            runner.run(wrong)
        placed = {name: on_device(cuda, np.ascontiguousarray(value))[0] for name, value in wrong.items()}
        with pytest.raises(InputError, match=message):
            runner.run_device(placed)


def test_wrong_outputs_are_refused(opened, cuda):
    with opened() as runner:
        name = runner.outputs[0].name
        sample, _ = on_device(cuda, feeds(2)["sample"])
        small, _ = on_device(cuda, np.zeros((1, 64), np.float32))
        with pytest.raises(InputError, match=r"has shape \(1, 64\), expected \(2, 64\)"):
            runner.run_device({"sample": sample}, outputs={name: small})
        pointer = small.__cuda_array_interface__["data"][0]
        locked = SimpleNamespace(__cuda_array_interface__={**sample.__cuda_array_interface__, "data": (pointer, True)})
        with pytest.raises(InputError, match="read-only"):
            runner.run_device({"sample": sample}, outputs={name: locked})


def test_infinity_in_and_out_is_looked_for(opened):
    with opened() as runner, pytest.raises(InputError, match="expected finite"):
        runner.run({"sample": np.full((1, 64), np.inf, np.float32)})
    with opened() as runner:
        runner._plan._engine.runner.run = lambda given: {runner.outputs[0].name: np.full((1, 64), np.nan, np.float32)}
        with pytest.raises(NonFiniteError, match="64 values"):
            runner.run(feeds(1))


def test_the_profile_is_switched_where_another_holds_the_shapes(opened, wanted, plan, tmp_path):
    low, high = ({"sample": {"min": [a, 64], "opt": [a, 64], "max": [b, 64]}} for a, b in ((1, 2), (3, 8)))
    path = copy_with(plan, tmp_path, profiles=[low, high])
    shutil.copy(plan.with_suffix(".onnx"), path.with_suffix(".onnx"))
    with opened(path) as runner:
        for batch in (1, 8, 2):
            np.testing.assert_array_equal(only(runner.run(feeds(batch))), wanted(feeds(batch)))
            assert runner._context._context.active_optimization_profile == int(batch == 8)


def test_another_compute_capability_is_refused_unless_asked_for(opened, wanted, plan, tmp_path):
    path = copy_with(plan, tmp_path, compute_capabilities=["9.0"])
    with pytest.raises(DqError, match=r"built for compute capability 9\.0, host has 8\.0"):
        opened(path)
    with opened(path, any_gpu=True) as runner:
        np.testing.assert_array_equal(only(runner.run(feeds(1))), wanted(feeds(1)))


def test_a_manifest_of_other_tensors_is_refused(opened, plan, tmp_path):
    manifest = json.loads(plan.with_name(plan.name + ".json").read_text())
    other = [{**manifest["outputs"][0], "name": "elsewhere"}]
    with pytest.raises(DqError, match=r"has the outputs .*, expected elsewhere"):
        opened(copy_with(plan, tmp_path, outputs=other))


def test_the_clocks_of_a_plan_time_its_runs(opened, cuda):
    with opened() as runner:
        given = feeds_for(runner.inputs, 2, runner.manifest)
        for clock, graphs in ((CUDA, 0), (CUDA_GRAPH, 1), (HOST, 1)):
            found = time_runs(runner, given, warmup=1, runs=3, seconds=0.0, clock=clock)
            assert len(found) == 3
            assert len(cuda.graphs) == graphs
        assert runner.memory().weights_mib == 1.0


def test_outputs_can_be_inputs_of_the_next_engine(opened, wanted):
    """The output's interface is read as any other's."""
    with opened() as first, opened() as second:
        between = first.run_device(first.place(feeds(2)), stream=5)
        again = device_array_of(
            SimpleNamespace(__cuda_array_interface__=only(between).__cuda_array_interface__), name="x"
        )
        result = only(second.run_device({"sample": again}))
        np.testing.assert_array_equal(read(first.cuda, result), wanted({"sample": wanted(feeds(2))}))
