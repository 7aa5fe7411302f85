"""A real shortcut of EDA-DM: symmetric ranges with unsigned codes, so every zero point is 128."""

from __future__ import annotations

import numpy as np
import pytest

from tests.readers.recorded_files import DATA, assert_refused, recorded, with_tensor

FILE = DATA / "eda_dm.safetensors"
LAYER = "model.up.0.block.0.nin_shortcut"


def test_the_recorded_layer_comes_out_with_unsigned_codes_and_its_halves() -> None:
    read = recorded(FILE)
    assert list(read.model.layers) == ["up.0.block.0.nin_shortcut"]
    assert not read.model.floats
    layer = read.layers["layer0"]
    assert (layer.kind, layer.in_channels, layer.out_channels) == ("conv2d", 64, 32)
    assert (layer.weight_bits, layer.activation_bits, layer.q_min, layer.q_max) == (4, 8, 0, 255)
    first, second = layer.parts
    assert [len(part.pre) for part in layer.parts] == [32, 32]
    assert first.zero_point.tolist() == second.zero_point.tolist() == [128]
    assert first.scale.tolist() == pytest.approx([0.13385409])
    assert second.scale.tolist() == pytest.approx([0.05425942])
    assert first.w_code[0, 0, :6, 0, 0].tolist() == [-2, -5, 1, -4, 2, -7]
    assert second.w_code[0, 0, :6, 0, 0].tolist() == [-1, -8, -5, -1, 1, 6]
    assert second.weight_scale[0, :2].tolist() == pytest.approx([0.05186649, 0.0481])


@pytest.mark.parametrize(
    ("end", "match"),
    [
        ("weight_quantizer.delta", r"lacks the scales of 1 weights \(up.0.block.0.nin_shortcut.weight_quantizer\)"),
        ("weight_quantizer.zero_point", "lacks the zero points of 1 weights"),
        ("act_quantizer_0.zero_point", "lacks the zero points of 1 activations"),
        ("weight_quantizer.alpha", "is split and nothing says where"),
    ],
)
def test_what_a_plain_state_dict_lacks_is_said_in_one_line(end: str, match: str) -> None:
    assert_refused(FILE, with_tensor(f"{LAYER}.{end}", None), match)


def test_tables_of_steps_are_another_source_s() -> None:
    change = with_tensor(f"{LAYER}.act_quantizer.delta", np.ones(20, np.float32))
    assert_refused(FILE, change, r"has shape \(20,\), expected one number; check `reader`")
