"""The native engine is timed in a process that stays small, beside the float graph on ONNX Runtime."""

from __future__ import annotations

import json

import pytest
from dq_kernels.cpu.library import known_isas

from dq_deploy.bench import BenchOptions, benchmark
from dq_deploy.bench.worker import Worker, WorkerSettings
from dq_deploy.errors import DqError, OptionError
from dq_deploy.verify.share import attest
from tests.cli.running import command

QUICK = BenchOptions(batches=(1, 2), rounds=7, runs=2, warmup=1, seconds=0.0, threads=1)
ONNX_MIB = 45
"""What importing onnx takes alone; the native engine's worker does without it, and without torch's 200 and more."""


@pytest.fixture(scope="module")
def report(tiny_record_path):
    return benchmark(tiny_record_path, baseline=True, options=QUICK)


def test_a_record_is_timed_against_its_float_graph(report, tiny_record_path):
    values = json.loads(json.dumps(report.to_json()))
    assert (values["engine"], values["target"], values["mode"]) == ("native", "native", "exact")
    assert values["speedup"] == pytest.approx(values["baseline_latency_ms"]["p50"] / values["latency_ms"]["p50"])
    assert len(values["rounds"]) == 7
    assert [entry["batch"] for entry in values["batches"]] == [1, 2]
    assert values["file_mib"] == tiny_record_path.stat().st_size / 2**20
    assert values["load_ms"] > 0
    assert values["baseline_load_ms"] > 0


def test_its_process_is_smaller_than_onnx_runtimes(report):
    assert report.peak_mib < report.baseline_peak_mib - ONNX_MIB / 2
    assert report.peak_mib < 80


def test_the_report_says_what_runs(report):
    native = report.environment["native"]
    assert native["isa"] == known_isas()[-1]
    assert native["threads"] == 1
    assert sum(native["kernels"].values()) == 49
    assert all(name.startswith(("int_conv2d ", "int_linear ")) for name in native["kernels"])


def test_the_instruction_set_can_be_chosen(tiny_record_path):
    with Worker(WorkerSettings(path=str(tiny_record_path), threads=1, isa=known_isas()[0])) as worker:
        assert worker.engine == "native"
        assert worker.load_ms > 0
        assert len(worker.time(batch=1, warmup=1, runs=2, seconds=0.0)["latency_ms"]) == 2


def test_an_instruction_set_of_another_engine_is_refused(tiny_record_path, tiny_engine):
    with pytest.raises(OptionError, match="only the native engine"):
        benchmark(tiny_engine, options=BenchOptions(isa="avx2"))
    with pytest.raises(DqError, match="expected one this CPU has"):
        Worker(WorkerSettings(path=str(tiny_record_path), isa="avx9"))


def test_the_share_is_that_of_its_layers(tiny_record_path, tiny_engine):
    found, other = attest(tiny_record_path), attest(tiny_engine)
    assert found.integer_mac_share == other.integer_mac_share >= 0.95
    assert set(other.float_layers) <= set(found.float_layers)


def test_the_command_prints_kernels_and_share(tiny_record_path, tmp_path):
    more = ["--batch", "1", "--rounds", "1", "--runs", "2", "--threads", "1", "--json", tmp_path / "bench.json"]
    done = command("bench", "--engine", tiny_record_path, *more)
    assert done.code == 0, done.err
    assert "instruction set" in done.out
    assert "int_conv2d" in done.out
    assert "integer share of all MACs" in done.out
    assert json.loads((tmp_path / "bench.json").read_text())["integer_mac_share"] >= 0.95
