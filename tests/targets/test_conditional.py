"""Text-conditioned denoisers go the whole way: calibrated, saved, exported, and proven exact."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from safetensors.numpy import load_file, save_file

from dq_deploy import export, load_record, open_engine, quantize, save_record, verify
from dq_deploy.graph.onnx_file import read_manifest, write_onnx
from dq_deploy.models import call_denoiser, call_of_record, denoiser_from_record, example_inputs
from dq_deploy.record import Record
from dq_deploy.simulation.fake_quant import simulate
from tests.cli.running import command
from tests.tiny import ONE_TEXT_LEVEL, tiny_conditional_denoiser


@dataclass(frozen=True, kw_only=True)
class Files:
    """A record of a tiny conditional model by `minmax`, and its engine."""

    ckpt: Path
    engine: Path


@pytest.fixture(scope="module", params=[False, True], ids=["sd", "sdxl"])
def files(request, tmp_path_factory) -> Files:
    folder = tmp_path_factory.mktemp("conditional")
    ckpt, engine = folder / "unet.pt", folder / "unet.onnx"
    denoiser = tiny_conditional_denoiser(sdxl=request.param, **ONE_TEXT_LEVEL)
    save_record(quantize(denoiser, method="minmax", steps=3, samples=4), ckpt)
    export(load_record(ckpt), engine)
    return Files(ckpt=ckpt, engine=engine)


def test_every_layer_of_the_engine_is_exact(files):
    ckpt, engine = files.ckpt, files.engine
    record = load_record(ckpt)
    report = verify(record, engine, threads=1, steps=2, inputs=1)
    assert report.failures == ()
    assert report.max_code_difference == report.max_accumulator_difference == 0
    assert report.layers_compared == report.layers_total == len(record.layers)
    assert report.float_path_difference < 1e-5
    assert "add_embedding.linear_1" not in record.layers
    kept = {name for name in record.float_parameters if name.endswith("linear_1.weight")}
    assert {name.split(".")[0] for name in kept} <= {"time_embedding", "add_embedding"}


def test_the_engine_takes_the_inputs_the_manifest_names(files):
    ckpt, engine = files.ckpt, files.engine
    record = load_record(ckpt)
    names = list(example_inputs(call_of_record(record), 1, 0))
    assert [tensor.name for tensor in read_manifest(engine).inputs] == names
    with open_engine(engine, threads=1) as runner:
        assert [spec.name for spec in runner.inputs] == names
        for batch in (1, 3):
            feeds = example_inputs(call_of_record(record), batch, 4)
            output = runner.run(feeds)["output"]
            with torch.inference_mode():
                tensors = {name: torch.from_numpy(value) for name, value in feeds.items()}
                expected = call_denoiser(simulate(record), tensors).numpy()
                plain = call_denoiser(denoiser_from_record(record), tensors).numpy()
            assert np.abs(output - expected).max() < 0.2 * np.abs(expected - plain).max()


def test_weights_beside_the_model_are_the_same_engine(files, tmp_path):
    path = tmp_path / "unet.onnx"
    write_onnx(ir.load(files.engine), path, read_manifest(files.engine), external_above=1000)
    assert (tmp_path / "unet.onnx.data").stat().st_size > 5_000
    assert path.stat().st_size < files.engine.stat().st_size
    feeds = example_inputs(call_of_record(load_record(files.ckpt)), 2, 0)
    with open_engine(files.engine, threads=1) as inside, open_engine(path, threads=1) as beside:
        np.testing.assert_array_equal(inside.run(feeds)["output"], beside.run(feeds)["output"])


def test_dq_sample_writes_latents_and_refuses_a_picture_of_them(files, tmp_path):
    ckpt, engine = files.ckpt, files.engine
    record = load_record(ckpt)
    refused = command("sample", "--engine", engine, "--out", tmp_path / "x.png")
    assert refused.code == 2
    assert (
        "latents of 4 channels, which x.png cannot show; give the pipeline's folder as --model and --prompt"
        in refused.err
    )
    out = tmp_path / "x.safetensors"
    done = command("sample", "--engine", engine, "--count", 2, "--steps", 3, "--out", out)
    assert done.code == 0, done.err
    assert "the embeddings are random and stand for no text" in done.err
    random = load_file(out)["engine"]
    assert random.shape == (2, 4, 8, 8)
    assert not (tmp_path / "x.png").exists()
    given = example_inputs(call_of_record(record), 1, 0)
    given.pop("sample"), given.pop("timestep")
    save_file(given, tmp_path / "c.safetensors")
    arguments = ("--engine", engine, "--count", 2, "--steps", 3, "--out", out)
    done = command("sample", *arguments, "--conditions", tmp_path / "c.safetensors")
    assert done.code == 0, done.err
    assert "random" not in done.err
    assert "warning: --conditions has 1 row for 2 images: they are used again in turn" in done.err
    assert not np.array_equal(load_file(out)["engine"], random)


def test_dq_info_shows_the_family(files):
    for path in (files.ckpt, files.engine):
        done = command("info", path)
        assert done.code == 0
        assert "unet2d_condition" in done.out


def test_float_ranges_cover_the_modules_between_the_layers(files):
    record: Record = load_record(files.ckpt)
    for name in (
        "up_blocks.0.attentions.0.norm",
        "up_blocks.0.attentions.0.transformer_blocks.0",
        "conv_act",
        "conv_in",
    ):
        assert record.float_ranges[name] > 0
