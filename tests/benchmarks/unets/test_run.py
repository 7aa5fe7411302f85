"""The arithmetic of the UNet tables, their gate and their claims."""

from __future__ import annotations

import argparse
import json

import pytest

from benchmarks.unets import engines
from benchmarks.unets import run as unets
from benchmarks.unets.engines import Cpu, NotRunError
from benchmarks.unets.run import Series
from dq_deploy.errors import DqError
from dq_deploy.native.file import content

KEY = {"model": "cifar", "bits": "W4A8", "isa": "avx2", "threads": 2, "batch": 1}


def series():
    native = Series(rounds=((10.0, 12.0, 14.0), (20.0, 20.0)), peak_mib=100.0, load_ms=1.0)
    ort = Series(rounds=((24.0,), (60.0,)), peak_mib=400.0, load_ms=1.0)
    openvino = Series(rounds=((12.0,), (20.0,)), peak_mib=200.0, load_ms=1.0)
    return {"native": native, "onnxruntime float32": ort, "openvino int8": openvino}


def test_speedup_is_the_median_of_the_rounds_ratios():
    found = unets.ratios(series())

    assert found["onnxruntime float32"] == {"speedup": 2.5, "least": 2.0, "most": 3.0, "memory": 0.25}
    assert found["openvino int8"]["speedup"] == 1.0


def test_claims_are_judged_for_their_own_row_only():
    found = unets.ratios(series())

    assert [line.split(":")[0] for line in unets.verdicts(KEY, found)] == ["met", "NOT MET", "met"]
    assert unets.verdicts({**KEY, "isa": "avx512_vnni"}, found) == []


def test_without_amx_the_native_engine_is_held_against_nncf():
    found = {"nncf int8": {"speedup": 1.4, "memory": 0.5}}

    assert unets.verdicts({**KEY, "isa": "avx512_vnni"}, found) == ["NOT MET: 1.40x nncf int8, claimed 1.5x"]


def test_groups_of_engines_add_to_one_native_series():
    found, other = unets.Found(), series()
    found.add(series())
    found.add({"native": other["native"], "nncf int8": other["openvino int8"]})

    assert len(found.series["native"].rounds) == 4
    assert set(found.native_is) == {"onnxruntime float32", "openvino int8", "nncf int8"}
    assert found.native_is["nncf int8"] == found.native_is["openvino int8"]


def test_table_has_a_line_for_each_engine():
    lines = unets.table(series(), unets.ratios(series()))

    assert len(lines) == 4
    assert "2.50x" in lines[2]
    assert "2.00 to 3.00" in lines[2]


def test_a_red_engine_has_no_speed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(unets, "red_layers", lambda *_: ["conv_in: 1 of 9 accumulators"])
    monkeypatch.setattr(unets, "record_path", lambda *_: tmp_path / "demo.pt")
    monkeypatch.setattr(unets, "program_path", lambda *_: tmp_path / "demo.dqn")
    options = ["--model", "demo", "--weights", "4", "--isa", "portable", "--threads", "1"]

    assert unets.main([*options, "--work", str(tmp_path), "--results", str(tmp_path / "unets.jsonl")]) == 3
    text = capsys.readouterr().out
    assert "RED: conv_in: 1 of 9 accumulators" in text
    assert "ms" not in text.split("RED")[1]


def test_a_wrong_accumulator_is_found_in_the_running_engine(demo_record_path, monkeypatch):
    right = unets.exact_product

    def wrong_in_one(layer, weights, codes):
        return right(layer, weights, codes) + (layer.name == "conv_in")

    monkeypatch.setattr(unets, "exact_product", wrong_in_one)

    (red,) = unets.red_layers(demo_record_path, "portable", 1, 2)
    assert red.startswith("conv_in: ")


class Native:
    load_ms = 1.0

    def time(self, **_):
        return argparse.Namespace(latency_ms=(1.0,), peak_mib=1.0)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


def test_an_engine_that_cannot_do_a_model_says_why(tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise NotRunError("its package wants another CPU")

    monkeypatch.setattr(unets, "red_layers", lambda *_: [])
    monkeypatch.setattr(unets, "record_path", lambda *_: tmp_path / "demo.pt")
    monkeypatch.setattr(unets, "program_path", lambda *_: tmp_path / "demo.dqn")
    monkeypatch.setattr(unets, "ready_folder", lambda *_: tmp_path)
    monkeypatch.setattr(unets, "start_native", lambda *_: Native())
    monkeypatch.setattr(unets, "start_peer", refuse)
    monkeypatch.setattr(unets.fidelity, "of_file", lambda *_, **__: {"psnr_db": 40.0, "of": "2 pictures"})
    results = tmp_path / "unets.jsonl"
    options = ["--model", "demo", "--weights", "4", "--isa", "portable", "--threads", "1", "--quick"]
    options += ["--engine", "sdnq int8", "--work", str(tmp_path), "--results", str(results)]

    assert unets.main(options) == 0
    assert "sdnq int8: not run: its package wants another CPU" in capsys.readouterr().out
    row = json.loads(results.read_text())
    assert row["not_run"] == {"sdnq int8": "its package wants another CPU"}
    assert row["fidelity"]["native"]["psnr_db"] == 40.0


def test_one_of_our_graphs_that_cannot_be_made_is_not_run_and_says_why(tmp_path, monkeypatch):
    def refuse(*_):
        raise DqError("no summands are left")

    monkeypatch.setattr(unets, "ready_folder", lambda *_: tmp_path)
    monkeypatch.setattr(unets, "program_path", lambda *_: tmp_path / "demo.dqn")
    monkeypatch.setattr(unets, "start_native", lambda *_: Native())
    monkeypatch.setattr(unets, "graph_path", refuse)
    cpu = Cpu(isa="portable", hide_bf16=False, folder=tmp_path)
    asked, found = unets.Table(model="demo", bits=4, cpu=cpu, threads=1, batch=1), unets.Found()
    given = argparse.Namespace(work=tmp_path, terrain=None, rounds=1, seconds=0.0)
    unets.measure_group(asked, ["openvino int8"], tmp_path / "demo.pt", given, found)
    assert found.not_run == {"openvino int8": "no summands are left"}
    assert set(found.series) == {"native"}


def test_a_program_file_that_another_commit_left_is_not_timed(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr("dq_deploy.load_record", lambda path: path)
    monkeypatch.setattr(content, "write_program_file", lambda record, path, isa: (made.append(path.name), path.touch()))
    for name in ("abc", "abc", "def"):
        monkeypatch.setattr(engines, "commit", lambda name=name: name)
        engines.program_path(tmp_path / "demo.pt", "amx", tmp_path)
    assert made == ["demo-amx-abc.dqn", "demo-amx-def.dqn"]


def test_a_graph_that_another_commit_left_is_not_timed(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr("dq_deploy.load_record", lambda path: path)
    monkeypatch.setattr("dq_deploy.export", lambda record, path, target: (made.append(path), path.touch()))
    for name in ("abc", "abc", "def"):
        monkeypatch.setattr(unets, "commit", lambda name=name: name)
        unets.graph_path(tmp_path / "demo.pt", "openvino int8", tmp_path)
    assert [path.name for path in made] == ["demo-openvino-abc.onnx", "demo-openvino-def.onnx"]


@pytest.mark.parametrize(
    "options",
    [["--modle", "cifar"], ["--engine", "tensorflow"], ["--batch", "3"], ["--hide-bf16", "--isa", "portable"]],
)
def test_a_wrong_option_is_refused_in_one_line(options, capsys):
    with pytest.raises(SystemExit) as end:
        unets.main(options)
    assert end.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
