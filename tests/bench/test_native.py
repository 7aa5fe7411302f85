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

ONNX_MIB = 45
"""What importing onnx takes alone; the native engine's worker does without it, and without torch's 200 and more."""


@pytest.fixture(scope="module")
def printed(tiny_record_path, tmp_path_factory):
    """One comparison on the slowest instruction set: what the command prints, and its JSON."""
    written = tmp_path_factory.mktemp("bench") / "bench.json"
    quick = ["--batch", "1,2", "--runs", "2", "--warmup", "1", "--threads", "1", "--isa", known_isas()[0]]
    done = command("bench", "--engine", tiny_record_path, "--baseline", *quick, "--json", written)
    assert done.code == 0, done.err
    return done.out, json.loads(written.read_text())


def test_a_record_is_timed_against_its_float_graph(printed, tiny_record_path):
    values = printed[1]
    assert (values["engine"], values["target"], values["mode"]) == ("native", "native", "exact")
    assert values["speedup"] == pytest.approx(values["baseline_latency_ms"]["p50"] / values["latency_ms"]["p50"])
    assert len(values["rounds"]) == 7
    assert [entry["batch"] for entry in values["batches"]] == [1, 2]
    assert values["file_mib"] == tiny_record_path.stat().st_size / 2**20
    assert values["load_ms"] > 0
    assert values["baseline_load_ms"] > 0
    assert values["integer_mac_share"] >= 0.95


def test_its_process_is_smaller_than_onnx_runtimes(printed):
    values = printed[1]
    assert values["peak_mib"] < values["baseline_peak_mib"] - ONNX_MIB / 2
    assert values["peak_mib"] < 80


def test_the_report_says_what_runs(printed):
    text, values = printed
    native = values["environment"]["native"]
    assert native["isa"] == known_isas()[0]
    assert native["threads"] == 1
    assert sum(native["kernels"].values()) == 49
    assert all(name.startswith(("int_conv2d ", "int_linear ")) for name in native["kernels"])
    for word in (f"instruction set {native['isa']}", "int_conv2d", "integer share of all MACs", "load, from the file"):
        assert word in text


@pytest.mark.parametrize("wrong", [{"isa": "avx2"}, {"device": "cpu"}])
def test_a_choice_that_other_engines_do_not_have_is_refused(wrong, tiny_engine):
    with pytest.raises(OptionError, match="only the native engine"):
        benchmark(tiny_engine, options=BenchOptions(**wrong))


def test_a_worker_says_which_instruction_sets_there_are(tiny_record_path):
    with pytest.raises(DqError, match="expected one of portable"):
        Worker(WorkerSettings(path=str(tiny_record_path), isa="avx9"))


def test_the_share_is_that_of_its_layers(tiny_record_path, tiny_engine):
    found, other = attest(tiny_record_path), attest(tiny_engine)
    assert found.integer_mac_share == other.integer_mac_share >= 0.95
    assert set(other.float_layers) <= set(found.float_layers)
