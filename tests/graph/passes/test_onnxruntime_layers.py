"""Mode exact, layer by layer: codes and accumulators of ONNX Runtime equal the numerics bit for bit."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dq_deploy import numerics
from dq_deploy.graph.passes.onnxruntime_layers import IntegerLayers
from tests.graph.passes.single_layer import (
    WEIGHT_ZEROS,
    assert_codes_and_accumulators_equal,
    random_layer,
    run_integer,
    wide_layers,
)

TIMESTEPS = np.array([0.0, 50.0, 149.99, 150.0, 210.0], np.float32)


def check(layer, x, timestep=TIMESTEPS):
    run = run_integer(layer, x, timestep, IntegerLayers)
    assert run.entry.integer
    assert_codes_and_accumulators_equal(layer, x, timestep, run)
    return run


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_convolution_equals_numerics_for_any_geometry_and_bits(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    kernel = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    layer = random_layer(
        rng,
        weight_bits=data.draw(st.integers(2, 8)),
        activation_bits=data.draw(st.integers(2, 8)),
        symmetric=data.draw(st.booleans()),
        widths=data.draw(st.sampled_from([(3,), (5, 2)])),
        kernel=kernel,
        stride=data.draw(st.tuples(st.integers(1, 2), st.integers(1, 2))),
        padding=data.draw(st.tuples(*[st.integers(0, 2)] * 4)),
        dilation=data.draw(st.tuples(st.integers(1, 2), st.integers(1, 2))),
        extreme=data.draw(st.booleans()),
    )
    x = rng.normal(0, 6, (5, layer.in_channels, 6, 7)).astype(np.float32)
    check(layer, x)


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    bits=st.tuples(st.integers(2, 8), st.integers(2, 8)),
    size=st.sampled_from([(), (1,), (4,)]),
    widths=st.sampled_from([(7,), (33, 4)]),
)
def test_linear_equals_numerics(seed, bits, size, widths):
    rng = np.random.default_rng(seed)
    layer = random_layer(rng, kind="linear", weight_bits=bits[0], activation_bits=bits[1], widths=widths)
    check(layer, rng.normal(0, 6, (5, *size, layer.in_channels)).astype(np.float32))


@pytest.mark.parametrize("what", WEIGHT_ZEROS)
@pytest.mark.parametrize("kind", ["conv2d", "linear"])
@pytest.mark.parametrize("activations", [(8, False), (8, True), (6, False)])
def test_weights_with_any_zero_point_equal_numerics(what, kind, activations):
    for layer, x in wide_layers(what, kind, activations):
        check(layer, x)


@pytest.mark.parametrize("activation_bits", [2, 4, 7, 8])
@pytest.mark.parametrize("symmetric", [False, True])
def test_ties_their_neighbours_and_huge_values_get_the_codes_of_numerics(activation_bits, symmetric):
    rng = np.random.default_rng(0)
    layer = random_layer(rng, kind="linear", activation_bits=activation_bits, symmetric=symmetric, widths=(1,), steps=3)
    part = layer.parts[0]
    m = numerics.reciprocal(part.scale)[0] * part.pre[0]
    ties = ((np.arange(-300, 300) + 0.5) / m).astype(np.float32)
    near = np.concatenate([np.nextafter(ties, np.float32(np.inf)), np.nextafter(ties, -np.float32(np.inf))])
    huge = np.array([1e10, -1e10, 3e38, -3e38, 1e-40, -0.0, 0.0, 2**31, -(2.0**31), 2**24 + 1], np.float32)
    x = np.concatenate([ties, near, huge])[None, :, None]
    check(layer, x, np.zeros(1, np.float32))


@pytest.mark.parametrize("bits", [4, 8])
def test_extreme_weights_and_codes_do_not_saturate(bits):
    rng = np.random.default_rng(1)
    layer = random_layer(rng, weight_bits=bits, widths=(32,), outputs=32, extreme=True, padding=(1, 1, 1, 1))
    x = np.full((5, 32, 5, 5), 1e4, np.float32)
    run = check(layer, x)
    assert run.entry.form == ("u8 x s8" if bits == 4 else "u8 x u8")


def test_accumulators_beyond_float32_are_corrected_in_int32():
    rng = np.random.default_rng(2)
    layer = random_layer(rng, kind="linear", weight_bits=8, widths=(1024,), extreme=True)
    run = check(layer, np.full((5, 3, 1024), 1e4, np.float32))
    assert run.entry.form == "u8 x u8 int32"


@pytest.mark.parametrize("zero", ["one", "by step"])
@pytest.mark.parametrize("groups", [2, 4])
def test_a_convolution_of_channel_groups_is_exact_in_its_padding_too(groups, zero):
    rng = np.random.default_rng(3)
    layer = random_layer(rng, widths=(4,), outputs=4, kernel=(3, 2), padding=(1, 0, 2, 1), stride=(1, 2))
    part = layer.parts[0]
    part = dataclasses.replace(part, w_code=np.ascontiguousarray(part.w_code[:, :, : 4 // groups]))
    if zero == "one":
        part = dataclasses.replace(part, zero_point=np.full(3, 100, np.int32))
    grouped = dataclasses.replace(layer, groups=groups, parts=(part,))
    run = check(grouped, rng.normal(0, 4, (5, 4, 5, 6)).astype(np.float32))
    assert run.entry.integer
    assert run.entry.form.endswith("in groups")


def test_signed_codes_with_zero_points_that_differ_by_step_stay_float_with_a_reason():
    rng = np.random.default_rng(4)
    layer = random_layer(rng, kind="linear", symmetric=True)
    z = np.array([-5, 0, 7], np.int32)
    shifted = dataclasses.replace(layer, parts=(dataclasses.replace(layer.parts[0], zero_point=z),))
    run = run_integer(shifted, rng.normal(size=(2, 5)).astype(np.float32), np.zeros(2), IntegerLayers)
    assert "codes start at -128" in run.entry.reason
