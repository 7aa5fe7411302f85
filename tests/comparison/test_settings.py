"""Methods of a comparison are calibrated on the same samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dq_deploy.comparison import Settings, options_by_method
from dq_deploy.errors import OptionError


def test_every_method_gets_the_largest_number_of_samples(tmp_path: Path) -> None:
    preset = tmp_path / "own.yaml"
    preset.write_text("samples: 8\ndmq:\n  samples: 24\n  iterations: 7\n")
    options, remark = options_by_method(["minmax", "dmq"], str(preset), weight_bits=4)
    assert [own.samples for own in options] == [24, 24]
    assert [own.method for own in options] == ["minmax", "dmq"]
    assert options[1].iterations == 7
    assert remark == "all methods get 24 calibration samples; the preset gives 8 to 24"


def test_samples_of_the_command_line_need_no_remark() -> None:
    options, remark = options_by_method(["eda-dm", "quest"], "fast", samples=5)
    assert ([own.samples for own in options], remark) == ([5, 5], "")
    assert options[0].is_static


def test_a_preset_that_gives_methods_other_steps_is_refused(tmp_path: Path) -> None:
    preset = tmp_path / "own.yaml"
    preset.write_text("steps: 10\ndmq:\n  steps: 20\n")
    with pytest.raises(OptionError, match=r"steps by method \(minmax 10, dmq 20\)"):
        options_by_method(["minmax", "dmq"], str(preset))


@pytest.mark.parametrize(
    ("methods", "message"),
    [([], "no method is named"), (["minmax", "minmax"], "named twice"), (["gptqq"], "method is 'gptqq'")],
)
def test_a_wrong_list_of_methods_is_refused(methods: list[str], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        options_by_method(methods, "fast")


@pytest.mark.parametrize("values", [{"engine": "tensorrt"}, {"images": 1}, {"threads": 0}, {"steps": 0}])
def test_settings_out_of_range_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match="expected"):
        Settings(**values)
