"""The native engine computes the record: every code, every sum, every output, for every kind of denoiser."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from dq_kernels.cpu.library import known_isas
from dq_kernels.cpu.structs import EMULATED

from dq_deploy.errors import InputError, OptionError
from dq_deploy.models import Denoiser, call_denoiser, call_of_record, example_inputs
from dq_deploy.native.runner import NativeRunner, RecordRunner
from dq_deploy.native.trace.traced import traced_program
from dq_deploy.numerics import integer_layer, step_bucket
from dq_deploy.open_engine import open_engine
from dq_deploy.record import Record, save_record
from dq_deploy.simulation.fake_quant import simulate
from tests.tiny import random_record, tiny_conditional_denoiser, tiny_denoiser

DENOISERS = {
    "unconditional": lambda: tiny_denoiser(),
    "classes": lambda: tiny_denoiser(classes=4),
    "downsampling by padding": lambda: tiny_denoiser(downsample_padding=0),
    "scale and shift by time": lambda: tiny_denoiser(resnet_time_scale_shift="scale_shift"),
    "odd channels": lambda: tiny_denoiser(in_channels=3, out_channels=3, block_out_channels=[12, 20]),
    "no attention": lambda: tiny_denoiser(
        down_block_types=["DownBlock2D", "DownBlock2D"], up_block_types=["UpBlock2D", "UpBlock2D"]
    ),
    "resampling by residual blocks": lambda: tiny_denoiser(downsample_type="resnet", upsample_type="resnet"),
    "output scaled down": lambda: tiny_denoiser(mid_block_scale_factor=1.4142),
    "stable diffusion": lambda: tiny_conditional_denoiser(),
    "linear projection": lambda: tiny_conditional_denoiser(use_linear_projection=True),
    "sdxl": lambda: tiny_conditional_denoiser(sdxl=True),
}


def feeds_of(record: Record, batch: int = 3, seed: int = 0) -> dict[str, np.ndarray]:
    """Inputs whose samples stand at different steps."""
    feeds = example_inputs(call_of_record(record), batch, seed)
    feeds["timestep"][:] = np.linspace(3, 900, batch)
    return feeds


def compared(record: Record, runner: RecordRunner, feeds: dict[str, np.ndarray]) -> tuple[np.ndarray, int, int]:
    """Output, number of layers seen, and of codes, accumulators and layer outputs that are not the numerics'."""
    outputs, layers = runner.observe(feeds)
    step = step_bucket(feeds["timestep"], record.step_edges)
    wrong = 0
    for name, seen in layers.items():
        layer = record.layers[name]
        x = np.concatenate(seen.inputs, axis=1 if layer.kind == "conv2d" else -1)
        want = integer_layer(layer, x, step)
        pairs = [*zip(want.codes, seen.codes, strict=True), *zip(want.accumulators, seen.accumulators, strict=True)]
        wrong += sum(int((a != b).sum()) for a, b in (*pairs, (want.output, seen.output)))
    return outputs["output"], len(layers), wrong


def differences(record: Record, runner: RecordRunner, feeds: dict[str, np.ndarray]) -> tuple[int, int]:
    """Number of layers seen, and of values that are not the numerics'."""
    return compared(record, runner, feeds)[1:]


def torch_output(record: Record, feeds: dict[str, np.ndarray]) -> np.ndarray:
    return call_denoiser(simulate(record), {name: torch.from_numpy(v) for name, v in feeds.items()}).numpy()


@pytest.mark.parametrize("kind", DENOISERS)
def test_every_layer_equals_the_numerics_bit_for_bit(kind):
    denoiser: Denoiser = DENOISERS[kind]()
    record = random_record(denoiser)
    feeds = feeds_of(record)
    with NativeRunner(record, threads=1) as runner:
        layers, wrong = differences(record, runner, feeds)
        output = runner.run(feeds)["output"]
    assert (layers, wrong) == (len(record.layers), 0)
    want = torch_output(record, feeds)
    # codes at ties may flip where torch's norms differ in their last bit
    assert np.abs(output - want).max() <= 2e-3 * np.abs(want).max()


@pytest.mark.parametrize(("weight_bits", "activation_bits"), [(4, 8), (8, 8), (6, 6), (4, 4)])
def test_every_instruction_set_gives_the_same_bits(weight_bits, activation_bits, monkeypatch):
    record = random_record(tiny_denoiser(), weight_bits=weight_bits, activation_bits=activation_bits)
    feeds = feeds_of(record)
    joined = traced_program(record)
    monkeypatch.setattr("dq_deploy.native.runner.traced_program", lambda _record: joined)
    with NativeRunner(record, threads=1, isa="portable") as plain:
        want = plain.run(feeds)["output"]
    for isa in (*known_isas(), EMULATED):
        with NativeRunner(record, threads=2, isa=isa) as runner:
            assert runner.run(feeds)["output"].tobytes() == want.tobytes(), isa
            assert differences(record, runner, feeds)[1] == 0, isa


