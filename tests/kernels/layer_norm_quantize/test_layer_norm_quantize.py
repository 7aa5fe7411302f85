from __future__ import annotations

import numpy as np
import pytest
from dq_kernels import layer_norm_quantize as op
from dq_kernels.cpu.library import KernelInputError
from dq_kernels.group_norm_silu_quantize.cases import KINDS
from dq_kernels.layer_norm_quantize.cases import SHAPE_CASES, TEST_CASES, Case
from dq_kernels.layer_norm_quantize.reference import layer_norm_quantize
from dq_kernels.quantize.cases import buckets, random_quantizer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.kernels.quantize.bits import apart, assert_same_bits

STEP = np.zeros(1, np.int32)


def assert_equals_reference(context, inputs, name: str = "", **options) -> None:
    y, codes, nan_seen = op.run(context, **inputs, **options)
    expected_y, expected_codes, expected_seen = layer_norm_quantize(**inputs)
    if y is not None:
        assert_same_bits(y, expected_y, f"y of {name}")
    assert len(codes) == len(expected_codes)
    for part, (found, expected) in enumerate(zip(codes, expected_codes, strict=True)):
        assert_same_bits(found[:, :, : expected.shape[2]], expected, f"part {part} of {name}")
        assert not found[:, :, expected.shape[2] :].any()
    assert nan_seen == expected_seen


@pytest.mark.parametrize("case", TEST_CASES, ids=lambda case: case.name)
def test_y_and_codes_equal_the_reference(contexts, case):
    for context in contexts(case.batch > 1):
        assert_equals_reference(context, case.inputs(), case.name)


@pytest.mark.parametrize("case", TEST_CASES, ids=lambda case: case.name)
def test_codes_without_y_are_the_same(contexts, case):
    for context in contexts(case.batch > 1):
        assert_equals_reference(context, case.inputs(), case.name, with_y=False, pitch_multiple=32)


def test_a_models_shape_equals_the_reference(best_context):
    case = next(case for case in SHAPE_CASES if case.name == "sd15 8x8 1280")
    assert_equals_reference(best_context, case.inputs(), case.name, with_y=False)


def test_many_tasks_equal_the_reference(contexts):
    inputs = Case("", 3, 130, 321, ((0, 321), (5, 64)), steps=5, seed=29).inputs()
    for context in contexts(True):
        assert_equals_reference(context, inputs, with_y=False, pitch_multiple=64)


def test_rows_of_x_and_y_may_lie_apart(each_context):
    inputs = Case("", 2, 19, 61, seed=32).inputs()
    expected, codes, _ = layer_norm_quantize(**inputs)
    inputs["x"] = apart(inputs["x"], 77)
    y = apart(np.zeros_like(expected), 64)
    _, found_codes, nan_seen = op.run(each_context, **inputs, y=y)
    assert_same_bits(y, expected, "y")
    assert_same_bits(found_codes[0], codes[0], "codes")
    assert not nan_seen
    assert np.isnan(y.base[:, :, 61:]).all()


def test_the_order_of_channels_changes_no_bit(best_context):
    inputs = Case("", 1, 9, 333, (), affine=False, kind="mixed", seed=33).inputs()
    order = np.random.default_rng(34).permutation(333)
    y, _, _ = op.run(best_context, **inputs)
    mixed, _, _ = op.run(best_context, **{**inputs, "x": np.ascontiguousarray(inputs["x"][:, :, order])})
    assert_same_bits(mixed, y[:, :, order], "y")


def test_sums_at_the_top_of_the_integers_stay_exact(each_context):
    for channels in (4095, 16384, 16399, 65536):
        x = np.full((1, 2, channels), np.nextafter(np.float32(2), np.float32(0)), np.float32)
        x[0, 1, ::3] *= -1
        assert_equals_reference(each_context, {"x": x, "step": STEP, "eps": 1e-5}, f"{channels} channels")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    batch=st.integers(1, 3),
    rows=st.integers(1, 20),
    channels=st.integers(1, 200),
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 1 << 30),
)
def test_any_shape_equals_the_reference(each_context, batch, rows, channels, kind, seed):
    first = seed % channels
    outputs = ((0, channels), (first, channels - first))[: 1 + seed % 2]
    zero = ("inner", "low", "high", "signed")[seed % 4]
    case = Case("", batch, rows, channels, outputs, seed % 3 > 0, kind, 2 + seed % 7, 1 + seed % 5, zero, seed=seed)
    assert_equals_reference(each_context, case.inputs(), repr(case))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("codes", [True, False], ids=["codes", "y alone"])
def test_a_value_that_is_not_finite_is_seen_in_any_place(each_context, bad, codes):
    for channels in (1, 5, 33, 64, 131):
        clean = np.random.default_rng(35).standard_normal((2, 3, channels)).astype(np.float32)
        outputs = [random_quantizer(np.random.default_rng(36), channels)] if codes else []
        inputs = {"step": buckets(2, 1), "eps": 1e-5, "outputs": outputs}
        y, _, nan_seen = op.run(each_context, clean, **inputs)
        assert not nan_seen
        for place in range(0, 3 * channels, 5):
            x = clean.copy()
            x[1].reshape(-1)[place] = bad
            found, _, nan_seen = op.run(each_context, x, **inputs)
            assert nan_seen, (channels, place)
            assert_same_bits(found[0], y[0], "the other sample")


def test_the_norm_is_torchs_to_a_millionth_of_the_largest_value():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(4)
    x = (rng.standard_normal((1, 50, 320)) * 3 + 0.7).astype(np.float32)
    gamma, beta = rng.standard_normal((2, 320)).astype(np.float32)
    y, _, _ = layer_norm_quantize(x, STEP, 1e-5, gamma, beta)
    normed = torch.nn.functional.layer_norm(*map(torch.from_numpy, (x,)), (320,), *map(torch.from_numpy, (gamma, beta)))
    assert np.abs(y - normed.numpy()).max() <= 1e-6 * float(normed.abs().max())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eps": -1.0}, "eps is -1.0, expected a number above 0"),
        ({"gamma": np.zeros(3, np.float32)}, "gamma is float32 .3,., expected contiguous float32 .4."),
        ({"x": np.zeros((1, 2, 4), np.int32)}, "x is int32"),
        ({"outputs": [random_quantizer(np.random.default_rng(0), 4)] * 4}, "4 outputs of codes, expected 3"),
    ],
)
def test_wrong_input_is_refused(best_context, change, message):
    inputs = {"x": np.zeros((1, 2, 4), np.float32), "step": STEP, "eps": 1e-5}
    with pytest.raises(KernelInputError, match=message):
        op.run(best_context, **{**inputs, **change})


def test_support_names_what_is_too_large():
    assert op.supports(1280, 3) == ""
    assert "expected 65536 at most" in op.supports(1 << 17)
