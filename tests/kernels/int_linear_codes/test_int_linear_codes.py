"""A layer and the codes of its result in one are the two one after the other, on every instruction set that does so."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from dq_kernels.cpu.library import Context, KernelInputError
from dq_kernels.cpu.structs import ISAS
from dq_kernels.int_linear.cases import Case as Layer
from dq_kernels.int_linear_codes import ACTIVATIONS, run, supports
from dq_kernels.int_linear_codes.cases import TEST_CASES, Case
from dq_kernels.int_linear_codes.reference import int_linear_codes
from hypothesis import given, settings
from hypothesis import strategies as st

SETS = tuple(isa for isa in ISAS if not supports(isa))
MIDDLE = Case(layer=Layer(name="middle", batch=2, rows=9, channels=70, out_channels=128, steps=2), gated=True)


def assert_equals_reference(context, case, **changed):
    inputs = case.inputs() | changed
    codes, seen = run(context, **inputs)
    wanted, wanted_seen = int_linear_codes(**inputs)
    assert seen == wanted_seen
    if not seen:
        np.testing.assert_array_equal(codes, wanted)


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("case", TEST_CASES, ids=lambda case: case.name)
def test_a_case_equals_the_reference(context_of, case, isa):
    for threads in (1, 2):
        assert_equals_reference(context_of(isa, threads), case)


LAYERS = st.builds(
    Layer,
    name=st.just(""),
    batch=st.integers(1, 5),
    rows=st.integers(1, 60),
    channels=st.integers(1, 130),
    out_channels=st.integers(1, 3).map(lambda n: 64 * n),
    activation_bits=st.integers(1, 8),
    weight_bits=st.integers(1, 8),
    steps=st.integers(1, 4),
    zero=st.sampled_from(("low", "mid", "high")),
    weight_zero=st.sampled_from((None, (-128, 127))),
    extras=st.sets(st.sampled_from(("bias", "row", "residual"))).map(tuple),
    seed=st.integers(0, 1000),
)


@pytest.mark.parametrize("isa", SETS)
@given(
    layer=LAYERS, activation=st.sampled_from(("gated", *ACTIVATIONS)), less=st.integers(0, 63), bits=st.integers(2, 8)
)
@settings(max_examples=60, deadline=None)
def test_any_shape_equals_the_reference(isa, context_of, layer, activation, less, bits):
    gated = activation == "gated"
    if not gated:
        layer = dataclasses.replace(layer, out_channels=layer.out_channels - less)
    case = Case(layer=layer, gated=gated, activation="copy" if gated else activation, first=less % 3 * gated, bits=bits)
    assert_equals_reference(context_of(isa, 1), case)


@pytest.mark.parametrize("isa", SETS)
def test_a_nan_on_the_way_is_seen(context_of, isa):
    inputs = MIDDLE.inputs()
    for place in (0, 63, 64, 127):  # values and gates, at both ends
        bias = inputs["bias"].copy()
        bias[place] = np.nan
        assert run(context_of(isa, 1), **inputs | {"bias": bias})[1]
    assert not run(context_of(isa, 1), **inputs)[1]


@pytest.mark.parametrize("isa", SETS)
def test_bytes_behind_the_channels_are_zero(context_of, isa):
    inputs = Case(layer=Layer(name="", rows=40, channels=70, out_channels=70), activation="silu").inputs()
    codes, _ = run(context_of(isa, 1), **inputs, pitch_multiple=16)
    assert codes.shape == (1, 40, 80)
    assert not codes[:, :, 70:].any()
    np.testing.assert_array_equal(codes[:, :, :70], int_linear_codes(**inputs)[0])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"activation": "softmax"}, "activation is 'softmax', expected copy"),
        ({"activation": "gelu"}, "activation is 'gelu', expected copy"),
        ({"step": np.array([0], np.int32)}, "step is int32"),
        ({"step": np.array([0, 9], np.int32)}, "expected 0"),
    ],
    ids=["unknown", "gated and activated", "steps of one sample", "a step that is not there"],
)
def test_wrong_arguments_are_refused(context_of, changed, message):
    given_inputs = MIDDLE.inputs() | changed
    if changed.get("activation") == "softmax":
        given_inputs["gated"] = False
    with pytest.raises(KernelInputError, match=message):
        run(context_of("portable", 1), **given_inputs)


def test_gates_of_other_panels_than_their_values_are_refused(context_of):
    case = Case(layer=Layer(name="", channels=8, out_channels=80), gated=True)
    with pytest.raises(KernelInputError, match="80 output channels, expected twice a multiple of 32"):
        run(context_of("portable", 1), **case.inputs())


def test_matrix_tiles_do_not_take_it():
    with Context(1, "amx_emulated") as context, pytest.raises(KernelInputError, match="matrix tiles"):
        run(context, **MIDDLE.inputs())
