"""TensorRT's form, layer by layer: on ONNX Runtime codes and accumulators equal the numerics bit for bit."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dq_deploy import numerics
from dq_deploy.graph.pass_contract import run_passes
from dq_deploy.graph.passes.tensorrt_layers import TensorRtLayers, product_scale
from dq_deploy.graph.writing.signed_codes import signed_codes
from tests.graph.passes.single_layer import WEIGHT_ZEROS, float_model, random_layer, record_of, wide_layers
from tests.graph.passes.tensorrt_layer import check, run_tensorrt, tensorrt_model

TIMESTEPS = np.array([0.0, 50.0, 149.99, 150.0, 210.0], np.float32)
WIDTHS = [(8, 8), (4, 8), (6, 6), (4, 4)]


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_convolution_equals_numerics_for_any_geometry_and_bits(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    layer = random_layer(
        rng,
        weight_bits=data.draw(st.integers(2, 8)),
        activation_bits=data.draw(st.integers(2, 8)),
        symmetric=data.draw(st.booleans()),
        widths=data.draw(st.sampled_from([(3,), (5, 2)])),
        kernel=data.draw(st.tuples(st.integers(1, 3), st.integers(1, 3))),
        stride=data.draw(st.tuples(st.integers(1, 2), st.integers(1, 2))),
        padding=data.draw(st.tuples(*[st.integers(0, 2)] * 4)),
        dilation=data.draw(st.tuples(st.integers(1, 2), st.integers(1, 2))),
        steps=data.draw(st.sampled_from([1, 3])),
        extreme=data.draw(st.booleans()),
    )
    x = rng.normal(0, 6, (5, layer.in_channels, 6, 7)).astype(np.float32)
    check(layer, x, TIMESTEPS, conv=data.draw(st.sampled_from(["gemm", "native"])))


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    bits=st.tuples(st.integers(2, 8), st.integers(2, 8)),
    symmetric=st.booleans(),
    size=st.sampled_from([(), (1,), (4,)]),
    widths=st.sampled_from([(7,), (33, 4)]),
)
def test_linear_equals_numerics(seed, bits, symmetric, size, widths):
    rng = np.random.default_rng(seed)
    layer = random_layer(
        rng, kind="linear", weight_bits=bits[0], activation_bits=bits[1], symmetric=symmetric, widths=widths
    )
    check(layer, rng.normal(0, 6, (5, *size, layer.in_channels)).astype(np.float32), TIMESTEPS)


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize(("conv", "kind"), [("gemm", "conv2d"), ("native", "conv2d"), ("gemm", "linear")])
def test_each_width_of_the_record_is_exact_in_each_form(bits, conv, kind):
    rng = np.random.default_rng(0)
    geometry = {"kernel": (3, 3), "padding": (1, 1, 1, 1), "stride": (2, 2)} if kind == "conv2d" else {}
    layer = random_layer(rng, kind=kind, weight_bits=bits[0], activation_bits=bits[1], widths=(9, 4), **geometry)
    x = rng.normal(0, 6, (5, 13, 7, 6) if kind == "conv2d" else (5, 6, 13)).astype(np.float32)
    run = check(layer, x, TIMESTEPS, conv=conv)
    weight = "int4" if bits[0] == 4 and conv == "gemm" else "int8"
    assert {part.weight_type for part in run.entry.parts} == {weight}
    assert f"int8 x {weight}" in run.entry.form
    assert all((part.offset == 0) == (bits[1] < 8) for part in run.entry.parts)


@pytest.mark.parametrize("what", WEIGHT_ZEROS)
@pytest.mark.parametrize(("conv", "kind"), [("gemm", "conv2d"), ("native", "conv2d"), ("gemm", "linear")])
@pytest.mark.parametrize("activations", [(8, False), (6, False)])
def test_weights_with_any_zero_point_equal_numerics(what, conv, kind, activations):
    for layer, x in wide_layers(what, kind, activations):
        assert check(layer, x, TIMESTEPS, conv=conv).entry.integer


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
    check(layer, np.concatenate([ties, near, huge])[None, :, None], np.zeros(1, np.float32))


@pytest.mark.parametrize("conv", ["gemm", "native"])
def test_accumulators_beyond_float32_are_exact_in_the_twin(conv):
    rng = np.random.default_rng(2)
    layer = random_layer(rng, weight_bits=8, widths=(1200,), outputs=2, padding=(1, 1, 1, 1))
    part = dataclasses.replace(layer.parts[0], w_code=np.full((1, 2, 1200, 3, 3), -127, np.int8))
    layer = dataclasses.replace(layer, parts=(part,))
    run = check(
        layer, np.full((3, 1200, 3, 3), 1e4, np.float32), np.array([0.0, 100.0, 200.0]), conv=conv, output=False
    )
    assert np.abs(run.values[run.entry.parts[0].accumulator]).max() > 2**24


def test_an_accumulator_above_16_times_float16_stays_finite_and_within_one_float16_step():
    rng = np.random.default_rng(5)
    layer = random_layer(rng, weight_bits=8, widths=(1280,), outputs=4, kernel=(1, 1), extreme=True)
    part = dataclasses.replace(
        layer.parts[0], scale=np.full(3, 1e-3, np.float32), weight_scale=np.full((1, 4), 2e-2, np.float32)
    )
    layer = dataclasses.replace(layer, parts=(part,))
    sign = np.sign(part.q_weight(0)[0, :, 0, 0]).astype(np.float32)
    x = np.repeat(sign[None, :, None, None] * 1e4, 3, axis=0)
    timestep = np.array([0.0, 100.0, 200.0], np.float32)
    expected = numerics.integer_layer(layer, x, np.arange(3))
    assert np.abs(expected.accumulators[0]).max() > 16 * 65504
    y = run_tensorrt(layer, x, timestep, float_type="float16").values["y"]
    np.testing.assert_array_equal(y, y.astype(np.float16).astype(np.float32))
    step = np.spacing(np.abs(expected.output).astype(np.float16)).astype(np.float32)
    assert (np.abs(y - expected.output) <= step).all()


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 7, 8])
def test_held_codes_fit_int8_at_every_step(bits, symmetric):
    layer = random_layer(np.random.default_rng(bits), activation_bits=bits, symmetric=symmetric, steps=40)
    part = layer.parts[0]
    held = signed_codes(layer, part)
    added = held.added(part)
    assert (layer.q_min - part.zero_point + added).min() >= -128
    assert (layer.q_max - part.zero_point + added).max() <= 127
    assert (held.offset == 0) == (bits < 8 or symmetric)


def test_codes_that_fit_centred_pad_with_zero_and_shifted_ones_pad_the_float_tensor():
    rng = np.random.default_rng(6)
    for bits, padded in ((6, "Pad(int8)"), (8, "Pad(float)")):
        layer = random_layer(rng, activation_bits=bits, padding=(1, 1, 1, 1))
        proto, entry = tensorrt_model(layer, (5, 5))
        pads = [node for node in proto.graph.node if node.op_type == "Pad"]
        assert [n.input[0] == "x" for n in pads] == [padded == "Pad(float)"]
        assert any(entry.parts[0].codes_padding) == (padded == "Pad(float)")


def test_the_entry_tells_the_product_of_one_sample_and_the_bytes_of_its_patches():
    layer = random_layer(np.random.default_rng(7), widths=(5,), outputs=6, stride=(2, 1), padding=(1, 1, 1, 1))
    _, entry = tensorrt_model(layer, (6, 7))
    assert entry.parts[0].product.to_json() == {"kind": "gemm", "m": 3 * 7, "n": 6, "k": 45}
    assert entry.im2col_bytes == 3 * 7 * 45
    _, entry = tensorrt_model(layer, (6, 7), conv="native")
    assert entry.im2col_bytes == 0
    product = entry.parts[0].product
    assert (product.kind, product.n, product.c, product.kernel) == ("conv", 6, 5, (3, 3))
    assert product.spatial_out == (3, 7)
    pixel = random_layer(np.random.default_rng(8), widths=(5,), kernel=(1, 1))
    for conv in ("gemm", "native"):
        _, entry = tensorrt_model(pixel, (6, 7), conv=conv)
        assert entry.im2col_bytes == 0
        assert entry.parts[0].product.to_json() == {"kind": "gemm", "m": 42, "n": 6, "k": 5}


STATIC = {"widths": (4,), "steps": 1, "padding": (1, 1, 1, 1)}


def nodes_behind(proto, name):
    """Operators that a tensor goes through to the output, without what puts it back into the float graph's layout."""
    found = []
    while (reader := next((n for n in proto.graph.node if name in n.input), None)) is not None:
        found.append(reader.op_type)
        name = reader.output[0]
    return [kind for kind in found if kind not in ("Transpose", "Reshape")]


