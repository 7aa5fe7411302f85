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
