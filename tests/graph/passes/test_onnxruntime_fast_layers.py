"""Mode fast: codes equal the numerics, and outputs equal the declared requantization."""

from __future__ import annotations

import numpy as np
import pytest

from dq_deploy import numerics
from dq_deploy.graph.passes.onnxruntime_fast_layers import RequantizedLayers
from tests.graph.passes.single_layer import (
    assert_codes_and_accumulators_equal,
    random_layer,
    run_integer,
    wide_layers,
)


@pytest.mark.parametrize("bits", [(4, 8), (8, 8), (6, 6), (4, 4)])
@pytest.mark.parametrize("timestep", [0.0, 120.0, 200.0])
@pytest.mark.parametrize("symmetric", [False, True])
def test_convolution_codes_and_output_codes_are_exact(bits, timestep, symmetric):
    rng = np.random.default_rng(5)
    layer = random_layer(
        rng, weight_bits=bits[0], activation_bits=bits[1], symmetric=symmetric, padding=(1, 1, 1, 1), widths=(16,)
    )
    x = rng.normal(0, 3, (2, 16, 6, 6)).astype(np.float32)
    when = np.full(2, timestep, np.float32)
    run = run_integer(layer, x, when, RequantizedLayers)
    assert_codes_and_accumulators_equal(layer, x, when, run)
    step = numerics.step_bucket(when, np.array([50, 150], np.float32))
    result = numerics.integer_layer(layer, x, step)
    tables = {"out_scale": layer.out_scale, "out_zero_point": layer.out_zero_point, "step": step}
    part = layer.parts[0]
    codes = numerics.requantize_accumulator(
        result.accumulators[0], bias=layer.bias, scale=part.scale, weight_scale=part.weight_scale[0], **tables
    )
    np.testing.assert_array_equal(run.values[run.entry.output_codes], codes)
    assert np.abs(codes - numerics.requantize(result.output, **tables)).max() <= 1


def test_linear_keeps_float_outputs():
    rng = np.random.default_rng(6)
    layer = random_layer(rng, kind="linear", widths=(32,))
    x = rng.normal(0, 3, (2, 5, 32)).astype(np.float32)
    when = np.full(2, 100, np.float32)
    run = run_integer(layer, x, when, RequantizedLayers)
    assert_codes_and_accumulators_equal(layer, x, when, run)
    expected = numerics.integer_layer(layer, x, np.array([1, 1])).output
    np.testing.assert_array_equal(run.values["y"], expected)


def test_convolution_without_output_table_stays_float_with_a_reason():
    import dataclasses

    rng = np.random.default_rng(7)
    layer = dataclasses.replace(random_layer(rng), out_scale=None, out_zero_point=None)
    run = run_integer(layer, rng.normal(size=(1, 5, 4, 4)).astype(np.float32), np.zeros(1), RequantizedLayers)
    assert "no output table" in run.entry.reason


def test_weights_with_a_zero_point_per_column_run_in_linear_layers_and_stay_float_in_convolutions():
    when = np.full(5, 100, np.float32)
    for layer, x in wide_layers("uint8 codes, any uint8 zero point", "linear", (8, False), widths=(33,)):
        run = run_integer(layer, x, when, RequantizedLayers)
        assert_codes_and_accumulators_equal(layer, x, when, run)
        expected = numerics.integer_layer(layer, x, np.full(5, 1)).output
        np.testing.assert_allclose(run.values["y"], expected, rtol=0, atol=2**-20 * np.abs(expected).max())
    for layer, x in wide_layers("uint8 codes, any uint8 zero point", "conv2d", (8, False), widths=(33,)):
        run = run_integer(layer, x, when, RequantizedLayers)
        assert "one zero point for all channels" in run.entry.reason
    for layer, x in wide_layers("far from the codes", "linear", (8, False), widths=(33,)):
        run = run_integer(layer, x, when, RequantizedLayers)
        assert "outside 0..255" in run.entry.reason
