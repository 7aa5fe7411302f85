"""The integer layer against an independent count in Python integers and int64."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from fractions import Fraction

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from dq_deploy import numerics
from dq_deploy.errors import InputError, RecordError
from dq_deploy.record import Layer, Part, edges_from_timesteps

BITS = st.integers(2, 8)
SEEDS = st.integers(0, 2**32 - 1)


@dataclass
class Case:
    layer: Layer
    x: np.ndarray
    step: np.ndarray
    rng: np.random.Generator = field(repr=False)


def make_part(rng, shape, *, weight_bits, q_min, q_max, steps, sets, extreme):
    low, high = -(2 ** (weight_bits - 1)), 2 ** (weight_bits - 1) - 1
    codes = rng.choice([low, high], (sets, *shape)) if extreme else rng.integers(low, high + 1, (sets, *shape))
    return Part(
        pre=rng.uniform(0.25, 4, shape[1]).astype(np.float32),
        scale=rng.uniform(0.01, 0.2, steps).astype(np.float32),
        zero_point=rng.integers(q_min, q_max + 1, steps).astype(np.int32),
        w_code=codes.astype(np.int8),
        w_zero_point=np.zeros((sets, shape[0]), np.int32),
        weight_scale=rng.uniform(0.001, 0.1, (sets, shape[0])).astype(np.float32),
        group_of_step=rng.integers(0, sets, steps).astype(np.int32) if sets > 1 else np.zeros(1, np.int32),
    )


@st.composite
def cases(draw, kind="conv2d"):
    rng = np.random.default_rng(draw(SEEDS))
    weight_bits, bits = draw(BITS), draw(BITS)
    q_min = draw(st.sampled_from([0, -(2 ** (bits - 1))]))
    q_max = q_min + 2**bits - 1
    steps, batch = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    sets = draw(st.integers(1, 2)) if steps > 1 else 1
    extreme = draw(st.booleans())
    groups = draw(st.integers(1, 2)) if kind == "conv2d" else 1
    parts = draw(st.integers(1, 2)) if groups == 1 else 1
    n_out = groups * draw(st.integers(1, 3))
    kernel = (draw(st.integers(1, 3)), draw(st.integers(1, 3))) if kind == "conv2d" else ()
    padding = tuple(draw(st.integers(0, 2)) for _ in range(4)) if kind == "conv2d" else (0, 0, 0, 0)
    pair = st.tuples(st.integers(1, 2), st.integers(1, 2))
    widths = [draw(st.integers(1, 4)) for _ in range(parts)]
    made = []
    for width in widths:
        part = make_part(
            rng,
            (n_out, width, *kernel),
            weight_bits=weight_bits,
            q_min=q_min,
            q_max=q_max,
            steps=steps,
            sets=sets,
            extreme=extreme,
        )
        if groups > 1:
            object.__setattr__(part, "pre", rng.uniform(0.25, 4, width * groups).astype(np.float32))
        made.append(part)
    layer = Layer(
        name="layer",
        kind=kind,
        stride=draw(pair) if kind == "conv2d" else (1, 1),
        padding=padding,
        dilation=draw(pair) if kind == "conv2d" else (1, 1),
        groups=groups,
        weight_bits=weight_bits,
        activation_bits=bits,
        q_min=q_min,
        q_max=q_max,
        parts=tuple(made),
        bias=rng.standard_normal(n_out).astype(np.float32) if draw(st.booleans()) else None,
    )
    channels = sum(widths) * groups
    if kind == "conv2d":
        shape = (batch, channels, draw(st.integers(5, 7)), draw(st.integers(5, 7)))
    else:
        shape = (batch, *draw(st.sampled_from([(), (3,), (2, 3)])), channels)
    spread = draw(st.sampled_from([0.5, 5.0, 1e30]))
    x = (rng.standard_normal(shape) * spread).astype(np.float32)
    return Case(layer=layer, x=x, step=rng.integers(0, steps, batch), rng=rng)


def code_by_fractions(x, m, low, high):
    """Round half to even of the float32 product, in exact fractions, then clamp."""
    product = np.float32(x) * np.float32(m)
    if np.isinf(product):
        return high if product > 0 else low
    return min(max(round(Fraction(float(product))), low), high)


def codes_by_loop(layer, part, x, step, axis):
    codes = np.empty(x.shape, np.int64)
    for index in np.ndindex(*x.shape):
        t = int(step[index[0]]) if len(part.scale) > 1 else 0
        m = (np.float32(1) / part.scale[t]) * part.pre[index[axis]]
        z = int(part.zero_point[t])
        with np.errstate(over="ignore"):
            codes[index] = code_by_fractions(x[index], m, layer.q_min - z, layer.q_max - z)
    return codes


def conv_by_loop(codes, w, layer):
    """Direct convolution, one output element at a time, in int64."""
    batch, _, height, width = codes.shape
    n_out, per_group, kh, kw = w.shape
    top, left, bottom, right = layer.padding
    (sv, sh), (dv, dh) = layer.stride, layer.dilation
    rows = (height + top + bottom - dv * (kh - 1) - 1) // sv + 1
    columns = (width + left + right - dh * (kw - 1) - 1) // sh + 1
    out = np.zeros((batch, n_out, rows, columns), np.int64)
    for n, i, j, u, v in np.ndindex(n_out, rows, columns, kh, kw):
        y, x = i * sv - top + u * dv, j * sh - left + v * dh
        if 0 <= y < height and 0 <= x < width:
            first = (n // (n_out // layer.groups)) * per_group
            out[:, n, i, j] += codes[:, first : first + per_group, y, x] @ w[n, :, u, v].astype(np.int64)
    return out


def check_layer(case):
    layer, x, step = case.layer, case.x, case.step
    result = numerics.integer_layer(layer, x, step)
    axis = x.ndim - 1 if layer.kind == "linear" else 1
    start, total = 0, None
    for part, codes, accumulator in zip(layer.parts, result.codes, result.accumulators, strict=True):
        piece = np.take(x, range(start, start + len(part.pre)), axis=axis)
        start += len(part.pre)
        expected = codes_by_loop(layer, part, piece, step, axis)
        np.testing.assert_array_equal(codes, expected)
        assert codes.dtype == accumulator.dtype == np.int32
        terms = []
        for b, t in enumerate(step):
            group = int(part.group_of_step[t if len(part.group_of_step) > 1 else 0])
            w = part.w_code[group].astype(np.int64) - part.w_zero_point[group].reshape(
                -1, *[1] * (part.w_code.ndim - 2)
            )
            c = expected[b : b + 1]
            a = c @ w.T if layer.kind == "linear" else conv_by_loop(c, w, layer)
            np.testing.assert_array_equal(accumulator[b : b + 1], a)
            factor = part.scale[t if len(part.scale) > 1 else 0] * part.weight_scale[group]
            shape = (1, -1, 1, 1) if layer.kind == "conv2d" else (-1,)
            terms.append(a.astype(np.float32) * factor.reshape(shape))
        y = np.concatenate(terms)
        total = y if total is None else total + y
    if layer.bias is not None:
        total = total + layer.bias.reshape((1, -1, 1, 1) if layer.kind == "conv2d" else (-1,))
    assert result.output.dtype == np.float32
    np.testing.assert_array_equal(result.output, total)


@settings(max_examples=60, deadline=None)
@given(cases(kind="conv2d"))
def test_convolution_equals_a_direct_count(case):
    check_layer(case)


@settings(max_examples=60, deadline=None)
@given(cases(kind="linear"))
def test_linear_equals_a_direct_count(case):
    check_layer(case)


@settings(max_examples=40, deadline=None)
@given(cases(kind="conv2d"))
def test_a_batch_equals_its_samples_one_by_one(case):
    together = numerics.integer_layer(case.layer, case.x, case.step)
    for b in range(len(case.x)):
        alone = numerics.integer_layer(case.layer, case.x[b : b + 1], case.step[b : b + 1])
        np.testing.assert_array_equal(alone.output[0], together.output[b])


def quantize(x, *, scale=1.0, z=0, q_min=0, q_max=255, pre=1.0):
    x = np.asarray(x, np.float32).reshape(1, 1, -1)
    codes = numerics.quantize_centred(
        x,
        pre=np.array([pre], np.float32),
        scale=np.array([scale], np.float32),
        zero_point=np.array([z], np.int32),
        q_min=q_min,
        q_max=q_max,
        step=np.zeros(1, np.int64),
    )
    return codes.reshape(-1)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("z_at", ["low", "middle", "high"])
def test_ties_go_to_even_and_their_neighbours_to_the_nearest(bits, z_at):
    q_max = 2**bits - 1
    z = {"low": 0, "middle": q_max // 2, "high": q_max}[z_at]
    for k in range(-q_max - 2, q_max + 2):
        tie = np.float32(k + 0.5)
        below, above = np.nextafter(tie, np.float32(-np.inf)), np.nextafter(tie, np.float32(np.inf))
        even = k if k % 2 == 0 else k + 1
        expected = np.clip([k, even, k + 1], -z, q_max - z)
        np.testing.assert_array_equal(quantize([below, tie, above], z=z, q_max=q_max), expected)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("signed", [False, True])
def test_range_ends_clamp_and_huge_values_saturate(bits, signed):
    q_min = -(2 ** (bits - 1)) if signed else 0
    q_max = q_min + 2**bits - 1
    huge = np.finfo(np.float32).max
    for z in (q_min, q_max):
        low, high = q_min - z, q_max - z
        x = [-np.inf, -huge, low - 1, low, high, high + 1, huge, np.inf, 2.0**31, -(2.0**31)]
        expected = [low, low, low, low, high, high, high, high, high, low]
        np.testing.assert_array_equal(quantize(x, z=z, q_min=q_min, q_max=q_max), expected)


def test_a_zero_point_outside_the_code_range_clamps_to_its_centred_range():
    np.testing.assert_array_equal(quantize([-10, 0, 300], z=-1), [1, 1, 256])


def test_tiny_values_and_minus_zero_have_code_zero():
    np.testing.assert_array_equal(quantize([np.float32(1e-45), -1e-45, -0.0, 0.5, -0.5], z=8), [0] * 5)


def test_rounding_uses_the_reciprocal_not_the_division():
    scale = np.float32(0.3)
    ties = ((np.arange(250) + 0.5) * 0.3).astype(np.float32)
    x = np.concatenate([ties, np.nextafter(ties, np.float32(0)), np.nextafter(ties, np.float32(1e9))])
    product = x * (np.float32(1) / scale)
    assert (np.rint(x / scale) != np.rint(product)).any()
    expected = np.clip(np.rint(product), 0, 255)
    np.testing.assert_array_equal(quantize(x, scale=scale), expected)


@pytest.mark.parametrize("weight_bits", range(2, 9))
@pytest.mark.parametrize("bits", range(2, 9))
def test_extreme_codes_do_not_overflow_or_lose_bits(weight_bits, bits):
    k, q_max = 600, 2**bits - 1
    low = -(2 ** (weight_bits - 1))
    codes = np.full((2, k), q_max, np.int32)
    codes[1, ::2] = 0
    w = np.full((3, k), low, np.int16)
    w[1, ::3] = -low - 1
    expected = np.array([[sum(int(c) * int(v) for c, v in zip(row, col, strict=True)) for col in w] for row in codes])
    np.testing.assert_array_equal(numerics.accumulate_linear(codes, w), expected)


def test_accumulators_above_2_to_24_are_exact_integers():
    codes = np.full((1, 9001), 255, np.int32)
    codes[0, 0] = 254
    w = np.full((1, 9001), -127, np.int16)
    assert numerics.accumulate_linear(codes, w)[0, 0] == -(255 * 9000 + 254) * 127


def test_an_accumulator_that_could_leave_int32_is_refused():
    codes, w = np.full((1, 70000), 255, np.int32), np.full((1, 70000), 127, np.int16)
    with pytest.raises(RecordError, match="reaches 2\\^31"):
        numerics.accumulate_linear(codes, w)


def test_nan_wrong_type_and_wrong_channels_are_named():
    rng = np.random.default_rng(0)
    part = make_part(rng, (2, 3), weight_bits=4, q_min=0, q_max=255, steps=2, sets=1, extreme=False)
    layer = Layer(name="l", kind="linear", weight_bits=4, activation_bits=8, q_min=0, q_max=255, parts=(part,))
    step = np.zeros(1, np.int64)
    x = np.zeros((1, 3), np.float32)
    with pytest.raises(InputError, match="NaN"):
        numerics.integer_layer(layer, np.full((1, 3), np.nan, np.float32), step)
    with pytest.raises(InputError, match="float64"):
        numerics.integer_layer(layer, x.astype(np.float64), step)
    with pytest.raises(InputError, match="expected 3"):
        numerics.integer_layer(layer, np.zeros((1, 4), np.float32), step)
    with pytest.raises(InputError, match="3 entries"):
        numerics.integer_layer(layer, np.zeros((3, 3), np.float32), np.zeros(2, np.int64))
    for bucket in (-1, 2):
        with pytest.raises(InputError, match=r"expected 0\.\.1"):
            numerics.integer_layer(layer, x, np.array([bucket]))


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(0, 999), min_size=1, max_size=8, unique=True), SEEDS)
def test_step_bucket_is_the_nearest_calibrated_timestep(timesteps, seed):
    calibrated = np.array(sorted(timesteps), np.float32)
    edges = edges_from_timesteps(calibrated)
    asked = np.concatenate([calibrated, edges, np.random.default_rng(seed).uniform(-10, 1100, 20).astype(np.float32)])
    bucket = numerics.step_bucket(asked, edges)
    np.testing.assert_array_equal(bucket[: len(calibrated)], np.arange(len(calibrated)))
    np.testing.assert_array_equal(bucket[len(calibrated) :][: len(edges)], np.arange(1, len(calibrated)))
    distance = np.abs(asked[:, None] - calibrated[None, :])
    np.testing.assert_array_equal(distance[np.arange(len(asked)), bucket], distance.min(axis=1))


def test_step_bucket_takes_whole_numbers_and_refuses_nan():
    edges = np.array([10, 20], np.float32)
    np.testing.assert_array_equal(
        numerics.step_bucket(np.array([0, 10, 19, 20, 999], np.int64), edges), [0, 1, 1, 2, 2]
    )
    np.testing.assert_array_equal(numerics.step_bucket(np.array([5.0]), np.zeros(0, np.float32)), [0])
    with pytest.raises(InputError, match="NaN"):
        numerics.step_bucket(np.array([np.nan]), edges)


@settings(max_examples=60, deadline=None)
@given(cases(kind="conv2d"), st.integers(-128, 128))
def test_shifted_codes_give_the_canonical_accumulator_back(case, offset):
    layer = case.layer
    part, width = layer.parts[0], len(layer.parts[0].pre)
    c = codes_by_loop(layer, part, case.x[:, :width], case.step, 1).astype(np.int32)
    w = part.q_weight(0)
    # an engine that holds c + offset pads with the code `offset`
    top, left, bottom, right = layer.padding
    held = np.pad(c + offset, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=offset)
    inside = replace(layer.window, padding=numerics.NO_PADDING)
    engine = numerics.accumulate_conv2d(held.astype(np.int32), w, inside, groups=layer.groups)
    canonical = numerics.accumulate_conv2d(c, w, layer.window, groups=layer.groups)
    np.testing.assert_array_equal(numerics.shifted_accumulator(canonical, w, offset, 1), engine)


def test_a_shift_that_leaves_int32_is_refused():
    with pytest.raises(RecordError, match="overflow"):
        numerics.shifted_accumulator(np.full((1, 1), 2**31 - 10, np.int32), np.full((1, 8), 127, np.int16), 128, 1)


def test_an_input_smaller_than_the_kernel_is_named():
    window = numerics.Window(kernel=(3, 3))
    with pytest.raises(InputError, match="smaller than the kernel"):
        numerics.accumulate_conv2d(np.zeros((1, 1, 2, 2), np.int32), np.zeros((1, 1, 3, 3), np.int16), window)
    with pytest.raises(InputError, match="channels"):
        numerics.accumulate_conv2d(np.zeros((1, 3, 5, 5), np.int32), np.zeros((1, 1, 3, 3), np.int16), window)
    with pytest.raises(InputError, match="kernel"):
        numerics.accumulate_conv2d(np.zeros((1, 1, 5, 5), np.int32), np.zeros((1, 1, 2, 2), np.int16), window)


def folded_layer(*, steps: int) -> Layer:
    rng = np.random.default_rng(3)
    part = make_part(rng, (3, 4), weight_bits=8, q_min=0, q_max=255, steps=steps, sets=1, extreme=False)
    return Layer(name="layer", kind="linear", weight_bits=8, activation_bits=8, q_min=0, q_max=255, parts=(part,))


def test_entries_folded_into_the_batch_take_their_samples_step():
    layer, rng = folded_layer(steps=4), np.random.default_rng(4)
    x, step = rng.standard_normal((2, 3, 4)).astype(np.float32), np.array([3, 1])
    apart, folded = (numerics.integer_layer(layer, given, step).output for given in (x, x.reshape(6, 4)))
    np.testing.assert_array_equal(folded, apart.reshape(6, 3))


def test_an_axis_that_holds_no_samples_needs_a_layer_without_step_tables():
    x, step = np.zeros((5, 4), np.float32), np.array([0, 1])
    with pytest.raises(InputError, match="5 entries, expected a multiple of the 2 samples"):
        numerics.integer_layer(folded_layer(steps=4), x, step)
    assert numerics.integer_layer(folded_layer(steps=1), x, step).output.shape == (5, 3)
