"""A bias row a step: every engine adds the row of each sample's step, and the proof compares it bit for bit."""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dq_deploy import export, open_engine, save_record, verify, write_program_file
from dq_deploy.numerics import integer_layer
from dq_deploy.numerics.codes import requantize_accumulator
from dq_deploy.record import Layer, Part, Record, load_record
from dq_deploy.simulation.fake_quant import IntegerLayer, StepContext
from tests.tiny import random_record, tiny_denoiser

SMALL = {"block_out_channels": [8], "down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"]}
STEPS = 3


def halves(layer: Layer) -> tuple[Part, ...]:
    """The one part of a layer as two along its input channels."""
    part = layer.parts[0]
    half = len(part.pre) // 2
    return tuple(
        dataclasses.replace(part, pre=part.pre[cut], w_code=np.ascontiguousarray(part.w_code[:, :, cut]))
        for cut in (slice(None, half), slice(half, None))
    )


@cache
def record_by_step() -> Record:
    """Every bias differs by step; some layers have one quantizer for all steps, some two parts, one no float bias."""
    record = random_record(tiny_denoiser(**SMALL), steps=STEPS)
    rng = np.random.default_rng(5)
    layers = {}
    for i, (name, layer) in enumerate(record.layers.items()):
        rows = rng.normal(0, 0.3, (STEPS, layer.out_channels)).astype(np.float32)
        changed: dict[str, Any] = {"bias": rows if layer.bias is None else layer.bias + rows}
        if i % 3 == 1:
            part = layer.parts[0]
            static = dataclasses.replace(part, scale=part.scale[:1], zero_point=part.zero_point[:1])
            changed["parts"] = (static,)
        elif i % 3 == 2 and layer.in_channels > 1:
            changed["parts"] = halves(layer)
        layers[name] = dataclasses.replace(layer, **changed)
    return dataclasses.replace(record, layers=layers)


def check(record: Record, path: Path, **how: Any) -> None:
    report = verify(record, path, steps=STEPS, inputs=1, threads=1, **how)
    assert report.failures == ()
    assert report.max_code_difference == report.max_accumulator_difference == 0
    assert {layer.status for layer in report.layers} == {"exact"}


def test_the_native_engine_and_its_program_file_are_exact(tmp_path: Path) -> None:
    record = record_by_step()
    save_record(record, tmp_path / "model.pt")
    again = load_record(tmp_path / "model.pt")
    assert all(np.array_equal(again.layers[n].bias, own.bias) for n, own in record.layers.items())
    check(again, tmp_path / "model.pt")
    write_program_file(record, tmp_path / "model.dqn")
    check(record, tmp_path / "model.dqn")


def feeds(timestep: float, seed: int = 0) -> dict[str, Any]:
    sample = np.random.default_rng(seed).normal(0, 1, (1, 1, 8, 8)).astype(np.float32)
    return {"sample": sample, "timestep": np.array([timestep], np.float32)}


def test_a_layer_that_stays_float_takes_the_row_of_the_step_too(tmp_path: Path) -> None:
    whole = random_record(tiny_denoiser(**SMALL), steps=STEPS)
    own = whole.layers["conv_in"]
    part = own.parts[0]
    spread = dataclasses.replace(part, zero_point=np.array([-3, 5, 9], np.int32))
    rows = np.random.default_rng(2).normal(0, 1, (STEPS, own.out_channels)).astype(np.float32)
    kept = dataclasses.replace(own, q_min=-128, q_max=127, parts=(spread,))
    results = []
    for bias in (rows, *rows):
        record = dataclasses.replace(whole, layers={**whole.layers, "conv_in": dataclasses.replace(kept, bias=bias)})
        path = tmp_path / f"{len(results)}.onnx"
        export(record, path, target="onnxruntime", float_type="float32")
        with open_engine(path, threads=1) as engine:
            results.append([engine.run(feeds(t)) for t in whole.timesteps])
    for t in range(STEPS):
        for name, value in results[0][t].items():
            np.testing.assert_allclose(value, results[1 + t][t][name], rtol=1e-4, atol=1e-4)
            assert not np.allclose(value, results[1 + (t + 1) % STEPS][t][name], atol=1e-3)


def test_mode_fast_requantizes_with_the_row_of_the_step(tmp_path: Path) -> None:
    record = record_by_step()
    export(record, tmp_path / "fast.onnx", target="onnxruntime", mode="fast", float_type="float32")
    report = verify(record, tmp_path / "fast.onnx", steps=STEPS, inputs=1, threads=1)
    cells = [cell for layer in report.layers for cell in layer.steps]
    assert sum(cell.output_codes_compared for cell in cells) > 0
    assert max(cell.max_output_code_difference for cell in cells) <= 1


def test_codes_of_mode_fast_take_the_row_of_each_sample() -> None:
    rng = np.random.default_rng(0)
    total = rng.integers(-3000, 3000, (3, 4, 2, 2)).astype(np.int32)
    bias = rng.normal(0, 5, (STEPS, 4)).astype(np.float32)
    tables = {
        "scale": np.full(1, 0.02, np.float32),
        "weight_scale": rng.uniform(0.01, 0.1, 4).astype(np.float32),
        "out_scale": np.full(1, 0.1, np.float32),
        "out_zero_point": np.full(1, 100, np.int32),
    }
    step = np.array([2, 0, 1])
    found = requantize_accumulator(total, bias=bias, step=step, **tables)
    for i, t in enumerate(step):
        one = requantize_accumulator(total[i : i + 1], bias=bias[t], step=step[i : i + 1], **tables)
        np.testing.assert_array_equal(found[i : i + 1], one)


def test_the_simulation_is_the_equation() -> None:
    rng = np.random.default_rng(1)
    step = np.array([2, 0, 1, 1])
    for name in ("conv_in", "down_blocks.0.resnets.0.conv1", "down_blocks.0.resnets.0.time_emb_proj"):
        layer = record_by_step().layers[name]
        shape = (4, layer.in_channels, 6, 5) if layer.kind == "conv2d" else (4, layer.in_channels)
        x = rng.normal(0, 2, shape).astype(np.float32)
        context = StepContext()
        context.step = torch.from_numpy(step)
        found = IntegerLayer(layer, context)(torch.from_numpy(x)).numpy()
        np.testing.assert_array_equal(found, integer_layer(layer, x, step).output)
        assert isinstance(layer, Layer)
