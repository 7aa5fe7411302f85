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
from dq_deploy.native.cuda.runner import NativeCudaRunner
from dq_deploy.native.runner import NativeRunner
from dq_deploy.errors import InputError
from tests.native.test_runner import compared, feeds_of
from tests.tiny import random_record, tiny_conditional_denoiser, tiny_denoiser, with_shared_quantizers

from dq_kernels.gpu.launch import launching

from dq_deploy.native.cuda.compiled import kernel_calls
from dq_deploy.native.cuda.executor import CudaMemory
from dq_kernels.gpu.launch.calls import key_of

unaligned, keys, started = set(), set(), launching.start

def start(calls, device):
    for call in calls:
        keys.add(key_of(call, launching.INTERPRETED_ARCHITECTURE))
        for name, value in call.arguments.items():
            if isinstance(value, torch.Tensor) and value.data_ptr() % 16:
                unaligned.add(name)
    started(calls, device)

launching.start = start

given, hand_on = set(), CudaMemory.hand_on

def counted(self, view, result):
    given.add(view.buffer)
    hand_on(self, view, result)

CudaMemory.hand_on = counted

def conditional():
    one = {"down_block_types": ["CrossAttnDownBlock2D"], "up_block_types": ["CrossAttnUpBlock2D"]}
    return tiny_conditional_denoiser(sample_size=4, block_out_channels=[8], norm_num_groups=2, **one)

def unconditional():
    two = {"down_block_types": ["DownBlock2D", "DownBlock2D"], "up_block_types": ["UpBlock2D", "UpBlock2D"]}
    return tiny_denoiser(sample_size=4, block_out_channels=[8, 8], norm_num_groups=2, downsample_padding=0, **two)

for make, bits, dtype in ((conditional, 4, "float32"), (unconditional, 8, "float16")):
    record = with_shared_quantizers(random_record(make(), weight_bits=bits))
    feeds = feeds_of(record, batch=2)
    with NativeRunner(record, threads=1) as cpu:
        want = cpu.run(feeds)["output"]
    runner = NativeCudaRunner(record, dtype=dtype, torch_device="cpu")
    got, layers, wrong = compared(record, runner, feeds)
    kept = list(runner.executor._prepared.values())
    runner.close()
    runner.close()
    refusals = 0
    for call in (lambda: runner.run(feeds), lambda: runner.observe(feeds), runner.layer_forms):
        try:
            call()
        except InputError as error:
            refusals += "closed" in str(error)
    distance = float(np.abs(got - want).max() / np.abs(want).max())
    handed = [given == {b for made in kept for b in made.memory.handed_on}, len(given)]
    handed.append(not any(made.memory._results for made in kept))
    given.clear()
    handed.append(sum("columns" in op.attributes for made in kept for op in made.memory.program.ops))
    listed = kernel_calls(record, architecture=80, batches=(2,), dtype=dtype, observed=True)
    same = {key_of(call, 80) for call in listed} == keys
    keys.clear()
    print(json.dumps([layers - len(record.layers), wrong, distance, refusals, sorted(unaligned), same, handed]))
"""


def test_gpu_program_equals_the_cpu_engine_and_the_numerics():
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}"}
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    wide, narrow = (json.loads(line) for line in done.stdout.splitlines()[-2:])
    # layers missing, values that differ, output against the CPU engine's, calls refused once it is closed, arrays that
    # are not aligned to 16 bytes (each makes another variant of a kernel, which no compiled file has), and whether the
    # kernels listed for compilation ahead of time are those that ran
    assert wide[:-1] == [0, 0, 0.0, 3, [], True]
    handed_on = wide.pop()
    # what attention makes is handed on and let go, and q, k and v are one product
    assert all(handed_on)
    assert narrow[:2] == [0, 0]
    assert narrow[4:6] == [[], True]
    assert narrow[2] < 0.2  # images in float16 move codes at ties


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_graph_on_a_gpu_gives_the_numerics_and_repeats(dtype):
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no NVIDIA GPU that torch can use")
    from dq_deploy.native.cuda.runner import NativeCudaRunner
    from tests.native.test_runner import differences, feeds_of
    from tests.tiny import random_record, tiny_denoiser

    record = random_record(tiny_denoiser())
    feeds = feeds_of(record)
    with NativeCudaRunner(record, dtype=dtype) as runner:
        assert differences(record, runner, feeds) == (len(record.layers), 0)
        first = runner.run(feeds)["output"]
        assert first.tobytes() == runner.run(feeds)["output"].tobytes()


def test_an_observed_op_flags_a_nan_as_its_own_and_an_executor_keeps_the_last_graphs_and_no_tables_once_closed():
    from dq_kernels.gpu.launch import launching

    from dq_deploy.native.cuda.executor import FLAG_PITCH, KEPT_GRAPHS, CudaExecutor
    from dq_deploy.native.runner import varying_sizes
    from dq_deploy.native.trace.traced import traced_program
    from tests.native.test_runner import feeds_of
    from tests.tiny import random_record, tiny_denoiser

    record = random_record(tiny_denoiser(sample_size=4, block_out_channels=[8, 8], norm_num_groups=2))
    executor = CudaExecutor(traced_program(record), record, device="meta", varying=varying_sizes(record))
    made = executor.prepared_at(1, executor.programs.first)
    norms = [(i, op) for i, op in enumerate(made.memory.program.ops) if op.kind == "group_norm_silu_quantize"]
    with launching.collecting(80) as calls:
        for _, op in norms:
            executor.observed_codes(op, made)[0]()
    places = [call.arguments["nan_seen"].storage_offset() for call in calls if "nan_seen" in call.arguments]
    assert places == [index * FLAG_PITCH for index, _ in norms]
    for batch in (*range(2, 3 + KEPT_GRAPHS), 3, KEPT_GRAPHS + 3):  # memory and graphs are those of the sizes used last
        executor.prepared_of(feeds_of(record, batch=batch))
    assert [batch for batch, _ in executor._prepared] == [*range(5, 3 + KEPT_GRAPHS), 3, KEPT_GRAPHS + 3]
    executor.close()
    assert [len(kept) for kept in (executor._weights, executor._quantizers, executor._scales)] == [0, 0, 0]
