from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from dq_kernels import quantize as op
from dq_kernels.cpu.library import KernelInputError
from dq_kernels.quantize.cases import SHAPE_CASES, TEST_CASES, Case, buckets, random_quantizer
from dq_kernels.quantize.reference import Quantizer, quantize, signed_codes, zero_codes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tests.kernels.quantize.bits import apart, assert_same_bits

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=True, allow_subnormal=True)


def plain(channels: int, scale: float = 1.0, *, zero: int = 0, low: int = 0, high: int = 255) -> Quantizer:
    inverse, points = np.array([1 / scale], np.float32), np.array([zero], np.int32)
    return Quantizer(np.ones(channels, np.float32), inverse, points, low, high)


@pytest.mark.parametrize("case", TEST_CASES, ids=lambda case: case.name)
def test_codes_equal_the_reference(contexts, case):
    inputs = case.inputs()
    expected, _ = quantize(**inputs)
    for context in contexts(case.batch > 1):
        codes, nan_seen = op.run(context, **inputs)
        assert_same_bits(codes, expected, case.name)
        assert not nan_seen


def test_a_models_shape_equals_the_reference(each_context):
    inputs = next(case for case in SHAPE_CASES if case.name == "cifar 8x8 256").inputs()
    assert_same_bits(op.run(each_context, **inputs)[0], quantize(**inputs)[0], "codes")


def test_many_tasks_give_the_references_codes(contexts):
    inputs = Case("", 3, 700, 70, steps=7, first=3, width=77, seed=20).inputs()
    for context in contexts(True):
        codes, nan_seen = op.run(context, **inputs, pitch_multiple=32)
        assert_same_bits(codes[:, :, :70], quantize(**inputs)[0], "codes")
        assert not codes[:, :, 70:].any()
        assert not nan_seen


def test_a_nan_is_seen_by_whichever_thread_meets_it_and_nobody_need_ask(best_context):
    inputs = Case("", 2, 2000, 64, seed=21).inputs()
    inputs["x"][1, 1999, 63] = np.nan
    assert op.run(best_context, **inputs)[1]

    class Unasked:
        def call(self, name, args):
            args.nan_seen = None
            best_context.call(name, args)

    codes, nan_seen = op.run(Unasked(), **inputs)
    assert_same_bits(codes[0], quantize(**inputs)[0][0], "codes")
    assert not nan_seen


@pytest.mark.parametrize("shape", [(0, 3, 5), (2, 0, 5)])
def test_nothing_gives_nothing(best_context, shape):
    step = np.zeros(shape[0], np.int32)
    codes, nan_seen = op.run(best_context, np.zeros(shape, np.float32), step, plain(5))
    assert codes.shape == shape
    assert not nan_seen


def test_bytes_behind_the_channels_are_zero_and_rows_may_lie_apart(each_context):
    for channels in (1, 5, 31, 64, 97):
        rng = np.random.default_rng(channels)
        x = rng.standard_normal((2, 9, channels)).astype(np.float32)
        inputs = {"step": buckets(2, 3), "quantizer": random_quantizer(rng, channels, steps=3)}
        codes, nan_seen = op.run(each_context, apart(x, channels + 3), pitch_multiple=64, **inputs)
        assert_same_bits(codes[:, :, :channels], quantize(x, **inputs)[0], f"{channels} channels")
        assert not codes[:, :, channels:].any()
        assert not nan_seen


def test_ties_go_to_the_even_code(each_context):
    values = np.arange(-140, 140, dtype=np.float32) + np.float32(0.5)
    quantizer = plain(280, zero=128)
    codes, _ = op.run(each_context, values.reshape(1, 1, -1), np.zeros(1, np.int32), quantizer)
    assert codes[0, 0].tolist() == np.clip(np.rint(values) + 128, 0, 255).astype(int).tolist()
    assert codes[0, 0, 140:144].tolist() == [128, 130, 130, 132]


def test_each_sample_takes_its_own_step(best_context):
    rng = np.random.default_rng(0)
    row = rng.standard_normal((1, 4, 33)).astype(np.float32)
    quantizer = random_quantizer(rng, 33, steps=9)
    codes, _ = op.run(best_context, np.repeat(row, 3, 0), np.array([8, 0, 4], np.int32), quantizer)
    for sample, bucket in enumerate((8, 0, 4)):
        alone, _ = quantize(row, np.array([bucket], np.int32), quantizer)
        assert_same_bits(codes[sample], alone[0], f"sample {sample}")
    assert len({codes[b].tobytes() for b in range(3)}) == 3


