"""No speed of a kernel that is wrong, and the arithmetic of the table."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from dq_kernels.cpu.library import known_isas
from dq_kernels.int_conv2d import cases as conv_cases
from dq_kernels.int_conv2d.reference import int_conv2d
from dq_kernels.int_linear import cases as linear_cases
from dq_kernels.int_linear.reference import int_linear
from dq_kernels.quantize.cases import Case as QuantizeCase

from benchmarks.kernels import gate as kernel_gate
from benchmarks.kernels import rows
from benchmarks.kernels import run as kernels
from benchmarks.kernels.shapes import Shape

LINEAR = Shape("int_linear", "cifar", linear_cases.Case(name="1x16 32->32", rows=16, channels=32, out_channels=32))
QUANTIZE = Shape("quantize", "cifar", QuantizeCase("1x16 32", 1, 16, 32))


@pytest.fixture
def options(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "all_shapes", lambda *_, **__: [LINEAR, QUANTIZE])
    monkeypatch.setattr(kernels.peaks, "product_peak", lambda *_: 100.0)
    monkeypatch.setattr(kernels.peaks, "copy_peak", lambda *_: 100.0)
    monkeypatch.setattr(kernels.quiet, "others_busy", lambda *_: 0.0)
    own = ["--in-process", "--isa", known_isas()[-1], "--threads", "1", "--weights", "4"]
    quick = ["--rounds", "1", "--seconds", "0", "--results", str(tmp_path / "kernels.jsonl")]
    return [*own, *quick, "--baseline", "torch float32"]


def rows_of(options):
    return [json.loads(line) for line in Path(options[options.index("--results") + 1]).read_text().splitlines()]


def test_a_wrong_kernel_is_red_and_has_no_speed(options, monkeypatch, capsys):
    right = kernel_gate.kernel_results

    def wrong(shape, inputs, recorder):
        found = right(shape, inputs, recorder)
        found["y" if shape.op == "int_linear" else "codes 0"].flat[3] += 1
        return found

    monkeypatch.setattr(kernel_gate, "kernel_results", wrong)

    assert kernels.main(options) == 3
    text = capsys.readouterr().out
    assert text.count("RED: 1 of ") == 2
    assert "OP/s" not in text
    assert "GB/s" not in text
    assert all("us" not in row and "rate" not in row and "baselines" not in row for row in rows_of(options))


def test_a_kernel_that_goes_wrong_while_it_is_timed_is_red(options, monkeypatch, capsys):
    monkeypatch.setattr(kernels, "take_turns", lambda runs, *_: {key: {"min": 1.0, "median": 1.0} for key in runs})

    assert kernels.main(options) == 3  # nothing was written where the results were cleared
    assert "after the timed calls" in capsys.readouterr().out


def test_a_right_kernel_has_a_row_once(options, capsys):
    assert kernels.main(options) == 0
    assert "GOP/s" in capsys.readouterr().out
    row = rows_of(options)[0]
    assert row["us"]["min"] <= row["us"]["median"]
    assert row["baselines"]["torch float32"]["max_error"] < 1e-5
    assert kernels.main(options) == 0
    assert len(rows_of(options)) == 2


def test_rate_and_share_are_of_the_best_run():
    found = kernels.figures(LINEAR, {"min": 2.0, "median": 4.0}, 100.0)
    assert found == {"rate": 2 * 16 * 32 * 32 / 2e3, "unit": "GOP/s", "peak": 100.0, "share": 0.16384}
    assert kernels.figures(QUANTIZE, {"min": 1.0, "median": 4.0}, None)["rate"] == 16 * 32 * 5 / 1e3


def test_ratio_is_above_one_where_the_kernel_is_faster():
    us = {"kernel": {"min": 1.0, "median": 2.0}, "torch float32": {"min": 4.0, "median": 6.0}}
    found = kernels.compared(us, "torch float32", 0.5)
    assert (found["ratio"], found["ratio_of_min"]) == (3.0, 4.0)
    row = {"us": us["kernel"], "rate": 10.0, "unit": "GOP/s", "share": 0.5, "baselines": {"torch float32": found}}
    key = kernels.key_of(LINEAR, "avx2", 1)
    assert "torch float32: x3.00 (WRONG by 50%)" in kernels.line_of(key, row)


@pytest.mark.parametrize("case", linear_cases.TEST_CASES, ids=lambda case: case.name)
def test_exact_product_of_a_linear_layer(case):
    inputs = case.inputs()
    assert np.array_equal(kernel_gate.exact_accumulators(inputs), int_linear(**inputs)[1])


@pytest.mark.parametrize("case", conv_cases.TEST_CASES, ids=lambda case: case.name)
def test_exact_product_of_a_convolution_in_pieces(case, monkeypatch):
    monkeypatch.setattr(kernel_gate, "CHUNK_BYTES", 1 << 14)
    inputs = case.inputs()
    assert np.array_equal(kernel_gate.exact_accumulators(inputs), int_conv2d(**inputs)[1])
