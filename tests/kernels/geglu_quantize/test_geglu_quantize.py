from __future__ import annotations

import math

import numpy as np
import pytest
from dq_kernels import geglu_quantize as op
from dq_kernels.cpu.library import KernelInputError
from dq_kernels.geglu_quantize.cases import TEST_CASES, Case
from dq_kernels.geglu_quantize.reference import geglu_quantize, gelu32
from dq_kernels.quantize.cases import random_quantizer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tests.kernels.quantize.bits import apart, assert_same_bits

STEP = np.zeros(1, np.int32)
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False, allow_subnormal=True)


def assert_equals_reference(context, inputs, name: str = "", **options) -> None:
    y, codes, nan_seen = op.run(context, **inputs, **options)
    expected_y, expected_codes, expected_seen = geglu_quantize(**inputs)
    if y is not None:
        assert_same_bits(y, expected_y, f"y of {name}")
    assert nan_seen == expected_seen
    assert (codes is None) == (expected_codes is None)
    if codes is not None:
        if not nan_seen:
            assert_same_bits(codes[:, :, : expected_codes.shape[2]], expected_codes, f"codes of {name}")
        assert not codes[:, :, expected_codes.shape[2] :].any()


@pytest.mark.parametrize("case", TEST_CASES, ids=lambda case: case.name)
def test_y_and_codes_equal_the_reference(contexts, case):
    for context in contexts(case.batch > 1):
        assert_equals_reference(context, case.inputs(), case.name)
        assert_equals_reference(context, case.inputs(), case.name, with_y=False, pitch_multiple=32)


def test_a_row_longer_than_a_tile_equals_the_reference(each_context):
    assert_equals_reference(each_context, Case("", 1, 3, 5121, seed=20).inputs(), with_y=False, pitch_multiple=64)


def test_gelu_equals_the_reference_from_end_to_end_of_exp(each_context):
    gates = np.concatenate([np.linspace(-16, 16, 60_000), np.exp2(np.linspace(-140, 100, 2_000))]).astype(np.float32)
    x = np.stack([np.ones_like(gates), gates]).reshape(1, 1, -1)
    y, _, _ = op.run(each_context, x, STEP)
    with np.errstate(all="ignore"):
        assert_same_bits(y[0, 0], gelu32(gates), "gelu")


def test_many_tasks_equal_the_reference(contexts):
    for context in contexts(True):
        assert_equals_reference(context, Case("", 3, 130, 321, steps=5, seed=29).inputs(), pitch_multiple=64)


def test_rows_of_x_and_y_may_lie_apart(each_context):
    inputs = Case("", 2, 19, 61, seed=32).inputs()
    expected, codes, _ = geglu_quantize(**inputs)
    inputs["x"] = apart(inputs["x"], 131)
    y = apart(np.zeros_like(expected), 64)
    _, found_codes, nan_seen = op.run(each_context, **inputs, y=y)
    assert_same_bits(y, expected, "y")
    assert_same_bits(found_codes, codes, "codes")
    assert not nan_seen
    assert np.isnan(y.base[:, :, 61:]).all()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), rows=st.integers(1, 3), channels=st.integers(1, 40), seed=st.integers(0, 1 << 30))
def test_any_values_equal_the_reference(each_context, data, rows, channels, seed):
    x = data.draw(arrays(np.float32, (1, rows, 2 * channels), elements=FLOATS))
    output = random_quantizer(np.random.default_rng(seed), channels, bits=2 + seed % 7)
    assert_equals_reference(each_context, {"x": x, "step": STEP, "output": output})


@pytest.mark.parametrize("codes", [True, False], ids=["codes", "y alone"])
def test_a_nan_in_any_place_is_seen(each_context, codes):
    for channels in (1, 7, 33, 70):
        output = random_quantizer(np.random.default_rng(36), channels) if codes else None
        clean = np.random.default_rng(35).standard_normal((1, 2, 2 * channels)).astype(np.float32)
        assert not op.run(each_context, clean, STEP, output)[2]
        for place in range(4 * channels):
            x = clean.copy()
            x.reshape(-1)[place] = np.nan
            assert op.run(each_context, x, STEP, output)[2], (channels, place)


def test_an_infinite_gate_times_nothing_is_seen(each_context):
    x = np.array([1.0, 2.0, np.inf, -np.inf], np.float32).reshape(1, 1, 4)
    y, _, nan_seen = op.run(each_context, x, STEP)
    assert y[0, 0, 0] == np.inf
    assert np.isnan(y[0, 0, 1])
    assert nan_seen
    assert geglu_quantize(x, STEP)[2]


def test_gelu_is_that_of_float64_to_5e_7_of_the_largest_value():
    g = (np.random.default_rng(3).standard_normal(50_000) * 4).astype(np.float32)
    exact = np.array([0.5 * v * math.erfc(-v / math.sqrt(2)) for v in g.astype(np.float64)])
    assert np.abs(gelu32(g) - exact).max() <= 5e-7 * np.abs(exact).max()


def test_gelu_is_torchs_to_5e_7_of_the_largest_value():
    torch = pytest.importorskip("torch")
    g = (np.random.default_rng(4).standard_normal(200_000) * 3).astype(np.float32)
    expected = torch.nn.functional.gelu(torch.from_numpy(g)).numpy()
    assert np.abs(gelu32(g) - expected).max() <= 5e-7 * np.abs(expected).max()


def test_wrong_input_is_refused(best_context):
    x = np.zeros((1, 2, 6), np.float32)
    with pytest.raises(KernelInputError, match="x has 5 channels, expected values and gates"):
        op.run(best_context, np.zeros((1, 2, 5), np.float32), STEP)
    with pytest.raises(KernelInputError, match="expected them within the 3 of the tensor"):
        op.run(best_context, x, STEP, random_quantizer(np.random.default_rng(0), 4))
    with pytest.raises(KernelInputError, match="y lies in the memory of x"):
        op.run(best_context, x, STEP, y=x[:, :, :3])
