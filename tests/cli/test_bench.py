"""`dq-bench` prints a table, writes the documented JSON and a chart."""

from __future__ import annotations

import json

import pytest

from tests.cli.running import command

QUICK = ["--batch", "1,2", "--runs", "2", "--warmup", "1", "--threads", "1"]


def test_a_comparison_is_printed_and_written(tiny_engine, tiny_record_path, tmp_path):
    more = ["--baseline", "--ckpt", tiny_record_path, "--json", tmp_path / "bench.json", "--png", tmp_path / "b.png"]
    done = command("bench", "--engine", tiny_engine, *QUICK, *more)
    assert done.code == 0, done.err
    values = json.loads((tmp_path / "bench.json").read_text())
    assert values["speedup"] > 0
    assert len(values["rounds"]) == 7
    assert 0 < values["integer_mac_share"] <= 1
    assert (tmp_path / "b.png").stat().st_size > 1000
    for word in ("latency p50", "speedup", "integer share", "images a second"):
        assert word in done.out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--baseline", "--rounds", "3"], "at least 7"),
        (["--batch", "0"], "--batch got 0"),
        (["--threads", "0"], "threads is 0"),
        (["--json", "missing/bench.json"], "does not exist"),
        (["--engine", "missing.onnx"], "missing.onnx"),
    ],
)
def test_a_mistake_is_one_line(more, message, tiny_engine):
    done = command("bench", "--engine", tiny_engine, *more)
    assert done.code == 2
    assert message in done.err
    assert done.err.count("\n") == 1
