"""What every method makes runs with 0 differing codes and accumulators on every engine there is without a GPU."""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dq_deploy import export, quantize, save_record, verify
from dq_deploy.record import Record
from tests.tiny import tiny_denoiser

SMALL = {"block_out_channels": [8], "down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"]}
QUICK: dict[str, Any] = {
    "weight_bits": 4,
    "activation_bits": 4,
    "steps": 2,
    "samples": 4,
    "iterations": 2,
    "batch": 4,
    "scaling_iterations": 2,
    "finetune_iterations": 2,
    "outputs": False,
}
CASES: dict[str, dict[str, Any]] = {
    "minmax": {"method": "minmax"},
    "minmax under a budget": {"method": "minmax", "budget": 5.5, "activation_bits": 8},
    "mixed activations": {"method": "minmax", "activation_budget": 6, "activation_budget_widths": (4, 6, 7)},
    "gptq": {"method": "gptq", "split_skips": True},
    "dilatequant": {"method": "dilatequant"},
    "dmq": {"method": "dmq"},
    "dmq with a vote a group": {"method": "dmq", "power_of_two": "per-group", "agreement": 0.0},
    "eda-dm": {"method": "eda-dm"},
    "quest": {"method": "quest"},
}


@cache
def record_of(case: str) -> Record:
    return quantize(tiny_denoiser(**SMALL), **{**QUICK, **CASES[case]})


def record_of_all() -> Record:
    """One record whose layers come from every case in turn: what an export makes of a layer is seen for all at once.

    Every other layer has a bias row a step.
    """
    first, *_ = records = [record_of(case) for case in CASES]
    split = [record for record in records if any(len(layer.parts) == 2 for layer in record.layers.values())]
    layers = {}
    for i, name in enumerate(first.layers):
        among = split if any(len(record.layers[name].parts) == 2 for record in split) else records
        layers[name] = among[i % len(among)].layers[name]
        if i % 2:
            rows = np.random.default_rng(i).normal(0, 0.3, (first.steps, layers[name].out_channels)).astype(np.float32)
            bias = layers[name].bias
            layers[name] = dataclasses.replace(layers[name], bias=rows if bias is None else bias + rows)
    return dataclasses.replace(first, layers=layers)


def check(record: Record, path: Path) -> None:
    """Every layer compared, none different, all that the report calls integer."""
    report = verify(record, path, steps=2, inputs=1, threads=1)
    assert report.failures == ()
    assert report.max_code_difference == report.max_accumulator_difference == 0
    assert report.layers_compared == report.layers_total == len(record.layers)
    assert {layer.status for layer in report.layers} == {"exact"}


@pytest.mark.parametrize("case", CASES)
def test_the_native_engine_runs_a_record_of_every_method_exactly(case: str, tmp_path: Path) -> None:
    save_record(record_of(case), tmp_path / "model.pt")
    check(record_of(case), tmp_path / "model.pt")


@pytest.mark.parametrize("target", ["onnxruntime", "openvino", "tensorrt-rtx"])
def test_a_graph_with_layers_of_every_method_is_exact(target: str, tmp_path: Path) -> None:
    if target == "openvino":
        pytest.importorskip("openvino")
    record = record_of_all()
    assert {len(layer.parts) for layer in record.layers.values()} == {1, 2}
    export(record, tmp_path / "unet.onnx", target=target, float_type="float32")
    check(record, tmp_path / "unet.onnx")
