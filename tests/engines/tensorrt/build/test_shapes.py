"""Shapes as text become one profile for all inputs, or one line says what is wrong with them."""

from __future__ import annotations

import pytest

from dq_deploy.engines.tensorrt.build.shapes import profile_from_texts
from dq_deploy.errors import OptionError
from dq_deploy.manifest.values import SizeRange
from tests.manifests import engine_manifest

FIXED = {
    "inputs": [
        {"name": "sample", "dtype": "float32", "shape": ["B", 1, 32, 32]},
        {"name": "timestep", "dtype": "float32", "shape": ["B"]},
    ],
    "model_config": {"sample_size": 32},
}
FREE = {
    "inputs": [
        {"name": "sample", "dtype": "float32", "shape": ["B", 4, "H", "W"]},
        {"name": "timestep", "dtype": "float32", "shape": ["B"]},
        {"name": "encoder_hidden_states", "dtype": "float32", "shape": ["B", "tokens", 768]},
        {"name": "time_ids", "dtype": "float32", "shape": ["B", 6]},
    ],
    "model_config": {"sample_size": 64},
}
EXAMPLE = "sample:1x4x64x64..2x4x64x64..8x4x96x96"


def test_the_default_is_one_to_eight_samples_of_the_models_size():
    profile = profile_from_texts([], engine_manifest(**FIXED))
    assert profile["sample"].text() == "1x1x32x32..1x1x32x32..8x1x32x32"
    assert profile["timestep"] == SizeRange(min=(1,), opt=(1,), max=(8,))


def test_a_denoiser_with_a_condition_is_best_at_two_samples():
    """Guidance runs a sample with its condition and one without."""
    free = profile_from_texts([], engine_manifest(**FREE))
    assert free["sample"].text() == "1x4x64x64..2x4x64x64..8x4x64x64"
    assert free["encoder_hidden_states"].text() == "1x77x768..2x77x768..8x77x768"


def test_a_given_range_holds_for_every_input_that_shares_the_dimension():
    profile = profile_from_texts([EXAMPLE], engine_manifest(**FREE))
    assert profile["sample"].text() == EXAMPLE.removeprefix("sample:")
    assert profile["timestep"].text() == "1..2..8"
    assert profile["time_ids"].text() == "1x6..2x6..8x6"


def test_several_inputs_come_in_one_text_or_in_several():
    tokens = "encoder_hidden_states:1x8x768..2x77x768..8x154x768"
    together = profile_from_texts([f"{EXAMPLE}, {tokens}"], engine_manifest(**FREE))
    assert together == profile_from_texts([EXAMPLE, tokens], engine_manifest(**FREE))
    assert together["encoder_hidden_states"].max == (8, 154, 768)


def test_one_shape_is_all_three():
    profile = profile_from_texts(["sample:2x1x32x32"], engine_manifest(**FIXED))
    assert profile["sample"].min == profile["sample"].max == (2, 1, 32, 32)
    assert profile["timestep"].text() == "2..2..2"


@pytest.mark.parametrize(
    ("manifest", "texts", "message"),
    [
        (FIXED, ["latents:1x1x32x32"], "names input 'latents', the engine has sample, timestep"),
        (FIXED, ["sample:1x32x32"], "a shape of 3 dimensions, the engine takes 4"),
        (FIXED, ["sample:1x1x32x32..2x1x32x32"], "has 2 shapes, expected MIN..OPT..MAX"),
        (FIXED, ["sample:1x1x64x64"], "64 in dimension 2, which is fixed at 32"),
        (FIXED, ["timestep:4..2..8"], r"has 4..2..8 in dimension 0, expected min <= opt <= max"),
        (FIXED, ["timestep:1..9..8"], r"has 1..9..8"),
        (FIXED, ["timestep:1..2..8", "timestep:1..2..8"], "'timestep' twice"),
        (FIXED, ["sample:1x1x32x32", "timestep:2"], "as 1..1..1 for sample and 2..2..2 for timestep"),
        (FIXED, ["1x1x32x32"], "expected NAME:MIN..OPT..MAX"),
        (FIXED, [":1x1x32x32"], "expected NAME:MIN..OPT..MAX"),
        (FIXED, [""], "expected NAME:MIN..OPT..MAX"),
        (FIXED, ["timestep:0..1..8"], "expected positive sizes"),
        (FIXED, ["timestep:-1"], "expected positive sizes"),
        (FIXED, ["timestep:1x"], "expected positive sizes"),
        (FIXED, ["timestep:²"], "expected positive sizes"),
        (FIXED, ["timestep:99999999999"], "expected positive sizes"),
        (
            {**FIXED, "inputs": [*FIXED["inputs"], {"name": "mask", "dtype": "float32", "shape": ["B", "N"]}]},
            [],
            "input mask has the free dimension N",
        ),
    ],
)
def test_a_mistake_gets_one_line(manifest, texts, message):
    with pytest.raises(OptionError, match=message) as caught:
        profile_from_texts(texts, engine_manifest(**manifest))
    assert "\n" not in str(caught.value)
