"""What rounding a wide layer takes is what the formula says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROUND = """
import torch
from dq_deploy.methods.second_order.rounding import SecondOrder, rounded_layer
from dq_deploy.methods.second_order.statistics import LayerStatistics, statistics_bytes
from dq_deploy.processes import own_peak_mib
from tests.methods.second_order.test_rounding import linear

torch.set_num_threads(1)
small, start = linear(8, 16)
seen = LayerStatistics(small, share=1, seed=0, outputs=True)
seen.add(torch.randn(64, 16), torch.randn(64, 8))
rounded_layer(small, start, seen, SecondOrder())  # libraries are loaded and have their own memory
prepared, start = linear(512, 3072)
before = own_peak_mib()
seen = LayerStatistics(prepared, share=1, seed=0, outputs=True)
for _ in range(3):
    seen.add(torch.randn(1024, 3072), torch.randn(1024, 512))
rounded_layer(prepared, start, seen, SecondOrder())
print(own_peak_mib() - before, statistics_bytes(prepared) / 2**20)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_peak_memory_is_the_formula_s_within_a_fifth() -> None:
    done = subprocess.run([sys.executable, "-c", ROUND], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    measured, formula = (float(word) for word in done.stdout.split())
    assert formula > 150
    assert measured == pytest.approx(formula, rel=0.2)
