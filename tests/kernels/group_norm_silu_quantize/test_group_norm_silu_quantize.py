from __future__ import annotations

import numpy as np
import pytest
from dq_kernels import group_norm_silu_quantize as op
from dq_kernels.cpu.library import KernelInputError
from dq_kernels.group_norm_silu_quantize.cases import KINDS, SHAPE_CASES, TEST_CASES, Case, values
from dq_kernels.group_norm_silu_quantize.reference import group_norm_silu_quantize
from dq_kernels.quantize.cases import buckets, random_quantizer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.kernels.quantize.bits import apart, assert_same_bits

STEP = np.zeros(1, np.int32)


def assert_equals_reference(context, inputs, name: str = "", **options) -> None:
    y, codes, nan_seen = op.run(context, **inputs, **options)
    expected_y, expected_codes, expected_seen = group_norm_silu_quantize(**inputs)
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


@pytest.mark.parametrize("name", ["cifar 4x4 512", "cifar 16x16 256 no silu", "cifar 32x32 384 in two"])
def test_a_models_shape_equals_the_reference(best_context, name):
    inputs = next(case for case in SHAPE_CASES if case.name == name).inputs()
    assert_equals_reference(best_context, inputs, name, with_y=False)


@pytest.mark.parametrize(("channels", "groups", "parts"), [(320, 32, (192, 128)), (128, 32, (128,)), (90, 3, (41, 49))])
def test_many_tasks_equal_the_reference(contexts, channels, groups, parts):
    inputs = Case("", 3, 130, channels, groups, parts, steps=5, seed=29).inputs()
    for context in contexts(True):
        assert_equals_reference(context, inputs, with_y=False, pitch_multiple=64)


def test_silu_equals_the_reference_from_end_to_end_of_exp(each_context):
    x = np.linspace(-1.8, 1.8, 60_000).astype(np.float32).reshape(1, 1875, 32)
    gamma = np.full(32, 60.0, np.float32)
    y, _, _ = op.run(each_context, x, STEP, 1, 1e-5, gamma=gamma)
    expected, _, _ = group_norm_silu_quantize(x, STEP, 1, 1e-5, gamma=gamma)
    assert_same_bits(y, expected, "y")
    assert y.max() > 95


@pytest.mark.parametrize("shape", [(0, 3, 6), (2, 0, 6)])
def test_nothing_gives_nothing(best_context, shape):
    y, _, nan_seen = op.run(best_context, np.zeros(shape, np.float32), np.zeros(shape[0], np.int32), 2, 1e-5)
    assert y.shape == shape
    assert not nan_seen


def test_three_outputs_may_cover_the_same_channels(each_context):
    inputs = Case("", 2, 19, 60, 6, steps=3, seed=30).inputs()
    rng = np.random.default_rng(31)
    inputs["outputs"] = [random_quantizer(rng, n, steps=3, first=first) for first, n in ((0, 60), (0, 60), (17, 30))]
    assert_equals_reference(each_context, inputs, pitch_multiple=16)
    assert_equals_reference(each_context, inputs, with_y=False)


def test_rows_of_x_and_y_may_lie_apart(each_context):
    inputs = Case("", 2, 19, 60, 6, (60,), seed=32).inputs()
    expected, codes, _ = group_norm_silu_quantize(**inputs)
    inputs["x"] = apart(inputs["x"], 77)
    y = apart(np.zeros_like(expected), 64)
    found, found_codes, nan_seen = op.run(each_context, **inputs, y=y)
    assert found is y
    assert_same_bits(y, expected, "y")
    assert_same_bits(found_codes[0], codes[0], "codes")
    assert not nan_seen
    assert np.isnan(y.base[:, :, 60:]).all()


def test_the_order_of_rows_changes_no_bit(best_context):
    inputs = Case("", 1, 1500, 12, 3, kind="mixed", seed=33).inputs()
    order = np.random.default_rng(34).permutation(1500)
    y, _, _ = op.run(best_context, **inputs)
    mixed, _, _ = op.run(best_context, **{**inputs, "x": np.ascontiguousarray(inputs["x"][:, order])})
    assert_same_bits(mixed, y[:, order], "y")


