"""The commands take a pipeline with several denoisers, and a file of weights, and say in flags what is missing."""

from __future__ import annotations

import json
import shutil

import pytest

from dq_deploy.record import load_record
from dq_deploy.verify.output.float_source import recorded_float_model
from tests.cli.running import command
from tests.pipelines.tiny_pipelines import tiny_text_pipeline
from tests.tiny import ONE_LEVEL, tiny_denoiser

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipe")
    for name in ("prior", "unet"):
        tiny_denoiser(**ONE_LEVEL).module.save_pretrained(folder / name)
    entry = ["diffusers", "UNet2DModel"]
    (folder / "model_index.json").write_text(json.dumps({"prior": entry, "unet": entry}))
    return folder


def test_a_component_is_asked_for_and_taken(pipeline):
    done = command("quantize", "--model", pipeline, "--list-layers")
    assert (done.code, done.out) == (2, "")
    assert done.err.count("\n") == 1
    assert "has 2 denoisers, prior, unet; say which one is meant with --component" in done.err
    done = command("quantize", "--model", pipeline, "--list-layers", "--component", "prior")
    assert done.code == 0
    assert "conv_in" in done.out


def test_a_file_is_taken_with_the_folder_of_its_configuration(pipeline, tmp_path):
    file = shutil.copy(pipeline / "unet" / WEIGHTS, tmp_path / "one.safetensors")
    done = command("quantize", "--model", file, "--list-layers")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "give as --config a folder with the config.json of its denoiser" in done.err
    done = command("quantize", "--model", file, "--list-layers", "--config", pipeline / "unet")
    assert done.code == 0
    assert "conv_in" in done.out


def test_a_single_file_is_calibrated_by_the_pipeline_of_its_configuration(tmp_path):
    like = tmp_path / "like"
    tiny_text_pipeline().save_pretrained(like)
    file = shutil.move(like / "unet" / WEIGHTS, tmp_path / "one.safetensors")
    (tmp_path / "prompts.txt").write_text("a cat\n")
    small = ("--method", "minmax", "--steps", 1, "--samples", 1, "--prompts", tmp_path / "prompts.txt")
    done = command("quantize", "--model", file, "--config", like, *small, "--out", tmp_path / "m.pt")
    assert done.code == 0, done.err
    record = load_record(tmp_path / "m.pt")
    assert record.provenance["calibration"]["pipeline"] == "StableDiffusionPipeline"
    assert (record.provenance["component"], record.provenance["config"]) == ("unet", str(like))
    found, why = recorded_float_model(record)
    assert (found.source, why) == (str(file), "")