def test_attention_in_bfloat16_is_near_float32_and_said():
    record = random_record(tiny_conditional_denoiser())
    feeds = feeds_of(record)
    with NativeRunner(record, threads=1) as wide, NativeRunner(record, threads=1, attention="bf16") as narrow:
        want, got = wide.run(feeds)["output"], narrow.run(feeds)["output"]
        assert (wide.runs_on.attention, narrow.runs_on.attention) == ("float32", "bf16")
        assert narrow.runs_on.attention_form == narrow.executor.context.attention_form("bf16")
    assert got.tobytes() != want.tobytes()
    assert np.abs(got - want).max() <= 0.05 * np.abs(want).max()


def test_a_mixed_batch_equals_its_samples_one_by_one():
    record = random_record(tiny_denoiser(classes=3))
    feeds = feeds_of(record, batch=5)
    with NativeRunner(record) as runner:
        together = runner.run(feeds)["output"]
        alone = [runner.run({n: v[i : i + 1].copy() for n, v in feeds.items()})["output"] for i in range(5)]
    assert np.concatenate(alone).tobytes() == together.tobytes()


def test_probing_changes_no_output():
    record = random_record(tiny_conditional_denoiser())
    feeds = feeds_of(record)
    with NativeRunner(record) as runner:
        before = runner.run(feeds)["output"]
        probed, _ = runner.observe(feeds)
        assert probed["output"].tobytes() == before.tobytes() == runner.run(feeds)["output"].tobytes()


def test_a_record_file_opens_as_an_engine_and_loads_no_torch(tmp_path):
    path = tmp_path / "model.pt"
    record = random_record(tiny_denoiser())
    save_record(record, path)
    feeds = feeds_of(record)
    np.savez(tmp_path / "feeds.npz", **feeds)
    script = (
        "import sys, numpy as np; from dq_deploy.open_engine import open_engine\n"
        f"runner = open_engine({str(path)!r}, threads=1)\n"
        f"feeds = dict(np.load({str(tmp_path / 'feeds.npz')!r}))\n"
        f"np.save({str(tmp_path / 'out.npy')!r}, runner.run(feeds)['output'])\n"
        "print([name for name in ('torch', 'diffusers', 'onnxruntime') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    with NativeRunner(record) as runner:
        assert np.load(tmp_path / "out.npy").tobytes() == runner.run(feeds)["output"].tobytes()


def test_options_that_do_not_fit_are_refused(tmp_path):
    path = tmp_path / "model.pt"
    save_record(random_record(tiny_denoiser()), path)
    with pytest.raises(OptionError, match="is a record, which the engine native runs"):
        open_engine(path, engine="onnxruntime")
    with pytest.raises(OptionError, match="has no graph to write"):
        open_engine(path, optimized_model_path=tmp_path / "graph.onnx")
    with pytest.raises(OptionError, match="engine native runs records"):
        open_engine(tmp_path / "model.onnx", engine="native")
    with pytest.raises(OptionError, match="threads is 0"):
        open_engine(path, threads=0)
    with pytest.raises(InputError, match="instruction set is 'avx1024'"):
        NativeRunner(path, isa="avx1024")


def test_inputs_of_another_shape_or_type_are_refused():
    record = random_record(tiny_denoiser())
    feeds = feeds_of(record)
    with NativeRunner(record) as runner:
        with pytest.raises(InputError, match="expected a numpy array of float32"):
            runner.run(feeds | {"sample": feeds["sample"].astype(np.float64)})
        with pytest.raises(InputError, match="has shape"):
            runner.run(feeds | {"sample": feeds["sample"].repeat(2, 1)})
        with pytest.raises(InputError, match="holds nan"):
            runner.run(feeds | {"sample": np.full_like(feeds["sample"], np.nan)})


def test_a_size_that_the_denoiser_cannot_take_is_one_error_and_no_log(caplog: pytest.LogCaptureFixture) -> None:
    record = random_record(tiny_denoiser())
    feeds = feeds_of(record, 1)
    feeds["sample"] = np.zeros((1, 1, 7, 9), np.float32)
    with NativeRunner(record) as runner, pytest.raises(InputError, match="cannot be computed at"):
        runner.run(feeds)
    assert not [entry for entry in caplog.records if entry.levelname == "ERROR"]
