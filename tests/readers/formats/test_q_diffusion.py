"""A real shortcut of Q-Diffusion: two halves with their own quantizers, static activations, learned rounding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.readers.recorded_files import DATA, assert_refused, recorded, with_tensor

FILE = DATA / "q_diffusion.safetensors"
LAYER = "model.up.0.block.0.nin_shortcut"


def test_the_recorded_layer_comes_out_with_its_halves_scales_and_zero_points() -> None:
    read = recorded(FILE)
    assert list(read.model.layers) == ["up.0.block.0.nin_shortcut"]
    assert not read.model.floats
    assert read.model.timesteps.tolist() == [1, 101, 201, 301, 401, 501, 601, 701, 801, 901]
    layer = read.layers["layer0"]
    assert (layer.kind, layer.in_channels, layer.out_channels) == ("conv2d", 96, 64)
    assert (layer.weight_bits, layer.activation_bits, layer.q_min, layer.q_max) == (4, 8, 0, 255)
    first, second = layer.parts
    assert [len(part.pre) for part in layer.parts] == [32, 64]
    assert all((part.pre == 1).all() for part in layer.parts)
    assert (first.scale.tolist(), first.zero_point.tolist()) == (pytest.approx([0.16277625]), [103])
    assert (second.scale.tolist(), second.zero_point.tolist()) == (pytest.approx([0.09431521]), [141])
    assert first.w_code[0, 0, :6, 0, 0].tolist() == [5, 3, 5, 0, 1, -2]
    assert second.w_code[0, 0, :6, 0, 0].tolist() == [1, 2, -2, 0, 0, 1]
    assert first.weight_scale[0, :2].tolist() == pytest.approx([0.06274214, 0.02279241])
    assert layer.bias is not None
    assert layer.bias[0] == pytest.approx(-0.0177398)


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        ("act_quantizer.delta", np.ones(3, np.float32), r"act_quantizer.delta has shape \(3,\), expected one number"),
        ("weight_quantizer.alpha", np.zeros((64, 40, 1, 1), np.float32), "alpha has shape"),
        ("weight_quantizer.delta", np.zeros((64, 1, 1, 1), np.float32), "holds 0.0, expected positive scales"),
        ("weight", np.ones((64, 96, 1, 1), np.float32), "differ from `float_model`"),
        ("act_quantizer.delta_list", np.ones((20, 1), np.float32), "has no place for; check `reader`"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(name: str, value: np.ndarray, match: str) -> None:
    assert_refused(FILE, with_tensor(f"{LAYER}.{name}", value), match)


def test_a_file_whose_quantizers_were_not_saved_is_refused() -> None:
    def change(checkpoint: dict[str, Any]) -> None:
        for name in [name for name in checkpoint if "weight_quantizer" in name]:
            del checkpoint[name]

    assert_refused(FILE, change, "has no scale of any weight")
