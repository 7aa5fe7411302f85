"""The float linear layer against float64, and the same bits for any number of threads."""

from __future__ import annotations

import numpy as np
import pytest
from dq_kernels.cpu.library import Context, KernelInputError, known_isas
from dq_kernels.float_linear import run
from dq_kernels.float_linear.cases import TEST_CASES, Case
from dq_kernels.float_linear.reference import float_linear
from hypothesis import given, settings
from hypothesis import strategies as st


def assert_close(got, inputs):
    """A sum of n products is off by at most n roundings of the sum of their sizes, here by far less."""
    sizes = float_linear(*(None if a is None else np.abs(a) for a in inputs.values()))
    assert (np.abs(got - float_linear(**inputs)) <= 2e-6 * sizes).all()


@pytest.mark.parametrize("case", TEST_CASES, ids=lambda c: c.name)
def test_a_case_is_close_to_float64(each_context, case):
    inputs = case.inputs()
    assert_close(run(each_context, **inputs), inputs)


@given(st.builds(Case, name=st.just(""), rows=st.integers(1, 60), channels=st.integers(1, 600),
                 out_channels=st.integers(1, 250), bias=st.booleans(), seed=st.integers(0, 1000)))  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_any_shape_is_close_to_float64(case):
    inputs = case.inputs()
    with Context(1, known_isas()[-1]) as context:
        assert_close(run(context, **inputs), inputs)


@pytest.mark.parametrize("isa", known_isas())
@pytest.mark.parametrize("case", TEST_CASES, ids=lambda c: c.name)
def test_the_number_of_threads_changes_no_bit(case, isa, context_of):
    inputs = case.inputs()
    one, three, seven = (run(context_of(isa, threads), **inputs).tobytes() for threads in (1, 3, 7))
    assert one == three == seven


def test_rows_may_lie_apart(best_context):
    inputs = TEST_CASES[3].inputs()
    wide = np.full((77, 320), np.nan, np.float32)
    wide[:, 7:307] = inputs["x"]
    assert run(best_context, **(inputs | {"x": wide[:, 7:307]})).tobytes() == run(best_context, **inputs).tobytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": np.zeros((2, 4))}, "x is float64"),
        ({"weights": np.zeros((3, 5), np.float32)}, r"weights are float32 \(3, 5\), expected contiguous float32 \[out"),
        ({"bias": np.zeros(4, np.float32)}, r"bias is float32 \(4,\), expected contiguous float32 \[3\]"),
    ],
)
def test_bad_input_is_one_clear_line(best_context, change, message):
    good = {"x": np.zeros((2, 4), np.float32), "weights": np.zeros((3, 4), np.float32)}
    with pytest.raises(KernelInputError, match=message):
        run(best_context, **(good | change))


@pytest.mark.parametrize("isa", known_isas())
@pytest.mark.parametrize(("channels", "out"), [(133, 70), (515, 40), (7, 3)])
@pytest.mark.parametrize("rows_of_sample", [1, 5, 9])
def test_a_row_does_not_depend_on_the_others(isa, channels, out, rows_of_sample):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((9 * rows_of_sample, channels)).astype(np.float32)
    weights = rng.standard_normal((out, channels)).astype(np.float32)
    with Context(threads=1, isa=isa) as context:
        whole = run(context, x, weights, rows_of_sample=rows_of_sample)
        for samples in (1, 2, 4):
            rows = samples * rows_of_sample
            part = run(context, x[:rows], weights, rows_of_sample=rows_of_sample)
            assert part.tobytes() == whole[:rows].tobytes()
