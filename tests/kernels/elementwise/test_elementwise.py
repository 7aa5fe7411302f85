"""Elementwise kinds against their float32 reference, bit for bit, over any strides."""

from __future__ import annotations

import numpy as np
import pytest
from dq_kernels.cpu.library import Context, KernelInputError, known_isas
from dq_kernels.cpu.structs import ELEMENTWISE_KINDS
from dq_kernels.elementwise import run
from dq_kernels.elementwise.cases import TEST_CASES
from dq_kernels.elementwise.reference import TWO_OPERANDS, elementwise, exp32, gelu, tanh32
from hypothesis import given, settings
from hypothesis import strategies as st


def assert_same_bits(got, wanted):
    wanted = np.asarray(wanted, np.float32)
    assert got.shape == wanted.shape
    assert got.tobytes() == wanted.tobytes(), f"first at {np.argwhere(got != wanted)[:1]}"


@pytest.mark.parametrize("case", TEST_CASES, ids=lambda c: c.name)
def test_a_case_gives_the_bits_of_the_reference(contexts, case):
    inputs = case.inputs()
    wanted = elementwise(**inputs)
    for context in contexts(np.size(wanted) > 16384):
        assert_same_bits(run(context, **inputs), wanted)


@st.composite
def strided(draw):
    """Two operands of any layout: axes in any order, some repeated, steps of 1 to 3 and backwards."""
    axes = draw(st.integers(1, 6))
    shape = draw(st.tuples(*[st.integers(1, 5)] * axes))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))

    def operand(repeats: bool):
        steps = draw(st.tuples(*[st.sampled_from([1, 1, 2, 3, -1])] * axes))
        order = draw(st.permutations(range(axes)))
        held = rng.standard_normal([shape[i] * abs(steps[i]) for i in order]).astype(np.float32)
        array = held.transpose(np.argsort(order))[tuple(slice(None, None, s) for s in steps)]
        alone = draw(st.tuples(*[st.booleans()] * axes)) if repeats else (False,) * axes
        return array[tuple(slice(0, 1) if one else slice(0, n) for n, one in zip(shape, alone, strict=True))]

    return operand(repeats=True), operand(repeats=True), operand(repeats=False)


@given(strided(), st.sampled_from(ELEMENTWISE_KINDS), st.floats(-4, 4, width=32))
@settings(max_examples=150, deadline=None)
def test_any_strides_give_the_bits_of_the_reference(operands, kind, scalar):
    a, b, out = operands
    inputs = {"kind": kind, "a": a, "b": b if kind in TWO_OPERANDS else None, "scalar": scalar}
    wanted = elementwise(**inputs)
    if wanted.shape == out.shape:
        inputs["out"] = out
    for isa in (known_isas()[0], known_isas()[-1]):
        with Context(1, isa) as context:
            assert_same_bits(np.ascontiguousarray(run(context, **inputs)).reshape(wanted.shape), wanted)


def test_a_concatenation_is_two_copies_into_slices(best_context):
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((1, 32, 32, n)).astype(np.float32) for n in (256, 128))
    y = np.full((1, 32, 32, 384), np.nan, np.float32)
    run(best_context, "copy", a, out=y[..., :256])
    run(best_context, "copy", b, out=y[..., 256:])
    assert_same_bits(y, np.concatenate([a, b], axis=-1))


def test_nearest_upsampling_is_one_copy_that_repeats(best_context):
    x = np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5)
    y = np.empty((2, 6, 8, 5), np.float32)
    wide = np.broadcast_to(x[:, :, None, :, None], (2, 3, 2, 4, 2, 5))
    run(best_context, "copy", wide, out=y.reshape(2, 3, 2, 4, 2, 5))
    assert_same_bits(y, x.repeat(2, axis=1).repeat(2, axis=2))


def test_an_operand_can_be_written_over(best_context):
    rng = np.random.default_rng(1)
    a, b = (rng.standard_normal((7, 4099)).astype(np.float32) for _ in range(2))
    wanted = a + b
    run(best_context, "add", a, b, out=a)
    assert_same_bits(a, wanted)


def test_a_nan_and_infinities_stay_where_they_are(each_context):
    a = np.float32([np.nan, np.inf, -np.inf, 0.0, -0.0] * 9)
    for kind in ("silu", "gelu", "gelu_tanh", "relu", "sigmoid", "tanh", "copy"):
        y = run(each_context, kind, a)
        assert np.isnan(y[::5]).all(), kind
        assert (np.isfinite(y[3::5]) & np.isfinite(y[4::5])).all(), kind
    assert np.signbit(run(each_context, "relu", a)[4::5]).all()


def test_the_float32_functions_are_close_to_the_real_ones():
    from math import erfc, sqrt

    x = np.linspace(-12, 12, 4001, dtype=np.float32)
    wide = x.astype(np.float64)
    assert np.abs(exp32(x) / np.exp(wide) - 1).max() < 3e-7
    assert np.abs(tanh32(x) - np.tanh(wide)).max() < 3e-7
    assert np.abs(gelu(x) - [v * 0.5 * erfc(-v / sqrt(2)) for v in wide]).max() < 3e-6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "cube", "a": np.zeros(3, np.float32)}, "kind is 'cube', expected one of copy"),
        ({"kind": "add", "a": np.zeros(3, np.float32)}, "add takes two operands"),
        ({"kind": "silu", "a": np.zeros(3)}, "a is float64"),
        ({"kind": "add", "a": np.zeros(3, np.float32), "b": np.zeros(2, np.float32)}, "expected shapes that broadcast"),
        ({"kind": "copy", "a": np.zeros((1,) * 7, np.float32)}, "has 7 axes, expected at most 6"),
        ({"kind": "copy", "a": np.zeros(3, np.float32), "out": np.zeros(4, np.float32)}, r"out is \(4,\)"),
    ],
)
def test_bad_input_is_one_clear_line(best_context, arguments, message):
    with pytest.raises(KernelInputError, match=message) as caught:
        run(best_context, **arguments)
    assert "\n" not in str(caught.value)


def test_an_output_that_overlaps_an_operand_elsewhere_is_refused(best_context):
    memory = np.zeros(10, np.float32)
    with pytest.raises(KernelInputError, match="overlaps"):
        run(best_context, "copy", memory[:9], out=memory[1:])
