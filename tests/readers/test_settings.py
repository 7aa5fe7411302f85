"""Settings are checked where they are read; each mistake is one line that names the entry."""

from __future__ import annotations

import pytest

from dq_deploy.errors import DqError
from dq_deploy.readers import load_settings, settings_from
from tests.readers.foreign_files import DDIM

GOOD = {"architecture": DDIM, "weight_bits": 4, "activation_bits": 8}


def test_a_file_of_settings_is_read(tmp_path):
    import yaml

    path = tmp_path / "settings.yaml"
    path.write_text(yaml.safe_dump({**GOOD, "timesteps": [9, 5], "layer_bits": {"conv_in": {"weight": 8}}}))
    settings = load_settings(path)
    assert settings.timesteps == (9.0, 5.0)
    assert settings.bits_of("conv_in") == (8, 8)
    assert settings.bits_of("conv_out") == (4, 8)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"weight_bits": 9}, "weight_bits is 9, expected a whole number from 2 to 8"),
        ({"weight_bits": True}, "weight_bits is True"),
        ({"bits": 4}, "bits is unknown, expected architecture, weight_bits"),
        ({"architecture": {"family": "ddim"}}, "architecture needs"),
        ({"symmetric_activations": "yes"}, "symmetric_activations is 'yes'"),
        ({"timesteps": [1, 1]}, "holds a number twice"),
        ({"timesteps": [1, 5, 3]}, "rises and falls"),
        ({"timesteps": "1,2"}, "timesteps is '1,2', expected a list of numbers"),
        ({"timesteps": [1, float("nan")]}, "expected a list of numbers"),
        ({"timesteps": [1, 5], "step_edges": [2, 3]}, "step_edges has 2 numbers, expected 1"),
        ({"float_layers": [3]}, "expected a list of names"),
        ({"splits": {"a": -1}}, "splits is"),
        ({"layer_bits": {"conv_in": 8}}, "layer_bits of conv_in is 8"),
        ({"layer_bits": {"conv_in": {"weights": 8}}}, "layer_bits of conv_in"),
        ({"layer_bits": {"conv_in": {"weight": 1}}}, "weight is 1, expected"),
        ({"scheduler": []}, "scheduler is .., expected a mapping"),
        ({"scheduler": {"_class_name": "NoSuchScheduler"}}, "settings: the scheduler is a NoSuchScheduler"),
        ({"scheduler": {"num_train_timesteps": 10}}, "has no _class_name"),
    ],
)
def test_a_wrong_entry_is_named(changes, match):
    with pytest.raises(DqError, match=match):
        settings_from({**GOOD, **changes})


@pytest.mark.parametrize("missing", ["architecture", "weight_bits", "activation_bits"])
def test_a_missing_entry_is_named(missing):
    with pytest.raises(DqError, match=f"{missing} is missing"):
        settings_from({key: value for key, value in GOOD.items() if key != missing})


@pytest.mark.parametrize(("text", "match"), [("- 1", "are a list"), ("a: [", "is not YAML"), (None, "does not exist")])
def test_a_file_that_is_no_mapping_is_refused(tmp_path, text, match):
    path = tmp_path / "settings.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(DqError, match=match):
        load_settings(path)
