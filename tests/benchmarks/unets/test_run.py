"""The arithmetic of the UNet tables, their gate and their claims."""

from __future__ import annotations

from benchmarks.unets import run as unets
from benchmarks.unets.run import Series

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


def test_table_has_a_line_for_each_engine():
    lines = unets.table(series(), unets.ratios(series()))

    assert len(lines) == 4
    assert "2.50x" in lines[2]
    assert "2.00 to 3.00" in lines[2]


def test_a_red_engine_has_no_speed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(unets, "red_layers", lambda *_: ["conv_in: 1 of 9 accumulators"])
    monkeypatch.setattr(unets, "record_path", lambda *_: tmp_path / "demo.pt")
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
