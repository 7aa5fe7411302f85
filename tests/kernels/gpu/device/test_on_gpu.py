"""The statistics of norms compiled, with the branch in float64 that the interpreter does not read: needs a GPU."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed: pip install triton==3.7.1")

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")]


@pytest.mark.parametrize("count", [1, 320, 40960, 1 << 22])
def test_compiled_statistics_are_what_float64_gives(count):
    from tests.kernels.gpu.device.sums import wrong_statistics

    assert wrong_statistics(count, "cuda") == 0
