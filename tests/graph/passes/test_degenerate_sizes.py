"""Sizes of one: a single bucket, channel, pixel, token or group gives what the numerics give on every target."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from dq_deploy.graph.pass_contract import run_passes
from dq_deploy.graph.passes.onnxruntime_fast_layers import RequantizedLayers
from dq_deploy.graph.passes.onnxruntime_layers import IntegerLayers
from dq_deploy.graph.passes.openvino_layers import OpenVinoLayers
from dq_deploy.graph.passes.tensorrt_layers import TensorRtLayers
from tests.graph.passes import tensorrt_layer
from tests.graph.passes.single_layer import (
    assert_codes_and_accumulators_equal,
    float_model,
    random_layer,
    record_of,
    run_integer,
)

TIMESTEPS = np.array([0.0, 149.99, 150.0, 990.0], np.float32)
PADS = (1, 1, 1, 1)

LAYERS = {
    "one input channel": {"widths": (1,), "padding": PADS},
    "one output channel": {"outputs": 1, "padding": PADS},
    "one channel each way": {"widths": (1,), "outputs": 1},
    "a kernel of one": {"kernel": (1, 1), "widths": (1,), "outputs": 1},
    "parts of one channel": {"widths": (1, 1), "padding": PADS},
    "one input feature": {"kind": "linear", "widths": (1,)},
    "one output feature": {"kind": "linear", "outputs": 1},
    "one feature each way": {"kind": "linear", "widths": (1,), "outputs": 1},
    "features without tokens": {"kind": "linear", "widths": (1,), "tokens": ()},
    "one token": {"kind": "linear", "tokens": (1,)},
    "one pixel": {"size": (1, 1), "padding": PADS},
    "one pixel under a kernel of one": {"size": (1, 1), "kernel": (1, 1)},
    "one row of pixels": {"size": (1, 5), "padding": PADS},
    "one pixel, one channel, strided": {
        "size": (1, 1),
        "widths": (1,),
        "outputs": 1,
        "padding": PADS,
        "stride": (2, 2),
    },
}


def layer_and_input(case: str, steps: int, bits: tuple[int, int]):
    fields = dict(LAYERS[case])
    size, tokens = fields.pop("size", (4, 3)), fields.pop("tokens", (3,))
    rng = np.random.default_rng(len(case))
    layer = random_layer(rng, steps=steps, weight_bits=bits[0], activation_bits=bits[1], **fields)
    width = layer.in_channels
    shape = (width, *size) if layer.kind == "conv2d" else (*tokens, width)
    return layer, rng.normal(0, 6, (len(TIMESTEPS), *shape)).astype(np.float32)


sizes = pytest.mark.parametrize(
    ("case", "steps", "bits"),
    [(case, steps, bits) for case in LAYERS for steps in (1, 2) for bits in ((4, 4), (8, 8))],
)


@sizes
def test_onnxruntime_exact(case, steps, bits):
    layer, x = layer_and_input(case, steps, bits)
    run = run_integer(layer, x, TIMESTEPS, IntegerLayers, steps)
    assert run.entry.integer
    assert_codes_and_accumulators_equal(layer, x, TIMESTEPS, run, steps)


@sizes
def test_onnxruntime_fast(case, steps, bits):
    layer, x = layer_and_input(case, steps, bits)
    when = np.full(len(x), TIMESTEPS[-1])
    run = run_integer(layer, x, when, RequantizedLayers, steps)
    if run.entry.integer:
        assert_codes_and_accumulators_equal(layer, x, when, run, steps)
    else:
        assert run.entry.reason


@pytest.mark.parametrize("conv", ["gemm", "native"])
@sizes
def test_tensorrt(case, steps, bits, conv):
    layer, x = layer_and_input(case, steps, bits)
    tensorrt_layer.check(layer, x, TIMESTEPS, conv=conv, steps=steps)


@sizes
def test_openvino(case, steps, bits):
    from tests.graph.passes import test_openvino_layers as openvino_layers

    layer, x = layer_and_input(case, steps, bits)
    openvino_layers.check(layer, x, TIMESTEPS, steps=steps)


def grouped_layer():
    """Four channels, each a group of its own."""
    layer = random_layer(np.random.default_rng(0), widths=(4,), outputs=4, padding=PADS)
    part = dataclasses.replace(layer.parts[0], w_code=layer.parts[0].w_code[:, :, :1])
    return dataclasses.replace(layer, groups=4, parts=(part,))


FORMS = {
    "onnxruntime fast": RequantizedLayers,
    "openvino": OpenVinoLayers,
    "tensorrt gemm": lambda record: TensorRtLayers(record, conv="gemm", pixels_as_rows=True),
    "tensorrt native": lambda record: TensorRtLayers(record, conv="native", pixels_as_rows=True),
}


@pytest.mark.parametrize("form", FORMS)
def test_as_many_groups_as_channels_stay_float_with_the_reason(form):
    layers = FORMS[form](record_of(grouped_layer()))
    run_passes(float_model(grouped_layer(), (4, 3)), [layers])
    assert not layers.entries[0].integer
    assert "4 channel groups" in layers.entries[0].reason


def test_as_many_groups_as_channels_are_exact_on_onnxruntime():
    x = np.random.default_rng(1).normal(0, 4, (len(TIMESTEPS), 4, 4, 3)).astype(np.float32)
    run = run_integer(grouped_layer(), x, TIMESTEPS, IntegerLayers)
    assert run.entry.integer
    assert_codes_and_accumulators_equal(grouped_layer(), x, TIMESTEPS, run)
