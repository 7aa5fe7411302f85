"""A pipeline's folder for Optimum: every file where Optimum looks, every graph with its names, and whole or not there.

What Optimum itself draws is in test_optimum_packages.py.
"""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch

pytest.importorskip("transformers")

from dq_deploy import IntegerDenoiser, load_record, save_record
from dq_deploy.errors import FileProblemError, ModelError, OptionError, SchedulerWarning
from dq_deploy.models.pipeline import open_pipeline
from dq_deploy.pipelines.layouts import optimum, write_optimum_folder
from tests.cli.running import command
from tests.pipelines.layouts.tiny_folders import tiny_folder
from tests.tiny import random_record, tiny_conditional_denoiser, tiny_denoiser


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_folder("sd", tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def done(tiny):
    """The command's run; its folder is `out` beside the pipeline."""
    out, summary = tiny.record.with_name("out"), tiny.record.with_name("summary.json")
    arguments = ("--ckpt", tiny.record, "--model", tiny.pipeline, "--out", out, "--json", summary)
    return command("export", *arguments, "--layout", "optimum")


@pytest.fixture(scope="module")
def out(tiny, done):
    assert done.code == 0, done.err
    return tiny.record.with_name("out")


def names(session):
    inputs = {value.name: (value.type, value.shape) for value in session.get_inputs()}
    return inputs, {value.name: value.shape for value in session.get_outputs()}


def test_every_file_lies_where_optimum_looks(out, tiny):
    files = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    graphs = {f"{part}/model.onnx" for part in ("unet", "text_encoder", "vae_decoder", "vae_encoder")}
    configs = {graph.replace("model.onnx", "config.json") for graph in graphs}
    tokenizer = {
        f"tokenizer/{name}" for name in ("vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json")
    }
    rest = {"model_index.json", "scheduler/scheduler_config.json", "unet/model.onnx.json"}
    assert files == graphs | configs | tokenizer | rest
    index = json.loads((out / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionPipeline"
    assert index["unet"] == ["diffusers", "UNet2DConditionModel"]
    assert index["scheduler"] == ["diffusers", load_record(tiny.record).scheduler_config["_class_name"]]
    assert json.loads((out / "unet/config.json").read_text())["time_cond_proj_dim"] is None
    assert not [path for path in out.rglob("*.onnx") if b".py" in path.read_bytes()]  # the tracer's own paths


def test_graphs_have_the_names_and_shapes_that_optimum_reads(out):
    wanted = {
        "text_encoder": ("input_ids", "tensor(int64)", ["last_hidden_state", "pooler_output"]),
        "vae_decoder": ("latent_sample", "tensor(float)", ["sample"]),
        "vae_encoder": ("sample", "tensor(float)", ["latent_parameters"]),
    }
    for part, (name, kind, outputs) in wanted.items():
        inputs, found = names(onnxruntime.InferenceSession(out / part / "model.onnx"))
        assert {key: value[0] for key, value in inputs.items()} == {name: kind}
        assert list(found) == outputs
    assert found["latent_parameters"] == ["batch_size", 8, "sample_height / 2", "sample_width / 2"]
    inputs, found = names(onnxruntime.InferenceSession(out / "unet" / "model.onnx"))
    assert list(inputs) == ["sample", "timestep", "encoder_hidden_states"]
    assert inputs["timestep"] == ("tensor(float)", [None])
    assert list(found) == ["out_sample"]


def test_float_parts_compute_what_torch_computes_in_any_size(out, tiny):
    pipeline = open_pipeline(tiny.pipeline, denoiser=torch.nn.Identity())

    def ran(part, value):
        return onnxruntime.InferenceSession(out / part / "model.onnx").run(None, value)

    with torch.no_grad():
        for length in (77, 5):
            ids = torch.randint(0, 70, (3, length))
            want = pipeline.text_encoder(ids)
            got = ran("text_encoder", {"input_ids": ids.numpy()})
            np.testing.assert_allclose(got[0], want.last_hidden_state, atol=2e-5)
            np.testing.assert_allclose(got[1], want.pooler_output, atol=2e-5)
        latents, pictures = torch.randn(1, 4, 5, 9), torch.randn(3, 3, 10, 16)
        got = ran("vae_decoder", {"latent_sample": latents.numpy()})[0]
        np.testing.assert_allclose(got, pipeline.vae.decode(latents).sample, atol=2e-5)
        got = ran("vae_encoder", {"sample": pictures.numpy()})[0]
        np.testing.assert_allclose(got, pipeline.vae.encode(pictures).latent_dist.parameters, atol=2e-5)


def test_the_denoiser_runs_in_our_own_pipeline_too(out, tiny):
    unet = IntegerDenoiser(out / "unet" / "model.onnx", threads=1)
    pipeline = open_pipeline(tiny.pipeline, denoiser=unet)
    tensors = {name: torch.from_numpy(value) for name, value in tiny.tensors.items()}
    images = pipeline(**tensors, **tiny.settings, output_type="latent").images
    assert images.shape == (2, 4, 8, 8)
    assert unet.calls >= 3


def test_the_command_says_what_it_wrote_and_how_it_is_opened(done, out, tiny):
    assert f'load it with: optimum.onnxruntime.ORTDiffusionPipeline.from_pretrained("{out}")' in done.out
    assert "in float: text_encoder, vae_decoder, vae_encoder" in done.out
    values = json.loads(tiny.record.with_name("summary.json").read_text())
    assert values["float_parts"] == ["text_encoder", "vae_decoder", "vae_encoder"]
    assert values["options"] == {"target": "onnxruntime", "mode": "exact", "layout": "optimum"}


def test_a_command_that_is_given_the_folder_says_which_file_is_meant(out, tiny):
    for done in (command("info", out), command("verify", "--engine", out, "--ckpt", tiny.record)):
        assert done.code == 2
        assert f"its denoiser is meant: give {out}/unet/model.onnx" in done.err


def test_a_folder_with_files_in_it_is_refused_and_stays_as_it_is(tiny, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(FileProblemError, match="is a folder with files in it, expected a new one"):
        write_optimum_folder(load_record(tiny.record), tiny.pipeline, tmp_path / "out")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "mine.txt"]


def test_nothing_is_left_of_a_folder_whose_last_part_fails(tiny, tmp_path, monkeypatch):
    def failing(*arguments, **options):
        raise ModelError("torch could not trace it")

    monkeypatch.setattr(optimum, "_write_denoiser", lambda record, folder, *rest, **options: folder.mkdir())
    monkeypatch.setattr(optimum, "_write_part", failing)
    with pytest.raises(ModelError, match="could not trace"):
        write_optimum_folder(load_record(tiny.record), tiny.pipeline, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_record_of_another_model_or_of_a_lone_denoiser_is_refused_by_name(tiny, tmp_path):
    other = random_record(tiny_conditional_denoiser())
    with pytest.raises(OptionError, match="has block_out_channels"):
        write_optimum_folder(other, tiny.pipeline, tmp_path / "out")
    with pytest.raises(OptionError, match="is the folder of a denoiser alone, expected a pipeline's"):
        write_optimum_folder(other, tiny.pipeline / "unet", tmp_path / "out")


def test_layout_and_model_go_together(tiny, tmp_path):
    save_record(random_record(tiny_denoiser()), tmp_path / "other.pt")
    alone = command("export", "--ckpt", tmp_path / "other.pt", "--layout", "optimum", "--out", tmp_path / "out")
    assert (alone.code, "expected its folder as --model" in alone.err) == (2, True)
    without = command("export", "--ckpt", tiny.record, "--model", tiny.pipeline, "--out", tmp_path / "unet.onnx")
    assert (without.code, "go with --layout" in without.err) == (2, True)


def test_a_scheduler_that_differs_from_the_records_is_refused_or_said(tiny, tmp_path, monkeypatch):
    record = load_record(tiny.record)
    other = replace(record, scheduler_config={**record.scheduler_config, "beta_end": 0.5})
    with pytest.raises(OptionError, match=r"has beta_end 0\.012, expected 0\.5 as the record was calibrated with"):
        write_optimum_folder(other, tiny.pipeline, tmp_path / "out")
    monkeypatch.setattr(optimum, "plan_folder", lambda *_: 1 / 0)  # what comes behind the check
    other = replace(record, scheduler_config={**record.scheduler_config, "timestep_spacing": "trailing"})
    words = r"timestep_spacing 'leading', .* 'trailing', which counts; edit .*/out/scheduler/scheduler_config.json"
    with pytest.warns(SchedulerWarning, match=words), pytest.raises(ZeroDivisionError):
        write_optimum_folder(other, tiny.pipeline, tmp_path / "out")
