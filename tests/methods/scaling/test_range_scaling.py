"""Scales from ranges: channels get like ranges, a layer that gains nothing keeps ones, the float function stays."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dq_deploy.methods import quantize
from dq_deploy.methods.scaling.range_scaling import SHARES, factors_of_share
from dq_deploy.record import Record
from tests.cli.running import command
from tests.methods.scaling.test_equivalent_scaling import linear, outlier_rows
from tests.tiny import tiny_denoiser

QUICK: dict[str, Any] = {"method": "minmax", "weight_bits": 8, "steps": 2, "samples": 2}


@pytest.mark.parametrize("widths", [(), (3, 5)])
def test_a_share_of_one_gives_every_channel_the_same_range_within_its_part(widths: tuple[int, ...]) -> None:
    weight = np.random.default_rng(0).standard_normal((16, 8)).astype(np.float32)
    layer, rows = linear(weight, widths), outlier_rows()
    widest = np.maximum(rows.high[0].numpy(), -rows.low[0].numpy())
    for part in np.split(widest / factors_of_share(layer, rows, 1.0), np.cumsum(layer.widths)[:-1]):
        np.testing.assert_allclose(part, part[0], rtol=1e-6)


def test_a_share_below_one_divides_the_ranges_between_inputs_and_weights() -> None:
    weight = np.random.default_rng(0).standard_normal((16, 8)).astype(np.float32)
    layer, rows = linear(weight), outlier_rows()
    g = factors_of_share(layer, rows, 0.5)
    widest = np.maximum(rows.high[0].numpy(), -rows.low[0].numpy())
    np.testing.assert_allclose(widest / g / (np.abs(weight).max(0) * g), (widest / g / (np.abs(weight).max(0) * g))[0])


def test_a_channel_that_is_never_used_gets_a_finite_factor() -> None:
    weight = np.ones((4, 8), np.float32)
    weight[:, 2] = 0
    rows = outlier_rows()
    low, high = rows.low.clone(), rows.high.clone()
    low[:, 1] = high[:, 1] = 0
    rows = replace(rows, low=low, high=high)
    for share in SHARES:
        g = factors_of_share(linear(weight), rows, share)
        assert np.isfinite(g).all()
        assert (g > 2.0**-41).all()


@pytest.fixture(scope="module")
def record() -> Record:
    return quantize(tiny_denoiser(), channel_scales=True, **QUICK)


def test_the_history_says_each_layers_share_and_its_error_never_grows(record: Record) -> None:
    stage = next(h for h in record.provenance["history"] if h["stage"] == "channel-scales")
    found = stage["relative_error"]
    assert found.keys() == {name for name, layer in record.layers.items() if len(layer.parts[0].pre) > 1}
    for name, entry in found.items():
        assert entry["after"] <= entry["before"]
        scaled = any((part.pre != 1).any() for part in record.layers[name].parts)
        assert scaled == (entry["share"] > 0)
    assert any(entry["share"] for entry in found.values())


def test_without_the_option_no_channel_has_a_factor() -> None:
    plain = quantize(tiny_denoiser(), **QUICK)
    assert all((part.pre == 1).all() for layer in plain.layers.values() for part in layer.parts)


def test_blocks_are_trained_behind_the_same_factors() -> None:
    few: dict[str, Any] = {"channel_scales": True, "steps": 2, "samples": 4}
    plain = quantize(tiny_denoiser(), method="minmax", **few)
    trained = quantize(tiny_denoiser(), method="dilatequant", iterations=1, **few)
    for name, layer in plain.layers.items():
        for mine, was in zip(trained.layers[name].parts, layer.parts, strict=True):
            np.testing.assert_array_equal(mine.pre, was.pre)


def test_another_method_refuses_the_flag(demo_model_dir: Path, tmp_path: Path) -> None:
    options = ("--method", "dmq", "--channel-scales", "--out", tmp_path / "m.pt")
    done = command("quantize", "--model", demo_model_dir, *options)
    assert done.code == 2
    assert done.err.splitlines()[-1].startswith("error: --channel-scales was given with --method dmq")
