"""OpenVINO's form, layer by layer: codes and accumulators equal the numerics bit for bit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dq_deploy import numerics
from dq_deploy.engines.options import OpenVinoOptions
from dq_deploy.graph.pass_contract import run_passes
from dq_deploy.graph.passes.cleanup import RemoveUnused
from dq_deploy.graph.passes.openvino_layers import OpenVinoLayers, decline_reason, exact_summands
from dq_deploy.graph.writing.held_codes import held_codes
from dq_deploy.graph.writing.wide_weights import split_weight
from tests.graph.passes.single_layer import WEIGHT_ZEROS, float_model, random_layer, record_of, wide_layers

pytest.importorskip("openvino", reason="openvino is not installed: pip install 'dq-deploy[openvino]'")

ROOT = Path(__file__).parents[3]
TIMESTEPS = np.array([0.0, 50.0, 149.99, 150.0, 210.0], np.float32)


PLAIN = OpenVinoOptions(threads=1, finite_check=False)


def shift_of(layer, part, z, holds, like):
    """What the accumulator holds beyond A: [B, ...] int64."""
    q = part.q_weight(0).astype(np.int64)
    if holds == "canonical":
        return np.zeros_like(like)
    if holds == "shifted":
        sums = q.reshape(len(q), -1).sum(axis=1).reshape((1, -1) + (1,) * (like.ndim - 2))
        sums = sums if layer.kind == "conv2d" else sums.reshape((1,) * (like.ndim - 1) + (-1,))
        return z.reshape((-1,) + (1,) * (like.ndim - 1)) * sums
    return None


def products(runner):
    """The kernels that multiply."""
    types = ("Convolution", "FullyConnected", "MatMul")
    return [node for node in runner.runtime_graph()["nodes"] if node["type"] in types]


def check(layer, x, timestep=TIMESTEPS, steps=3):
    """Run the layer with its codes and accumulators shown and hidden, and compare."""
    from dq_deploy.engines.openvino import OpenVinoRunner

    size = x.shape[2:] if layer.kind == "conv2d" else x.shape[1:-1]
    record = record_of(layer, steps)
    layers = OpenVinoLayers(record)
    model = run_passes(float_model(layer, size), [layers, RemoveUnused()]).model
    proto = ir.to_proto(model)
    entry = layers.entries[0]
    assert entry.integer, entry.reason
    feeds = {"x": x, "timestep": timestep}
    with OpenVinoRunner(proto.SerializeToString(), None, PLAIN) as runner:
        hidden = runner.run(feeds)[runner.outputs[0].name]
        kernels = products(runner)
    for part in entry.parts:
        for name in (part.codes, part.accumulator):
            if name not in [o.name for o in proto.graph.output]:
                proto.graph.output.add().name = name
    with OpenVinoRunner(proto.SerializeToString(), None, PLAIN) as runner:
        shown = runner.run(feeds)
        others = products(runner)
        assert shown[runner.outputs[0].name].tobytes() == hidden.tobytes()
    # showing a product that a sum was fused with computes it once more, by the same kernel
    assert {(k["kernel"], *k["operands"][:2]) for k in kernels} == {(k["kernel"], *k["operands"][:2]) for k in others}
    step = numerics.step_bucket(timestep, record.step_edges)
    expected = numerics.integer_layer(layer, x, step)
    for index, shape in enumerate(entry.parts):
        part = layer.parts[index]
        codes = shown[shape.codes].astype(np.int64)
        assert shown[shape.codes].dtype == np.uint8
        z = numerics.table_at(part.zero_point, step).astype(np.int64)
        spread = z.reshape((-1,) + (1,) * (codes.ndim - 1))
        held = expected.codes[index] + (spread if shape.offset is None else shape.offset)
        np.testing.assert_array_equal(codes, held)
        total = expected.accumulators[index].astype(np.int64)
        if shape.accumulator_holds == "shifted_inside":
            total = numerics.accumulate_conv2d(held.astype(np.int32), part.q_weight(0), layer.window)
        else:
            total = total + shift_of(layer, part, z, shape.accumulator_holds, total)
        got = shown[shape.accumulator]
        np.testing.assert_array_equal(got + np.float32(0), total.astype(np.float32))
    np.testing.assert_allclose(hidden, expected.output, rtol=0, atol=2**-20 * np.abs(expected.output).max())
    return entry, kernels


@settings(max_examples=25, deadline=None)
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
        extreme=data.draw(st.booleans()),
    )
    check(layer, rng.normal(0, 6, (5, layer.in_channels, 6, 7)).astype(np.float32))


@settings(max_examples=15, deadline=None)
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
        if reason := decline_reason(layer):
            assert what == "far from the codes"
            assert "weights need more than 2 summands of 8 pieces" in reason
            continue
        entry, kernels = check(layer, x)
        assert "pieces" in entry.form
        assert all(kernel["operands"][:2] == ["uint8", "int8"] for kernel in kernels)


@pytest.mark.parametrize("kind", ["conv2d", "linear"])
@pytest.mark.parametrize("activation_bits", [2, 4, 7, 8])
@pytest.mark.parametrize("symmetric", [False, True])
def test_ties_their_neighbours_and_huge_values_get_the_codes_of_numerics(kind, activation_bits, symmetric):
    rng = np.random.default_rng(0)
    more = {"kernel": (1, 1)} if kind == "conv2d" else {}
    layer = random_layer(
        rng, kind=kind, activation_bits=activation_bits, symmetric=symmetric, widths=(1,), steps=3, **more
    )
    part = layer.parts[0]
    m = numerics.reciprocal(part.scale)[0] * part.pre[0]
    ties = ((np.arange(-300, 300) + 0.5) / m).astype(np.float32)
    near = np.concatenate([np.nextafter(ties, np.float32(np.inf)), np.nextafter(ties, -np.float32(np.inf))])
    huge = np.array([1e10, -1e10, 3e38, -3e38, 1e-40, -0.0, 0.0, 2**31, -(2.0**31), 2**24 + 1], np.float32)
    x = np.concatenate([ties, near, huge])
    check(layer, x[None, None, None, :] if kind == "conv2d" else x[None, :, None], np.zeros(1, np.float32))


@pytest.mark.parametrize("kind", ["conv2d", "linear"])
@pytest.mark.parametrize(("weight_bits", "activation_bits", "summands"), [(4, 8, 1), (7, 8, 1), (8, 8, 2), (8, 6, 1)])
def test_extreme_weights_and_codes_do_not_saturate(kind, weight_bits, activation_bits, summands):
    rng = np.random.default_rng(1)
    more = {"padding": (1, 1, 1, 1)} if kind == "conv2d" else {}
    layer = random_layer(
        rng, kind=kind, weight_bits=weight_bits, activation_bits=activation_bits, widths=(32,), outputs=32,
        extreme=True, **more,
    )  # fmt: skip
    x = np.full((5, 32, 5, 5) if kind == "conv2d" else (5, 7, 32), 1e4, np.float32)
    entry, kernels = check(layer, x)
    assert len(entry.parts[0].products) == summands
    integer = [k for k in kernels if k["operands"][:2] == ["uint8", "int8"]]
    assert len(integer) == summands == len(kernels)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 4))
def test_summands_of_the_weights_add_up_to_them(seed, count):
    q = np.random.default_rng(seed).integers(-128, 128, (3, 5)).astype(np.int16)
    summands = split_weight(q, count)
    assert (sum(s.astype(np.int64) for s in summands) == q).all()
    assert max(int(np.abs(s).max()) for s in summands) <= -(-128 // count)


def test_sums_beyond_float32_are_split_until_they_are_exact():
    rng = np.random.default_rng(2)
    layer = random_layer(rng, kind="linear", weight_bits=8, widths=(1024,), extreme=True)
    entry, _ = check(layer, np.full((5, 3, 1024), 1e4, np.float32))
    part = layer.parts[0]
    for (q,) in exact_summands(layer, part, held_codes(layer, part)):
        assert 255 * np.abs(q.astype(int)).sum(axis=1).max() < 2**24
    assert len(entry.parts[0].products) == 2


def test_a_strided_kernel_of_one_keeps_its_padding():
    """OpenVINO alone would move the stride in front of the padding and return another shape."""
    rng = np.random.default_rng(4)
    layer = random_layer(rng, kernel=(1, 1), stride=(2, 2), padding=(1, 0, 2, 1), dilation=(1, 2))
    check(layer, rng.normal(0, 6, (5, 5, 6, 7)).astype(np.float32))


@pytest.mark.parametrize("steps", [1, 3])
def test_static_tables_run_with_one_step_bucket_and_with_more(steps):
    rng = np.random.default_rng(3)
    layer = random_layer(rng, steps=1, padding=(1, 1, 1, 1))
    check(layer, rng.normal(0, 6, (5, 5, 6, 7)).astype(np.float32), steps=steps)


@pytest.mark.parametrize("instructions", ["AVX2", "AVX2_VNNI", "AVX512_CORE"])
def test_every_form_is_exact_with_other_instruction_sets(instructions):
    """AVX2 and AVX512_CORE add u8 x s8 pairs in int16; the engine's own switch selects those kernels here."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(Path(__file__)),
               "-k", "saturate or beyond"]  # fmt: skip
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": instructions}
    result = subprocess.run(
        command, env=environment, capture_output=True, text=True, cwd=ROOT, timeout=300, check=False
    )
    assert result.returncode == 0, result.stdout[-3000:]
    assert " passed" in result.stdout
