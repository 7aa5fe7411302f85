"""A real skip convolution of QuEST: tables stored along the channels, signed codes without zero points."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.readers.recorded_files import DATA, assert_refused, recorded, with_tensor

FILE = DATA / "quest.safetensors"
LAYER = "model.output_blocks.0.0.skip_connection"


def test_the_recorded_layer_comes_out_whole_with_one_scale_a_step() -> None:
    read = recorded(FILE)
    assert list(read.model.layers) == ["output_blocks.0.0.skip_connection"]
    assert read.model.timesteps[[0, 1, 19]].tolist() == [1, 51, 951]
    layer = read.layers["layer0"]
    assert (layer.kind, layer.in_channels, layer.out_channels) == ("conv2d", 64, 32)
    assert (layer.weight_bits, layer.activation_bits, layer.q_min, layer.q_max) == (4, 8, -128, 127)
    (part,) = layer.parts
    assert part.steps == 20
    assert not part.zero_point.any()
    assert part.scale[[0, 1, 19]].tolist() == pytest.approx([0.07403382, 0.09303164, 0.08252312])
    assert part.w_code[0, 0, :6, 0, 0].tolist() == [-3, -3, -1, 0, -3, 1]
    assert part.w_zero_point[0, :4].tolist() == [-1, 0, -2, -1]
    assert part.weight_scale[0, :2].tolist() == pytest.approx([0.04547064, 0.05546609])


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        ("act_quantizer.delta_list", np.array(0.1, np.float32), "is a single number, expected a table"),
        ("act_quantizer.delta_list", np.ones((19, 64, 1, 1), np.float32), "has 19 scales and 20 zero points"),
        ("act_quantizer.zero_point_list", np.ones((20, 64, 1, 1), np.float32), "are not 0, but the settings say"),
    ],
)
def test_a_wrong_table_is_refused_in_one_line(name: str, value: np.ndarray, match: str) -> None:
    assert_refused(FILE, with_tensor(f"{LAYER}.{name}", value), match)


def test_scales_that_vary_along_the_summed_axis_are_refused_by_layer() -> None:
    def change(checkpoint: dict[str, Any]) -> None:
        checkpoint[f"{LAYER}.act_quantizer.delta_list"][4, 3] *= 2

    assert_refused(FILE, change, r"scales of 1 layers \(output_blocks.0.0.skip_connection\) vary along")
