"""The float convolution against float64 and against torch, and the same bits for any number of threads."""

from __future__ import annotations

import numpy as np
import pytest
from dq_kernels.cpu.library import Context, KernelInputError, known_isas
from dq_kernels.float_conv2d import run
from dq_kernels.float_conv2d.cases import TEST_CASES, Case
from dq_kernels.float_conv2d.reference import float_conv2d
from hypothesis import given, settings
from hypothesis import strategies as st


def assert_close(got, inputs):
    """A sum of n products is off by at most n roundings of the sum of their sizes, here by far less."""
    wanted = float_conv2d(**inputs)
    sizes = float_conv2d(**{k: np.abs(v) if isinstance(v, np.ndarray) else v for k, v in inputs.items()})
    assert got.shape == wanted.shape
    assert (np.abs(got - wanted) <= 2e-6 * sizes).all()


@pytest.mark.parametrize("case", TEST_CASES, ids=lambda c: c.name)
def test_a_case_is_close_to_float64(each_context, case):
    inputs = case.inputs()
    assert_close(run(each_context, **inputs), inputs)


@st.composite
def convolutions(draw):
    few, groups = st.integers(1, 3), draw(st.integers(1, 3))
    dilation, kernel = draw(st.tuples(few, few)), draw(st.tuples(few, few))
    return Case(
        name="",
        batch=draw(few),
        height=draw(st.integers(dilation[0] * (kernel[0] - 1) + 1, 12)),
        width=draw(st.integers(dilation[1] * (kernel[1] - 1) + 1, 12)),
        channels=groups * draw(st.integers(1, 40)),
        out_channels=groups * draw(st.integers(1, 40)),
        kernel=kernel,
        stride=draw(st.tuples(few, few)),
        padding=draw(st.tuples(*[st.integers(0, 3)] * 4)),
        dilation=dilation,
        groups=groups,
        bias=draw(st.booleans()),
        seed=draw(st.integers(0, 1000)),
    )


@given(convolutions())
@settings(max_examples=60, deadline=None)
def test_any_window_is_close_to_float64(case):
    inputs = case.inputs()
    with Context(1, known_isas()[-1]) as context:
        assert_close(run(context, **inputs), inputs)


@pytest.mark.parametrize("isa", known_isas())
@pytest.mark.parametrize("case", TEST_CASES, ids=lambda c: c.name)
def test_the_number_of_threads_changes_no_bit(case, isa, context_of):
    inputs = case.inputs()
    one, three, seven = (run(context_of(isa, threads), **inputs).tobytes() for threads in (1, 3, 7))
    assert one == three == seven


@pytest.mark.parametrize("case", [c for c in TEST_CASES if c.padding[0] == c.padding[1]], ids=lambda c: c.name)
def test_the_reference_is_the_convolution_of_torch(case):
    import torch

    inputs = case.inputs()
    x = torch.from_numpy(inputs["x"]).double().permute(0, 3, 1, 2)
    weights = torch.from_numpy(inputs["weights"]).double().permute(0, 3, 1, 2)
    bias = None if inputs["bias"] is None else torch.from_numpy(inputs["bias"]).double()
    top, _, left, _ = case.padding
    y = torch.nn.functional.conv2d(x, weights, bias, case.stride, (top, left), case.dilation, case.groups)
    assert np.allclose(y.permute(0, 2, 3, 1).numpy(), float_conv2d(**inputs), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": np.zeros((1, 3, 4, 4), np.float32).transpose(0, 2, 3, 1)}, "expected contiguous float32 with 4 axes"),
        ({"groups": 2}, "in 2 groups"),
        ({"stride": (0, 1)}, r"stride \(0, 1\)"),
        ({"bias": np.zeros(4, np.float32)}, r"bias is \(4,\), expected \(3,\)"),
        ({"dilation": (4, 1)}, "the window 3x3 does not fit into 4x4 with its padding"),
    ],
)
def test_bad_input_is_one_clear_line(best_context, change, message):
    good = {"x": np.zeros((1, 4, 4, 5), np.float32), "weights": np.zeros((3, 3, 3, 5), np.float32)}
    with pytest.raises(KernelInputError, match=message):
        run(best_context, **(good | change))
