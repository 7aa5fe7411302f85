"""The commands take a pipeline with several denoisers, and a file of weights, and say in flags what is missing."""

from __future__ import annotations

import json
import shutil

import pytest

from tests.cli.running import command
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
