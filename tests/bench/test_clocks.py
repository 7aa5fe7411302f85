"""Runs are timed by the clock an engine has; the inputs fit a plan's profile."""

from __future__ import annotations

import json

import numpy as np
import pytest

from dq_deploy.bench import BenchOptions
from dq_deploy.bench.clocks import CLOCKS, HOST, PLAN_CLOCKS, _on_device, feeds_for, latencies_ms, time_runs
from dq_deploy.bench.gpu_memory import GpuPeak
from dq_deploy.bench.harness import BenchReport, Latency, Timing, _numbers, _Series, _take_turns
from dq_deploy.bench.plan_baseline import check_batches
from dq_deploy.bench.worker import GpuMemory, WorkerSettings, workers
from dq_deploy.engines.base import TensorSpec
from dq_deploy.errors import OptionError
from dq_deploy.open_engine import open_engine
from tests.engines.cuda.gpu import without_driver
from tests.manifests import plan_manifest

QUICK = BenchOptions(batches=(1,), rounds=7, runs=2, warmup=1, seconds=0.0, threads=1)


@pytest.fixture(scope="module")
def runner(tiny_engine):
    with open_engine(tiny_engine, threads=1) as opened:
        yield opened


def test_a_run_is_counted_only_after_the_warm_up():
    calls = iter(range(100))
    assert latencies_ms(lambda: float(next(calls)), warmup=3, runs=4, seconds=0.0) == [3.0, 4.0, 5.0, 6.0]


def test_the_hosts_clock_times_every_engine(runner):
    feeds = feeds_for(runner.inputs, 2, runner.manifest)
    found = time_runs(runner, feeds, warmup=1, runs=5, seconds=0.0)
    assert len(found) == 5
    assert all(0 < latency < 10_000 for latency in found)


@pytest.mark.parametrize("clock", ["cuda", "cuda-graph"])
def test_an_engine_of_the_cpu_has_no_clock_of_cuda(runner, clock):
    feeds = feeds_for(runner.inputs, 1, runner.manifest)
    with pytest.raises(OptionError, match="runs on the CPU"):
        time_runs(runner, feeds, warmup=1, runs=1, seconds=0.0, clock=clock)


def test_an_unknown_clock_is_refused(runner):
    with pytest.raises(OptionError, match="sundial"):
        time_runs(runner, {}, warmup=1, runs=1, seconds=0.0, clock="sundial")


def test_free_sizes_behind_the_batch_are_the_best_of_the_profile():
    inputs = (
        TensorSpec(name="sample", dtype=np.dtype(np.float32), shape=("B", 4, "H", "W")),
        TensorSpec(name="timestep", dtype=np.dtype(np.float32), shape=("B",)),
        TensorSpec(name="class_labels", dtype=np.dtype(np.int64), shape=("B",)),
    )
    best = {"sample": [2, 4, 64, 96], "timestep": [2], "class_labels": [2]}
    profile = {name: {"min": sizes, "opt": sizes, "max": sizes} for name, sizes in best.items()}
    feeds = feeds_for(inputs, 3, plan_manifest(timesteps=[1.0, 7.0, 9.0], profiles=[profile]))
    assert {name: value.shape for name, value in feeds.items()} == {
        "sample": (3, 4, 64, 96),
        "timestep": (3,),
        "class_labels": (3,),
    }
    assert feeds["timestep"].tolist() == [7.0] * 3
    assert feeds["class_labels"].dtype == np.int64


def test_whole_numbers_are_the_lowest_that_the_engine_takes():
    inputs = (TensorSpec(name="class_labels", dtype=np.dtype(np.int64), shape=("B",)),)
    entry = {"name": "class_labels", "dtype": "int64", "shape": ["B"], "limits": [3, 7]}
    feeds = feeds_for(inputs, 2, plan_manifest(timesteps=[1.0], profiles=[{}], inputs=[entry]))
    assert feeds["class_labels"].tolist() == [3, 3]


def test_engines_take_turns_on_each_clock(tiny_engine):
    """The loop that times plans, with two real engines and the one clock they have."""
    settings = {name: WorkerSettings(path=str(tiny_engine), threads=1) for name in ("engine", "baseline")}
    ticks = []
    with workers(settings) as running:
        order = []
        for name, worker in running.items():
            time = worker.time
            worker.time = lambda name=name, time=time, **request: (
                order.append((name, request["clock"])),
                time(**request),
            )[1]
        found = _take_turns(running, batch=1, rounds=2, options=QUICK, clocks=(HOST,), tick=lambda: ticks.append(1))
    assert order == [("engine", HOST), ("baseline", HOST), ("baseline", HOST), ("engine", HOST)]
    assert len(ticks) == 4
    assert [len(series.latency_ms) for series in found[HOST].values()] == [2, 2]
    assert found[HOST]["engine"].gpu_memory is None


def series(*rounds, memory=None):
    return _Series(latency_ms=[list(latencies) for latencies in rounds], peak_mib=100.0, gpu_memory=memory)


