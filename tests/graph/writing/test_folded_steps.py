"""A layer whose leading axis holds several entries of each sample takes each sample's step for all of them."""

from __future__ import annotations

import numpy as np
import pytest

from dq_deploy.graph.passes.onnxruntime_layers import IntegerLayers
from dq_deploy.numerics import integer_layer, row_steps, step_bucket
from tests.graph.passes.single_layer import (
    assert_codes_and_accumulators_equal,
    random_layer,
    record_of,
    run_integer,
)

TIMESTEPS = np.array([200, 0, 100], np.float32)
FRAMES = 4


def input_of(layer):
    shape = (layer.in_channels, 4, 5) if layer.kind == "conv2d" else (6, layer.in_channels)
    return np.random.default_rng(1).normal(0, 4, (len(TIMESTEPS) * FRAMES, *shape)).astype(np.float32)


@pytest.mark.parametrize("kind", ["conv2d", "linear"])
def test_codes_accumulators_and_outputs_are_those_of_each_samples_step(kind):
    padding = {"padding": (1, 1, 1, 1)} if kind == "conv2d" else {}
    layer = random_layer(np.random.default_rng(0), kind=kind, **padding)
    x = input_of(layer)
    run = run_integer(layer, x, TIMESTEPS, IntegerLayers)
    assert_codes_and_accumulators_equal(layer, x, TIMESTEPS, run)
    step = step_bucket(TIMESTEPS, record_of(layer).step_edges)
    output = run.values["y"] if "y" in run.values else run.values[next(iter(run.values))]
    np.testing.assert_array_equal(output, integer_layer(layer, x, step).output)
    other = integer_layer(layer, x, np.tile(step, FRAMES)).output
    assert (row_steps(step, len(x)) == np.repeat(step, FRAMES)).all()
    assert (output != other).any()
