"""Rules for the machine code of the GPU kernels, and a file of what it is made of: a change there is looked at."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("triton", reason="triton is not installed: pip install triton==3.7.1")

from tests.kernels.gpu.ahead_of_time.golden import FILE, KERNELS, measured

GOLDEN = json.loads(FILE.read_text(encoding="utf-8"))
MOST_FLOAT64 = 6
"""Operations of a deviation that are always done, once a row or group; those of rare ties stand behind a branch."""


@pytest.fixture(scope="module")
def code():
    return {name: measured(name) for name in KERNELS}


@pytest.mark.parametrize("name", KERNELS)
def test_machine_code_keeps_the_rules(name, code):
    found = code[name]
    assert found["wide_conversions"] == 0
    assert found["float64_always"] <= MOST_FLOAT64
    assert (found["spills"], found["local_bytes"]) == (0, 0)
    if KERNELS[name][3]:
        wanted = "IGMMA" if KERNELS[name][2] == 90 else "IMMA"
        assert [product.split(".")[0] for product in found["products"]] == [wanted]
        assert found["float64"] == 0
    if "split, sums" in name:
        assert found["copies_ahead"] > 0, "the next rows are not copied while these are summed"


@pytest.mark.parametrize("name", KERNELS)
def test_machine_code_is_what_was_looked_at(name, code):
    """Meant changes: `python -m tests.kernels.gpu.ahead_of_time.golden`.

    On 9.0 Triton 3.7.1 waits for all matrix instructions in each step of an integer product (`idle_waits`), whichever
    operand comes first: it is written down, so that a version that does not is seen.
    """
    assert code[name] == GOLDEN[name]