@pytest.fixture
def plan_report():
    """A report over made-up latencies of a plan: what is computed of them is looked at."""
    memory = GpuMemory(
        weights_mib=3.0, activations_mib=2.0, workspace_limit_mib=None, peak_mib=9.0, peak_source="process"
    )
    measured = {
        1: {
            clock: {
                "engine": series([ms, ms], [ms, ms], memory=memory),
                "baseline": series([2 * ms, 2 * ms], [2 * ms, 2 * ms], memory=memory),
            }
            for clock, ms in zip(PLAN_CLOCKS, (2.0, 3.0, 5.0), strict=True)
        },
        4: {PLAN_CLOCKS[0]: {"engine": series([4.0]), "baseline": series([16.0])}},
    }
    fields = _numbers(measured, 1, PLAN_CLOCKS)
    return BenchReport(
        engine="tensorrt-rtx",
        engine_path="unet.plan",
        target="tensorrt-rtx",
        mode="exact",
        file_mib=1.0,
        baseline_file_mib=2.0,
        integer_mac_share=0.9,
        environment={},
        options={},
        **fields,
    )


def test_the_report_of_a_plan_is_given_for_its_first_clock(plan_report):
    values = json.loads(json.dumps(plan_report.to_json()))
    assert values["version"] == 1
    assert values["clock"] == "cuda-graph"
    assert values["latency_ms"]["p50"] == 2.0
    assert values["speedup"] == 2.0
    assert [round(values["timings"][clock]["latency_ms"]["p50"]) for clock in PLAN_CLOCKS] == [2, 3, 5]
    assert values["timings"]["cuda"]["speedup"] == 2.0
    assert values["batches"][1] == {
        "batch": 4,
        "p50_ms": 4.0,
        "images_per_s": 1000.0,
        "baseline_p50_ms": 16.0,
        "baseline_images_per_s": 250.0,
    }
    assert values["gpu_memory"]["engine"]["weights_mib"] == 3.0
    assert set(values["gpu_memory"]) == {"engine", "baseline"}


def test_the_report_of_a_plan_is_printed(plan_report, capsys):
    from dataclasses import replace

    from dq_deploy.cli.text.bench_report import show_bench

    gpu = {"name": "GPU X", "compute_capability": "8.9", "driver_cuda": "13.0"}
    environment = {
        "gpu": gpu,
        "usable_cores": 2,
        "threads": None,
        "cpu": "CPU",
        "cpu_flags": [],
        "load_average_1min": 0.0,
    }
    show_bench(replace(plan_report, environment=environment))
    text = capsys.readouterr().out
    for word in ("without CUDA graph", "GPU memory, weights", CLOCKS["cuda-graph"], "GPU X", "compute capability 8.9"):
        assert word in text


def test_a_report_without_a_plan_has_no_keys_of_one(plan_report):
    from dataclasses import replace

    values = replace(plan_report, timings=None, gpu_memory=None).to_json()
    assert not {"timings", "gpu_memory"} & set(values)


def test_a_timing_without_a_baseline_has_no_speedup():
    assert Timing(latency_ms=Latency(p50=1.0, p90=1.0, p99=1.0)).speedup is None


def test_batches_the_plan_was_not_built_for_are_refused(tmp_path):
    manifest = plan_manifest(
        inputs=[{"name": "sample", "dtype": "float32", "shape": ["B", 3]}],
        profiles=[{"sample": {"min": [1, 3], "opt": [1, 3], "max": [4, 3]}}],
    )
    check_batches(manifest, (1, 4), tmp_path / "unet.plan")
    with pytest.raises(OptionError, match=r"`batches` got 8.*batches of 1 to 4"):
        check_batches(manifest, (1, 8), tmp_path / "unet.plan")


@without_driver
def test_without_a_driver_the_peak_says_why_there_is_none():
    pytest.importorskip("pynvml")
    with GpuPeak("0000:01:00.0") as peak:
        peak.poll()
    assert peak.peak_mib is None
    assert peak.source.startswith("NVML: ")


def test_without_nvml_the_peak_names_its_extra(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "pynvml", None)
    with GpuPeak("0000:01:00.0") as peak:
        assert peak.peak_mib is None
    assert "dq-deploy[cuda]" in peak.source


class CountedGpu:
    """A GPU and a Python of two counters in microseconds: a run costs Python 32, and starts when it has arrived."""

    def __init__(self, run_us: float) -> None:
        self.run_us, self.host, self.device = run_us, 0.0, 0.0
        self.cuda, self.stream = self, self

    def create_event(self):
        gpu = self

        class Event:
            at = 0.0

            def record(self, stream):
                self.at = max(gpu.device, gpu.host)

            def synchronize(self):
                gpu.host = max(gpu.host, self.at)

            def elapsed_ms(self, since):
                return (self.at - since.at) / 1e3

        return Event()

    def place(self, feeds):
        return {}

    def run_device(self, inputs, *, stream, cuda_graph):
        self.host += 32.0
        self.device = max(self.device, self.host) + self.run_us


@pytest.mark.parametrize("run_us", [40.0, 200.0, 5000.0])
def test_a_run_on_a_gpu_takes_what_the_gpu_takes(run_us):
    """An event on an idle GPU passes before Python has launched the run."""
    run = _on_device(CountedGpu(run_us), {}, cuda_graph=True)
    found = [run() * 1e3 for _ in range(3)]
    assert found == pytest.approx([run_us] * 3, rel=0.02)


def test_a_run_shorter_than_its_launch_takes_the_launch():
    """What it costs a program that launches one run after another."""
    assert _on_device(CountedGpu(5.0), {}, cuda_graph=True)() * 1e3 == pytest.approx(32, rel=0.02)