@pytest.mark.parametrize(("bits", "symmetric"), [(8, False), (8, True), (7, False)])
def test_a_static_convolution_has_its_whole_epilogue_in_constants(bits, symmetric):
    rng = np.random.default_rng(11)
    layer = random_layer(rng, activation_bits=bits, symmetric=symmetric, **STATIC)
    proto, entry = tensorrt_model(layer, (6, 5), conv="native", steps=1)
    part, constants = layer.parts[0], {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    product = next(node for node in proto.graph.node if node.op_type == "Conv")
    assert nodes_behind(proto, product.output[0]) == []
    assert (entry.parts[0].scale_at, entry.bias_at) == ("weights", "last_product")
    weight = next(node for node in proto.graph.node if node.output[0] == product.input[1])
    np.testing.assert_array_equal(constants[weight.input[1]], part.weight_scale[0] * part.scale[0])
    assert (constants[product.input[2]] == layer.bias).all() == (entry.parts[0].offset == 0)
    for conv in ("native", "gemm"):
        check(layer, rng.normal(0, 6, (3, 4, 6, 5)).astype(np.float32), TIMESTEPS[:3], conv=conv, steps=1)


def test_what_the_manifest_declares_of_a_static_layer_is_the_numerics_own_rounding():
    rng = np.random.default_rng(12)
    layer = random_layer(rng, activation_bits=7, **STATIC)
    expected = numerics.integer_layer(layer, rng.normal(0, 6, (2, 4, 6, 5)).astype(np.float32), np.zeros(2, np.int64))
    scale = product_scale(layer.parts[0])[:, None, None]
    y = expected.accumulators[0].astype(np.float32) * scale + layer.bias[:, None, None]
    np.testing.assert_array_equal(y, expected.output)


@pytest.mark.parametrize(("conv", "kind"), [("gemm", "conv2d"), ("native", "conv2d"), ("gemm", "linear")])
def test_a_static_layer_of_several_parts_is_exact_and_multiplies_by_nothing_behind(conv, kind):
    rng = np.random.default_rng(13)
    geometry = {"padding": (1, 0, 1, 2)} if kind == "conv2d" else {}
    layer = random_layer(rng, kind=kind, widths=(5, 3), steps=1, **geometry)
    x = rng.normal(0, 6, (3, 8, 6, 5) if kind == "conv2d" else (3, 6, 8)).astype(np.float32)
    run = check(layer, x, TIMESTEPS[:3], conv=conv, steps=1)
    proto, entry = tensorrt_model(layer, x.shape[2:] if kind == "conv2d" else (6,), conv=conv, steps=1)
    behind = nodes_behind(proto, run.entry.parts[-1].node)
    assert behind == (["Add"] if conv == "native" else ["Add", "Add"])
    assert entry.bias_at == ("last_product" if conv == "native" else "behind")


def test_one_scale_at_all_steps_is_static_whatever_the_number_of_steps():
    layer = random_layer(np.random.default_rng(14), widths=(4,), activation_bits=7)
    part = dataclasses.replace(layer.parts[0], scale=np.full(3, 0.03, np.float32))
    layer = dataclasses.replace(layer, parts=(part,))
    run = check(layer, np.random.default_rng(0).normal(0, 6, (5, 4, 5, 5)).astype(np.float32), TIMESTEPS, conv="native")
    assert (run.entry.parts[0].scale_at, run.entry.bias_at) == ("weights", "last_product")


def test_scales_by_step_stay_behind_the_product():
    proto, entry = tensorrt_model(random_layer(np.random.default_rng(15), activation_bits=7), (5, 5), conv="native")
    assert nodes_behind(proto, entry.parts[0].node) == ["Mul", "Add"]
    assert (entry.parts[0].scale_at, entry.bias_at) == ("behind", "behind")


def test_only_codes_with_another_zero_point_at_each_step_are_padded_as_floats():
    """Eight bits, asymmetric: static ones are padded as codes, whether their zero point is at an end or not."""
    layers = {}
    for steps, z in ((1, [0]), (1, [255]), (1, [100]), (3, [0, 0, 0]), (3, [0, 128, 255])):
        layer = random_layer(np.random.default_rng(6), **{**STATIC, "steps": steps})
        part = dataclasses.replace(layer.parts[0], zero_point=np.array(z, np.int32))
        layers[steps, *z] = layer = dataclasses.replace(layer, parts=(part,))
        x = np.random.default_rng(0).normal(0, 6, (3, 4, 6, 5)).astype(np.float32)
        check(layer, x, TIMESTEPS[[0, 1, 4]], conv="native", steps=steps)
        proto, entry = tensorrt_model(layer, (6, 5), conv="native", steps=steps)
        pads = [node for node in proto.graph.node if node.op_type == "Pad"]
        assert [node.input[0] == "x" for node in pads] == [len(set(z)) > 1]
        assert entry.parts[0].codes_padding == (1, 1, 1, 1)
    for key, layer in layers.items():
        result = run_passes(float_model(layer, (6, 5)), [TensorRtLayers(record_of(layer, key[0]))])
        assert [("pad their input in float32" in note) for note in result.notes] == [True] * (len(set(key[1:])) > 1)


def declined(layer):
    layers = TensorRtLayers(record_of(layer))
    run_passes(float_model(layer, (3, 3)), [layers])
    assert not layers.entries[0].integer
    return layers.entries[0].reason


def test_what_the_form_cannot_express_stays_float_with_a_reason():
    rng = np.random.default_rng(3)
    layer = random_layer(rng, widths=(4,), outputs=4, kernel=(1, 1))
    part = layer.parts[0]
    half = dataclasses.replace(part, w_code=np.ascontiguousarray(part.w_code[:, :, :2]))
    assert "2 channel groups" in declined(dataclasses.replace(layer, groups=2, parts=(half,)))
    two = dataclasses.replace(
        part,
        w_code=np.repeat(part.w_code, 2, axis=0),
        w_zero_point=np.repeat(part.w_zero_point, 2, axis=0),
        weight_scale=np.repeat(part.weight_scale, 2, axis=0),
        group_of_step=np.array([0, 1, 1], np.int32),
    )
    assert "differ by step" in declined(dataclasses.replace(layer, parts=(two,)))
    far = dataclasses.replace(part, zero_point=np.array([0, 300, 20], np.int32))
    assert "300 lies outside" in declined(dataclasses.replace(layer, parts=(far,), padding=(1, 1, 1, 1)))


def test_a_zero_point_outside_the_code_range_is_exact_without_padding():
    rng = np.random.default_rng(9)
    layer = random_layer(rng, widths=(4,))
    far = dataclasses.replace(layer.parts[0], zero_point=np.array([0, 300, -20], np.int32))
    x = rng.normal(0, 6, (5, 4, 5, 5)).astype(np.float32)
    check(dataclasses.replace(layer, parts=(far,)), x, TIMESTEPS)
