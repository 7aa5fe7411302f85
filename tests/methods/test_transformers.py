"""Methods that train blocks do so in transformers, whose blocks take and give two streams and share angles."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dq_deploy.calibration import CalibrationSource
from dq_deploy.methods import quantize
from tests.tiny_transformers import FLUX, SD3, tiny_transformer

QUICK: dict[str, Any] = {"steps": 2, "samples": 4, "iterations": 2, "batch": 2, "weight_bits": 4}
MORE: dict[str, dict[str, Any]] = {
    "dmq": {"scaling_iterations": 2},
    "eda-dm": {"calibration_choice": "uniform"},
    "quest": {"finetune_iterations": 2},
}


@pytest.mark.parametrize(
    ("method", "config"),
    [
        pytest.param("dilatequant", FLUX, id="dilatequant"),
        pytest.param("eda-dm", SD3, id="eda-dm"),
        pytest.param("dmq", FLUX, id="dmq"),
        pytest.param("quest", SD3, id="quest"),
        pytest.param("gptq", FLUX, id="gptq"),
    ],
)
def test_a_transformer_is_quantized(method: str, config: dict[str, Any]) -> None:
    denoiser = tiny_transformer(config)
    source = CalibrationSource(kind="random")
    record = quantize(denoiser, method=method, calibration=source, **QUICK, **MORE.get(method, {}))
    blocks = [entry for entry in record.provenance["history"] if "block" in entry]
    assert any("transformer_blocks.0" in entry["block"] for entry in blocks)
    assert all(np.isfinite(entry["relative_error"]) for entry in blocks)
    if method == "quest":
        stages = [entry for entry in record.provenance["history"] if entry.get("stage") == "finetune"]
        assert min(entry["layers"] for entry in stages) > 0
