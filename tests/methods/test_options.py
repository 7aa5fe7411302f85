"""Which bits each layer gets, and which requests are refused."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dq_deploy.errors import FileProblemError, ModelError, OptionError, RecordError
from dq_deploy.methods import (
    BIT_PRESETS,
    METHODS,
    PICTURE_PRESETS,
    PRESETS,
    SharedOptions,
    bits_of_sites,
    options_for,
    options_from_preset,
    quantize,
)
from dq_deploy.methods.options import OPTION_NAMES, json_of_options
from dq_deploy.models import LayerSite
from tests.tiny import tiny_denoiser

ROLES = {
    "conv_in": "first",
    "time_embedding.linear_1": "embedding",
    "mid_block.resnets.0.conv1": "general",
    "mid_block.resnets.0.time_emb_proj": "modulation",
    "mid_block.attentions.0.attn2.to_k": "condition",
    "up_blocks.0.resnets.0.conv1": "general",
    "conv_out": "last",
}


def site(name: str, **more: str) -> LayerSite:
    return LayerSite(
        name=name,
        kind="linear",
        in_channels=64,
        out_channels=8,
        kernel=(),
        stride=(1, 1),
        padding=(0, 0, 0, 0),
        dilation=(1, 1),
        groups=1,
        macs=512,
        input_shape=(1, 64),
        output_shape=(1, 8),
        **more,
    )


def bits(**options: Any) -> dict[str, tuple[int | None, int | None]]:
    found = bits_of_sites([site(name, role=role) for name, role in ROLES.items()], options_for(**options))
    return {name: (own.weight_bits, own.activation_bits) for name, own in found.items()}


def test_layers_have_the_defaults_of_their_roles() -> None:
    found = bits(weight_bits=4, activation_bits=6)
    eight = [name for name, role in ROLES.items() if role not in ("general", "embedding")]
    assert {found[name] for name in eight} == {(8, 8)}
    assert found["time_embedding.linear_1"] == (None, None)
    assert found["mid_block.resnets.0.conv1"] == (4, 6)


def test_keep_replaces_the_default_list() -> None:
    found = bits(keep=("conv_in",))
    assert found["conv_in"] == (None, None)
    assert found["time_embedding.linear_1"] == (4, 8)


def test_layer_bits_win_over_defaults_and_the_last_match_counts() -> None:
    found = bits(layer_bits={"*.conv1": 6, "mid_block.*": (5, 7), "time_embedding.*": 8, "conv_in": 4})
    assert found["up_blocks.0.resnets.0.conv1"] == (6, 6)
    assert found["mid_block.resnets.0.conv1"] == (5, 7)
    assert found["time_embedding.linear_1"] == (8, 8)
    assert found["conv_in"] == (4, 4)


def test_weight_only_layers_of_any_role_have_the_general_bits() -> None:
    found = bits(method="minmax", weight_bits=4, activation_bits=16, block_size=64)
    assert found["mid_block.attentions.0.attn2.to_k"] == found["conv_in"] == (4, 16)
    assert found["time_embedding.linear_1"] == (None, None)


def test_a_layer_that_has_to_stay_float_does_and_cannot_be_named() -> None:
    both = [site("a", float_reason="it runs twice"), site("b")]
    found = bits_of_sites(both, options_for(layer_bits={"*": 4}))
    assert found["a"].is_float
    assert found["a"].reason == "it runs twice"
    with pytest.raises(OptionError, match="layer a is in layer_bits and has to stay float: it runs twice"):
        bits_of_sites(both, options_for(layer_bits={"a": 4}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": ("mid_blok.*",)}, "keep 'mid_blok.*' matches no layer"),
        ({"layer_bits": {"nothing": 4}}, "layer_bits 'nothing' matches no layer"),
        ({"keep": ("conv_in",), "layer_bits": {"conv_*": 4}}, "layer conv_in is under keep 'conv_in' and layer_bits"),
        ({"keep": ("*",)}, "every layer stays float"),
    ],
)
def test_patterns_that_cannot_be_meant_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError) as caught:
        bits(**options)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"method": "gptqq"},
        {"weight_bits": 1},
        {"activation_bits": 9},
        {"weight_bits": 4.0},
        {"weight_bits": True},
        {"steps": 0},
        {"samples": 0},
        {"iterations": -1},
        {"memory_gib": 0},
        {"lr_weight": float("nan")},
        {"static": "yes"},
        {"layer_bits": {"a": 9}},
        {"layer_bits": {"a": (4, 8, 8)}},
        {"dilation_bound": "both"},
    ],
)
def test_values_out_of_range_are_refused_by_name(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match="expected"):
        options_for(**options)


def test_a_method_holds_what_it_reads_and_the_provenance_every_option() -> None:
    options = options_for("minmax", block_size=128, lr_rounding=0.3)
    assert not hasattr(options, "lr_rounding")
    assert options.unused == {"lr_rounding": 0.3}
    told = json_of_options(options)
    assert tuple(told) == OPTION_NAMES
    assert (told["block_size"], told["lr_rounding"], told["power_of_two"]) == (128, 0.3, "one-vote")
    assert options_for(**told) == replace(options, unused={**options_for(**told).unused})
    with pytest.raises(OptionError, match="lr_rounding is 11, expected a number from 0 to 10"):
        options_for("minmax", lr_rounding=11)


def test_an_option_has_one_default_whatever_the_method() -> None:
    held = [(option.name, option.default) for m in METHODS for option in fields(options_for(m))]
    by_name = {name: default for name, default in held if name != "unused"}
    assert {*by_name, "method"} == set(OPTION_NAMES)
    assert all(by_name[name] is default or by_name[name] == default for name, default in held if name != "unused")


def test_unknown_keyword_arguments_are_refused() -> None:
    with pytest.raises(OptionError, match="unknown option bitz"):
        quantize(tiny_denoiser(), bitz=4)
    with pytest.raises(OptionError, match="expected one of the two"):
        quantize(tiny_denoiser(), options_for(), steps=3)


@pytest.mark.parametrize("preset", [*PRESETS, *BIT_PRESETS, *PICTURE_PRESETS])
def test_every_packaged_preset_loads(preset: str) -> None:
    assert options_from_preset(preset, weight_bits=6, steps=None).weight_bits == 6


@pytest.mark.parametrize("method", METHODS)
def test_a_method_has_the_same_rates_from_python_the_command_line_and_a_users_file(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.yaml").write_text("weight_bits: 6")
    found: list[SharedOptions] = []
    monkeypatch.setattr("dq_deploy.methods._by_method", lambda run, options, init: found.append(options))
    quantize(tiny_denoiser(), method=method)
    quantize(tiny_denoiser(), method=method, preset="fast")
    assert found == [options_from_preset("balanced", method=method), options_from_preset("fast", method=method)]
    assert options_from_preset(str(tmp_path / "mine.yaml"), method=method) == replace(found[0], weight_bits=6)


def test_bits_stand_beside_a_preset_for_the_time(tmp_path: Path) -> None:
    fast, mixed = options_from_preset("fast"), {"weight_bits": 4, "activation_bits": 4, "activation_budget": 5}
    assert options_from_preset("fast,w4a4-mixed") == replace(fast, **mixed, second_order_start=False)
    assert options_from_preset("w4a4-mixed, fast") == replace(fast, **mixed)  # the later one says it
    balanced = options_from_preset("balanced")
    assert options_from_preset("w4a4-mixed") == replace(balanced, **mixed, second_order_start=False)
    whole = {"weight_bits": 4, "activation_bits": 4, "calibration_choice": "influence", "channel_scales": True}
    assert options_from_preset("fast,w4a4") == replace(fast, **whole)
    (tmp_path / "mine.yaml").write_text("method: quest\nsamples: 5\n")
    both = options_from_preset(f"fast,{tmp_path / 'mine.yaml'}")
    assert both == replace(options_from_preset("fast", method="quest"), samples=5)
    with pytest.raises(OptionError, match="presets fast and best were given, expected one of"):
        options_from_preset("fast,best")
    with pytest.raises(OptionError, match="presets w4a4-mixed and w5a5-mixed were given, expected one of"):
        options_from_preset("fast,w4a4-mixed,w5a5-mixed")


def test_a_users_preset_is_read_and_overridden(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("weight_bits: 6\nkeep: conv_in, conv_out\nlayer_bits:\n  'mid_block.*': [4, 8]\n")
    options = options_from_preset(str(path), weight_bits=5)
    assert options.weight_bits == 5
    assert options.keep == ("conv_in", "conv_out")
    assert options.layer_bits == {"mid_block.*": (4, 8)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("weight_bitz: 4", "option 'weight_bitz'"),
        ("- 4", "holds a list"),
        ("a: [", "cannot read preset"),
        ("layer_bits: 4", "expected `pattern: bits` lines"),
        ("weight_bits: four", "weight_bits is 'four'"),
        ("keep: 4", "keep is 4, expected a list of texts"),
        ("!!python/object/apply:os.system ['true']", "cannot read preset"),
    ],
)
def test_broken_presets_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises((OptionError, FileProblemError)) as caught:
        options_from_preset(str(path))
    assert message in str(caught.value)


def test_a_preset_that_is_not_there_is_named() -> None:
    with pytest.raises(FileProblemError, match="does not exist"):
        options_from_preset("/nowhere/x.yaml")
    with pytest.raises(OptionError, match="preset is 'turbo'"):
        options_from_preset("turbo")


def test_more_groups_than_steps_are_refused():
    with pytest.raises(OptionError, match="step_groups is 5, expected at most 4"):
        options_for(method="minmax", steps=4, step_groups=5)


def test_numbers_of_numpy_are_numbers():
    options = options_for(
        method="minmax", weight_bits=np.int64(8), budget=np.float32(5), static=np.True_, labels=np.arange(2),
        layer_bits={"conv_in": np.int8(4)},
    )  # fmt: skip
    assert (options.weight_bits, options.budget, options.static, options.labels) == (8, 5.0, True, (0, 1))
    assert type(options.weight_bits) is type(options.labels[0]) is int
    assert options.layer_bits == {"conv_in": (4, 4)}
    json_of_options(options)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("keep", "conv_in", "'conv_in', expected a list of texts"),
        ("keep", [3], r"\[3\], expected a list of texts"),
        ("labels", 3, "3, expected a list of whole numbers"),
        ("labels", "01", "'01', expected a list of whole numbers"),
        ("budget_widths", 4, "4, expected a list of whole numbers"),
        ("layer_bits", [("conv_in", 4)], "expected a mapping from texts"),
        ("layer_bits", {3: 4}, "expected a mapping from texts"),
    ],
)
def test_an_option_of_several_values_is_not_given_another_kind(name, value, words):
    with pytest.raises(OptionError, match=f"{name} is .*{words}"):
        options_for(method="minmax", **{name: value})


def test_a_path_or_a_dict_is_no_denoiser_no_option_and_no_record():
    small = tiny_denoiser()
    for refused, arguments, more in (
        (ModelError, ("model.pt",), {}),
        (OptionError, (small, {"method": "minmax"}), {}),
        (OptionError, (small,), {"calibration": "prompts.txt"}),
        (RecordError, (small,), {"method": "quest", "init": "model.pt"}),
    ):
        with pytest.raises(refused, match=r"is a (str|dict), expected"):
            quantize(*arguments, **more)