def test_sums_at_the_top_of_the_integers_stay_exact(each_context):
    for rows in (1023, 1024, 1025, 4100):
        x = np.full((1, rows, 8), np.nextafter(np.float32(2), np.float32(0)), np.float32)
        x[0, ::3, 1] *= -1
        assert_equals_reference(each_context, {"x": x, "step": STEP, "groups": 2, "eps": 1e-5, "silu": False})


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    batch=st.integers(1, 3),
    rows=st.integers(1, 40),
    groups=st.integers(1, 9),
    width=st.integers(1, 24),
    kind=st.sampled_from(KINDS),
    silu=st.booleans(),
    seed=st.integers(0, 1 << 30),
)
def test_any_shape_equals_the_reference(each_context, batch, rows, groups, width, kind, silu, seed):
    channels = groups * width
    split = seed % channels
    parts = (split, channels - split) if split else (channels,)
    zero = ("inner", "low", "high", "signed")[seed % 4]
    case = Case("", batch, rows, channels, groups, parts, silu, seed % 3 > 0, kind, 2 + seed % 7, 1 + seed % 5, zero)
    assert_equals_reference(each_context, case.inputs(), repr(case))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 1 << 30), low=st.integers(-149, 120), span=st.integers(0, 40))
def test_any_magnitudes_equal_the_reference(each_context, seed, low, span):
    rng = np.random.default_rng(seed)
    powers = np.exp2(rng.integers(low, min(low + span, 126) + 1, (1, 21, 24)).astype(np.float64))
    x = (rng.uniform(-1, 1, (1, 21, 24)) * powers).astype(np.float32)
    outputs = [random_quantizer(rng, 24)]
    inputs = {"x": x, "step": STEP, "groups": 3, "eps": 1e-12, "outputs": outputs}
    assert_equals_reference(each_context, inputs, f"2^{low} to 2^{low + span}")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("codes", [True, False], ids=["codes", "y alone"])
def test_a_value_that_is_not_finite_is_seen_in_any_place(each_context, bad, codes):
    for rows, channels, groups in ((3, 5, 5), (5, 33, 3), (2, 72, 9)):
        clean = values(np.random.default_rng(35), (2, rows, channels), "normal")
        outputs = [random_quantizer(np.random.default_rng(36), channels)] if codes else []
        inputs = {"step": buckets(2, 1), "groups": groups, "eps": 1e-5, "outputs": outputs}
        y, _, nan_seen = op.run(each_context, clean, **inputs)
        assert not nan_seen
        for place in range(0, rows * channels, 7):
            x = clean.copy()
            x[1].reshape(-1)[place] = bad
            found, _, nan_seen = op.run(each_context, x, **inputs)
            assert nan_seen, (channels, place)
            assert_same_bits(found[0], y[0], "the other sample")


def test_values_further_apart_than_float32_reaches_are_seen(each_context):
    x = np.array([3e38, -3.3e38, 3e38, 3e38], np.float32).reshape(1, 4, 1)
    assert op.run(each_context, x, STEP, 1, 1e-5)[2]
    assert group_norm_silu_quantize(x, STEP, 1, 1e-5)[2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"groups": 3}, "4 channels in 3 groups"),
        ({"groups": 0}, "4 channels in 0 groups"),
        ({"eps": 0.0}, "eps is 0.0, expected a number above 0"),
        ({"eps": float("nan")}, "eps is nan"),
        ({"gamma": np.zeros(3, np.float32)}, "gamma is float32 .3,., expected contiguous float32 .4."),
        ({"beta": np.zeros(4)}, "beta is float64"),
        ({"x": np.zeros((1, 2, 4), np.float16)}, "x is float16"),
        ({"outputs": [random_quantizer(np.random.default_rng(0), 4)] * 4}, "4 outputs of codes, expected 3"),
        ({"y": np.zeros((1, 2, 5), np.float32)}, "y is .1, 2, 5., expected a writeable array of .1, 2, 4."),
    ],
)
def test_wrong_input_is_refused(best_context, change, message):
    inputs = {"x": np.zeros((1, 2, 4), np.float32), "step": STEP, "groups": 2, "eps": 1e-5}
    with pytest.raises(KernelInputError, match=message):
        op.run(best_context, **{**inputs, **change})


def test_y_in_the_memory_of_x_is_refused(best_context):
    x = np.zeros((1, 2, 4), np.float32)
    with pytest.raises(KernelInputError, match="y lies in the memory of x"):
        op.run(best_context, x, STEP, 2, 1e-5, y=x)


def test_support_names_what_is_too_large():
    assert op.supports(4096, 320, 32) == ""
    assert "expected 4194304 at most" in op.supports(1 << 22, 64, 32)
    assert "expected 65536 at most" in op.supports(1, 1 << 17, 32)
