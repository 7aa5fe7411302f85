"""The comparison on a GPU: without one it says so; its gate finds a wrong layer in the CPU's engine too."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dq_deploy.models import call_of_record, example_inputs
from dq_deploy.native.runner import NativeRunner
from tests.tiny import ONE_LEVEL, random_record, tiny_denoiser


def test_without_a_gpu_it_says_so_and_exits_2(monkeypatch, capsys, tmp_path):
    from benchmarks.unets import gpu as gpu_unets
    from dq_deploy.native import devices

    monkeypatch.setattr(devices, "gpu_problem", lambda: "there is no NVIDIA driver")
    monkeypatch.setattr("sys.argv", ["gpu_unets.py", "--ckpt", str(tmp_path / "model.pt")])
    assert gpu_unets.main() == 2
    assert "device is cuda, but there is no NVIDIA driver" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [False, True])
def test_the_gate_finds_one_wrong_weight(wrong):
    from benchmarks.unets.gpu import wrong_values

    record = random_record(tiny_denoiser(**ONE_LEVEL))
    other = record
    if wrong:
        layer = record.layers["conv_out"]
        code = layer.parts[0].w_code.copy()
        code.flat[0] = 1 if code.flat[0] != 1 else 2
        changed = replace(layer, parts=(replace(layer.parts[0], w_code=code),))
        other = replace(record, layers={**record.layers, "conv_out": changed})
    feeds = example_inputs(call_of_record(record), 2, 0)
    with NativeRunner(other, threads=1) as runner:
        assert (wrong_values(record, runner, feeds) > 0) is wrong
