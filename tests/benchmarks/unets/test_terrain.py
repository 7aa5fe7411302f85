"""What the terrain benchmark says of its numbers, and its picture."""

from __future__ import annotations

import numpy as np
from PIL import Image

from benchmarks.unets.terrain import FLOAT, VARIANTS, claims, draw_picture, quality

MAPS = np.linspace(0, 1, 2 * 16 * 16, dtype=np.float32).reshape(2, 1, 16, 16)


def test_quality_is_at_peak_one():
    found = quality(MAPS, MAPS + np.array([0.1, 0.01], np.float32).reshape(2, 1, 1, 1))
    assert found["maps"] == 2
    np.testing.assert_allclose([found["psnr_db"]["mean"], found["psnr_db"]["least"]], [30, 20], atol=1e-3)


def test_claims_say_what_is_met_and_leave_out_what_was_not_measured():
    row = {
        "quality": {"psnr_db": {"mean": 39.9}},
        "files": {"largest_float_output": {"value": 1.0}, "onnx_over_codes": 1.16},
        "native_is": {FLOAT: {"speedup": 2.5}},
    }
    met = [line.split(":")[0] for line in claims(VARIANTS[0], row)]
    assert met == ["NOT MET", "met", "met", "NOT MET"]
    del row["native_is"], row["files"]["onnx_over_codes"]
    assert len(claims(VARIANTS[0], row)) == 2


def test_the_picture_has_a_row_of_maps_for_each_name(tmp_path):
    draw_picture({"float": MAPS, "w8": MAPS}, tmp_path / "maps.png", columns=2)
    with Image.open(tmp_path / "maps.png") as picture:
        assert picture.size == (100 + 2 * 20, 2 * 20)