def test_a_static_table_serves_every_bucket(best_context):
    rng = np.random.default_rng(1)
    x, quantizer = rng.standard_normal((2, 3, 8)).astype(np.float32), random_quantizer(rng, 8)
    known, _ = op.run(best_context, x, np.zeros(2, np.int32), quantizer)
    assert_same_bits(op.run(best_context, x, np.array([3, 49], np.int32), quantizer)[0], known, "codes")


def test_infinities_are_clamped_and_no_nan(each_context):
    x = np.array([np.inf, -np.inf, 3e38, -3e38, 1e-45, -0.0, 7.0], np.float32).reshape(1, 1, -1)
    codes, nan_seen = op.run(each_context, x, np.zeros(1, np.int32), plain(7, 0.5, zero=10))
    assert codes[0, 0].tolist() == [255, 0, 255, 0, 10, 10, 24]
    assert not nan_seen


def test_a_nan_in_any_lane_is_seen(each_context):
    for channels in (1, 7, 33, 70, 128):
        for place in range(0, 3 * channels, 5):
            x = np.ones((1, 3, channels), np.float32)
            x.reshape(-1)[place] = np.nan
            _, nan_seen = op.run(each_context, x, np.zeros(1, np.int32), plain(channels))
            assert nan_seen, (channels, place)


def test_a_nan_beside_the_part_is_not_seen(best_context):
    x = np.ones((1, 3, 40), np.float32)
    x[:, :, :5] = x[:, :, 38:] = np.nan
    _, nan_seen = op.run(best_context, x, np.zeros(1, np.int32), replace(plain(33), first=5))
    assert not nan_seen


def test_zero_is_stored_as_its_zero_code(best_context):
    rng = np.random.default_rng(2)
    for zero in ("low", "high", "inner", "signed"):
        quantizer = random_quantizer(rng, 5, steps=4, zero=zero)
        step = np.arange(4, dtype=np.int32)
        codes, _ = op.run(best_context, np.zeros((4, 1, 5), np.float32), step, quantizer)
        assert (codes[:, 0] == zero_codes(step, quantizer)[:, None]).all()


def test_signed_codes_are_the_codes_less_128():
    codes = np.arange(256, dtype=np.uint8)
    assert (signed_codes(codes).astype(int) == codes.astype(int) - 128).all()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), rows=st.integers(1, 4), channels=st.integers(1, 80), seed=st.integers(0, 1 << 30))
def test_any_values_give_the_references_codes(each_context, data, rows, channels, seed):
    rng = np.random.default_rng(seed)
    x = data.draw(arrays(np.float32, (2, rows, channels), elements=FLOATS))
    zero = ("inner", "low", "high", "signed")[seed % 4]
    quantizer = random_quantizer(rng, channels, bits=2 + seed % 7, steps=3, zero=zero)
    expected, nan_seen = quantize(x, np.array([2, 1], np.int32), quantizer)
    codes, seen = op.run(each_context, x, np.array([2, 1], np.int32), quantizer)
    assert_same_bits(codes, expected, "codes")
    assert seen == nan_seen


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": np.zeros((1, 2, 4))}, "x is float64 .*expected aligned float32"),
        ({"x": np.zeros((2, 4), np.float32)}, "x is float32 .*expected aligned float32 .batch, rows, channels"),
        ({"x": np.zeros((1, 4, 2), np.float32).transpose(0, 2, 1)}, "strides .*copy it"),
        ({"step": np.zeros(2, np.int32)}, "step is int32 .2,., expected contiguous int32 .1."),
        ({"step": np.zeros(1, np.int64)}, "step is int64"),
        ({"step": np.array([3], np.int32)}, "step buckets are 3 to 3, expected 0 to 2"),
        ({"quantizer": plain(5)}, "channels 0 to 5, expected them within the 4"),
        ({"quantizer": plain(4, high=256)}, "codes span 0 to 256"),
        ({"quantizer": plain(4, zero=1 << 23)}, "zero point"),
        ({"pitch_multiple": 0}, "pitch multiple is 0"),
    ],
)
def test_wrong_input_is_refused(best_context, change, message):
    inputs = {
        "x": np.zeros((1, 2, 4), np.float32),
        "step": np.zeros(1, np.int32),
        "quantizer": random_quantizer(np.random.default_rng(0), 4, steps=3),
    }
    with pytest.raises(KernelInputError, match=message):
        op.run(best_context, **{**inputs, **change})


def test_support_names_the_range():
    assert op.supports(0, 255) == ""
    assert "expected 2 to 256" in op.supports(0, 256)
