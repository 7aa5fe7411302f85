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


class Peak:
    """Stands for the watch of GPU memory: what happened, in order."""

    source, peak_mib = "process", 12.0

    def __init__(self, events):
        self.events = events

    def __enter__(self):
        self.events.append("watched")
        return self

    def poll(self):
        self.events.append("looked")

    def __exit__(self, *error):
        self.events.append("let go")


@pytest.mark.parametrize("kind", ["native", "compiled"])
def test_memory_is_watched_from_before_an_engine_is_built_and_not_while_it_is_timed(kind, monkeypatch, tmp_path):
    """What is there when the watch begins is not counted: weights and the CUDA context are part of an engine."""
    import torch

    from benchmarks.unets import gpu as gpu_unets
    from dq_deploy.bench import gpu_memory
    from dq_deploy.native.cuda import runner
    from dq_deploy.record import save_record

    events = []

    class Built:
        def __init__(self, *given, **named):
            events.append("built")

        executor = property(lambda self: self)
        run = property(lambda self: lambda feeds: events.append("ran"))
        prepared_of = property(lambda self: lambda feeds: self)
        play = property(lambda self: lambda: None)

    monkeypatch.setattr(gpu_memory, "GpuPeak", lambda bus: Peak(events))
    monkeypatch.setattr(runner, "NativeCudaRunner", Built)
    monkeypatch.setattr(gpu_unets, "float_step", lambda *given: Built().play)
    monkeypatch.setattr(gpu_unets, "step_ms", lambda step, runs: events.append("timed") or 1.0)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    save_record(random_record(tiny_denoiser(**ONE_LEVEL)), tmp_path / "model.pt")
    arguments = gpu_unets.parsed(["--ckpt", str(tmp_path / "model.pt"), "--contestant", kind, "--rounds", "2"])
    row = gpu_unets.contest(arguments)
    built = ["built", "ran"] if kind == "native" else ["built"]
    assert events == ["watched", *built, "looked", "let go", "timed", "timed"]
    assert (row["peak_mib"], row["peak_source"], row["ms"]) == (12.0, "process", [1.0, 1.0])


def test_each_contestant_has_a_process_of_its_own(monkeypatch, tmp_path):
    from benchmarks.unets import gpu as gpu_unets

    asked = []

    def alone(arguments, words, limit_s=0.0):
        asked.append(words)
        return {"wrong": 0} if words == ["--gate"] else {"ms": [1.0], "peak_mib": 1.0}

    monkeypatch.setattr(gpu_unets, "alone", alone)
    monkeypatch.setattr(gpu_unets, "contest", lambda arguments: pytest.fail("contested in the process that compares"))
    arguments = gpu_unets.parsed(
        ["--ckpt", str(tmp_path / "model.pt"), "--contestant", "native", "--contestant", "fp8"]
    )
    row = gpu_unets.compare(arguments)
    own, other = (["--contestant", name, "--in-process"] for name in ("native", "fp8"))
    assert asked == [["--gate"], own, other, other, own]  # the order changes, so that a drift hits both
    assert row["contestants"]["native"]["ms"] == [1.0, 1.0]
