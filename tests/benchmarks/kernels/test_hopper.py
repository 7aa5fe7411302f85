"""What the installed Triton does with an int8 product on 9.0: a version that does more, or less, is seen here."""

from __future__ import annotations

import os

import pytest

pytest.importorskip("triton", reason="triton is not installed: pip install triton==3.7.1")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("TRITON_INTERPRET is set: nothing would compile", allow_module_level=True)

from benchmarks.kernels.hopper import Form, compiled


def test_descriptors_and_specialised_warps_compile_and_every_step_still_waits():
    """Operands come by tensor loads; four warps asked for become loading and multiplying ones; eight stay alike."""
    tile = {"block_m": 256, "block_n": 128, "descriptors": True}
    four = compiled(Form(**tile, warps=4, specialised=True))
    eight = compiled(Form(**tile, warps=8, specialised=True))
    assert four["tensor_loads"] > 0
    assert eight["tensor_loads"] > 0
    assert four["register_moves_between_warps"] > 0
    assert eight["register_moves_between_warps"] == 0
    assert (four["spills"], eight["spills"]) == (0, 0)
    assert four["waits_for_all"] == eight["waits_for_all"] == 1
    assert four["scratch_bytes"] > 0, "descriptors need no scratch memory any more: launches can take them"
