"""Engines are timed in turns, each in its own process, and the report has the documented keys."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from onnx import TensorProto, helper
from PIL import Image

from dq_deploy.bench import BenchOptions, benchmark
from dq_deploy.bench.chart import write_chart
from dq_deploy.bench.harness import sizes_of_runs
from dq_deploy.bench.worker import Worker, WorkerSettings
from dq_deploy.errors import DqError, FileProblemError, OptionError, explained
from dq_deploy.open_engine import open_engine
from dq_deploy.processes import Failure, Message, WorkerError

QUICK = BenchOptions(batches=(1, 2), rounds=7, runs=2, warmup=1, seconds=0.0, threads=1)


@pytest.fixture(scope="module")
def report(tiny_engine):
    turns = []
    found = benchmark(
        tiny_engine, baseline=True, options=QUICK, integer_mac_share=0.9, on_progress=lambda *t: turns.append(t)
    )
    assert turns[-1] == (20, 20)  # (7 + 3 rounds) x 2 engines
    assert [done for done, _ in turns] == list(range(1, 21))
    return found


def test_the_report_has_the_documented_keys(report):
    values = json.loads(json.dumps(report.to_json()))
    wanted = {"latency_ms", "baseline_latency_ms", "speedup", "rounds", "peak_mib", "file_mib", "integer_mac_share"}
    assert wanted <= set(values)
    for key in ("latency_ms", "baseline_latency_ms"):
        percentiles = values[key]
        assert 0 < percentiles["p50"] <= percentiles["p90"] <= percentiles["p99"]
    assert values["speedup"] == pytest.approx(values["baseline_latency_ms"]["p50"] / values["latency_ms"]["p50"])
    assert values["integer_mac_share"] == 0.9
    assert {"cpu", "cpu_flags", "threads", "versions", "date"} <= set(values["environment"])


def test_every_round_is_in_the_report(report):
    values = report.to_json()
    assert len(values["rounds"]) == len(values["round_ratios"]) == 7
    for entry, ratio in zip(values["rounds"], values["round_ratios"], strict=True):
        assert ratio == pytest.approx(entry["baseline_p50_ms"] / entry["p50_ms"])


def test_images_a_second_belong_to_their_batch(report):
    assert [entry.batch for entry in report.batches] == [1, 2]
    for entry in report.batches:
        assert entry.images_per_s == pytest.approx(1000 * entry.batch / entry.p50_ms)


def test_the_file_size_is_that_of_the_file(report, tiny_engine):
    assert report.file_mib == tiny_engine.stat().st_size / 2**20


def test_without_a_baseline_its_fields_are_empty(tiny_engine):
    found = benchmark(tiny_engine, options=BenchOptions(batches=(1,), rounds=1, runs=1, seconds=0.0, threads=1))
    assert found.baseline_latency_ms is found.speedup is found.baseline_peak_mib is None
    assert found.rounds[0].ratio is None
    assert "round_ratios" not in found.to_json()


def test_memory_is_the_engines_own_and_not_its_parents(tiny_engine):
    ballast = np.ones(400 * 2**20 // 8)  # resident in this process before the worker is forked
    with Worker(WorkerSettings(path=str(tiny_engine), threads=1)) as worker:
        peak = worker.time(batch=1, warmup=1, runs=1, seconds=0.0).peak_mib
    assert ballast.sum() == ballast.size
    assert 20 < peak < 350


def test_a_worker_reports_what_its_engine_says(tmp_path):
    with pytest.raises(FileProblemError, match=r"missing\.onnx"):
        Worker(WorkerSettings(path=str(tmp_path / "missing.onnx")))


def test_a_file_that_gives_nan_ends_a_measurement_with_code_2(tmp_path):
    square_root = helper.make_node("Sqrt", ["x"], ["y"])
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3]) for name in "xy")
    file = tmp_path / "nan.onnx"
    model = helper.make_model(
        helper.make_graph([square_root], "nan", [x], [y]), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    file.write_bytes(model.SerializeToString())
    with Worker(WorkerSettings(path=str(file), engine="onnxruntime", threads=1)) as worker:
        with pytest.raises(FileProblemError, match="NaN") as caught:
            worker.time(batch=4, warmup=1, runs=1, seconds=0.0)
        assert caught.value.exit_code == 2
        assert "failed" not in str(caught.value)


def test_memory_that_ran_out_is_asked_for_once(tiny_engine, monkeypatch):
    def ask(worker: Worker, request: Message, result: type[Message]) -> Message:
        message, code = explained(MemoryError("std::bad_alloc"))
        raise WorkerError(
            Failure(kind="MemoryError", message=message, exit_code=code, last_line="MemoryError: std::bad_alloc")
        )

    with Worker(WorkerSettings(path=str(tiny_engine), threads=1)) as worker:
        monkeypatch.setattr(Worker, "ask", ask)
        with pytest.raises(DqError, match=r" failed: MemoryError: std::bad_alloc; is there enough memory\?$"):
            worker.time(batch=1, warmup=1, runs=1, seconds=0.0)


def test_the_sizes_of_an_older_engine_are_those_of_its_configuration(tiny_engine):
    with open_engine(tiny_engine) as runner:
        config = {**runner.manifest.model_config, "sample_size": [4, 8]}
        runner.manifest = replace(runner.manifest, sizes=None, model_config=config)
        sizes = sizes_of_runs(runner, runner.manifest, {"width": 16})
        assert {name: sizes[name] for name in ("height", "width")} == {"height": 4, "width": 16}


def test_fewer_rounds_than_a_comparison_needs_are_refused(tiny_engine):
    with pytest.raises(OptionError, match="at least 7"):
        benchmark(tiny_engine, baseline=True, options=BenchOptions(rounds=6))


@pytest.mark.parametrize("wrong", [{"rounds": 0}, {"runs": 0}, {"batches": ()}, {"batches": (0,)}, {"threads": 0}])
def test_options_out_of_range_are_refused(wrong):
    with pytest.raises(OptionError, match=r"expected at least|expected a whole number from 1"):
        BenchOptions(**wrong)


def test_the_chart_is_a_picture(report, tmp_path):
    write_chart(report, tmp_path / "bench.png")
    assert Image.open(tmp_path / "bench.png").size == (1080, 432)
