"""The GPU path of the native engine, its kernels interpreted on the CPU: the numerics bit for bit, in every type."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed")

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = """
import json, sys
import numpy as np, torch
torch.set_num_threads(1)
from dq_deploy.engines.native.cuda_runner import NativeCudaRunner
from dq_deploy.engines.native.runner import NativeRunner
from tests.engines.native.test_runner import compared, feeds_of
from tests.tiny import random_record, tiny_conditional_denoiser, tiny_denoiser

kind, bits = sys.argv[1], int(sys.argv[2])
if kind == "conditional":
    one = {"down_block_types": ["CrossAttnDownBlock2D"], "up_block_types": ["CrossAttnUpBlock2D"]}
    denoiser = tiny_conditional_denoiser(sample_size=4, block_out_channels=[8], **one)
else:
    two = {"down_block_types": ["DownBlock2D", "DownBlock2D"], "up_block_types": ["UpBlock2D", "UpBlock2D"]}
    denoiser = tiny_denoiser(sample_size=4, block_out_channels=[8, 8], downsample_padding=0, **two)
record = random_record(denoiser, weight_bits=bits)
feeds = feeds_of(record, batch=2)
found = {}
with NativeRunner(record, threads=1) as cpu:
    want = cpu.run(feeds)["output"]
for dtype in sys.argv[3:]:
    runner = NativeCudaRunner(record, dtype=dtype, torch_device="cpu")
    got, layers, wrong = compared(record, runner, feeds)
    found[dtype] = [layers - len(record.layers), wrong, float(np.abs(got - want).max() / np.abs(want).max())]
print(json.dumps(found))
"""


@pytest.mark.parametrize(
    ("kind", "bits", "dtype"),
    [("unconditional", 8, "float16"), ("conditional", 4, "float32")],
)
def test_gpu_program_equals_the_cpu_engine_and_the_numerics(kind, bits, dtype):
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", SCRIPT, kind, str(bits), dtype]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    missing, wrong, distance = json.loads(done.stdout.splitlines()[-1])[dtype]
    assert (missing, wrong) == (0, 0)
    # images in float16 move codes at ties; in float32 the two engines are the same function
    assert distance == 0 if dtype == "float32" else distance < 0.2


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_graph_on_a_gpu_gives_the_numerics_and_repeats(dtype):
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no NVIDIA GPU that torch can use")
    from dq_deploy.engines.native.cuda_runner import NativeCudaRunner
    from tests.engines.native.test_runner import differences, feeds_of
    from tests.tiny import random_record, tiny_denoiser

    record = random_record(tiny_denoiser())
    feeds = feeds_of(record)
    with NativeCudaRunner(record, dtype=dtype) as runner:
        assert differences(record, runner, feeds) == (len(record.layers), 0)
        first = runner.run(feeds)["output"]
        assert first.tobytes() == runner.run(feeds)["output"].tobytes()
