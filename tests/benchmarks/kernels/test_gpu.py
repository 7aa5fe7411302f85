"""The gate in front of a kernel's time on a GPU compares the float type that is timed, too."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks.kernels import gpu
from benchmarks.kernels.shapes import Shape

CPU = torch.device("cpu")
WANTED = {"y": np.array([[1.0, 3.3, -2.0]], np.float32), "accumulators": np.array([[10, 33, -20]], np.int32)}


def product(wrong):
    """A product whose results are those of `WANTED`, rounded once, but for what `wrong` does."""

    def call(shape, inputs, device, dtype):
        y, total = torch.zeros((1, 3), dtype=dtype), torch.zeros((1, 3), dtype=torch.int32)

        def run():
            y.copy_(torch.from_numpy(WANTED["y"]))
            total.copy_(torch.from_numpy(WANTED["accumulators"]))
            wrong(y, total)

        return run, SimpleNamespace(y=y, accumulators=total)

    return call


def truncated(y, total):
    """float16 cut off instead of rounded: 3.3 lies between two of them."""
    if y.dtype == torch.float16:
        y[0, 1] = torch.nextafter(y[0, 1], y[0, 1] * 0)


def one_more(y, total):
    total[0, 2] += 1


def unwritten(y, total):
    if y.dtype == torch.float16:
        y[0, 0] = float("nan")


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        (lambda y, total: None, ""),
        (truncated, "1 of 3 values of y differ from the reference, in float16"),
        (unwritten, "1 of 3 values of y differ from the reference, in float16"),
        (one_more, "1 of 3 values of accumulators differ from the reference, in float32"),
    ],
)
def test_a_product_is_held_to_the_reference_in_the_type_that_is_timed(monkeypatch, wrong, expected):
    monkeypatch.setattr(gpu, "product_call", product(wrong))
    assert gpu.gate(Shape(op="int_linear", model="", case=None), {}, WANTED, CPU) == expected


def test_inputs_are_values_that_float16_holds():
    """Else the kernel in float16 would read other values than the reference."""
    x = np.random.default_rng(0).normal(0, 3, 100).astype(np.float32)
    read = gpu.half_inputs({"x": x})["x"]
    np.testing.assert_array_equal(read, read.astype(np.float16))
    assert (read != x).any()


def test_a_row_s_time_is_that_of_a_cold_cache_and_warm_stands_beside_it(monkeypatch):
    """Twenty replays of one kernel find their arrays in the L2 cache, as no layer of a network does."""
    from dq_kernels.gpu.tune import clock

    def paper(device, *, cold=True, repeats=20):
        return lambda run: run() * (2.0 if cold else 1.0)

    monkeypatch.setattr(clock, "torch_clock", paper)
    monkeypatch.setattr(gpu.kernel_gate, "expected_results", lambda shape, inputs: {})
    monkeypatch.setattr(gpu, "gate", lambda *given: "")
    monkeypatch.setattr(gpu, "product_call", lambda *given: (lambda: 0.01, None))
    monkeypatch.setattr(gpu, "gpu_baselines", lambda *given: {"float16": lambda: 0.03})
    monkeypatch.setattr(gpu, "gpu_peak", lambda kind: 1.0)
    shape = SimpleNamespace(op="int_linear", inputs=dict, operations=1000)
    row = gpu.measure_shape(shape, 3)
    assert row["us"] == pytest.approx({"min": 20, "median": 20, "warm": 10})
    assert row["baselines"]["float16"]["us"]["min"] == pytest.approx(60)
