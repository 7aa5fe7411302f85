"""`dq-sample --model PIPELINE` goes from a prompt to a picture, and says in one line what it cannot do."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

pytest.importorskip("transformers")

from dq_deploy import save_record
from tests.cli.running import command
from tests.pipelines.tiny_pipelines import tiny_text_pipeline
from tests.tiny import random_record, tiny_conditional_denoiser


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A pipeline's folder and a record of its denoiser."""
    path = tmp_path_factory.mktemp("model")
    denoiser = tiny_conditional_denoiser()
    tiny_text_pipeline(unet=denoiser.module).save_pretrained(path / "sd")
    save_record(random_record(denoiser, weight_bits=8), path / "model.pt")
    return ["--engine", path / "model.pt", "--model", path / "sd", "--threads", 1]


def test_one_prompt_becomes_one_picture_of_its_own_size(model, tmp_path):
    out, numbers = tmp_path / "picture.png", tmp_path / "numbers.json"
    more = ["--steps", 3, "--guidance", 3, "--negative-prompt", "blue", "--height", 16, "--width", 24]
    done = command("sample", *model, "--prompt", "a " * 90, *more, "--out", out, "--json", numbers)
    assert done.code == 0, done.err
    assert Image.open(out).size == (24, 16)
    options = json.loads(numbers.read_text())["options"]
    assert options["pipeline"] == "StableDiffusionPipeline"
    assert (options["guidance"], options["negative_prompt"], options["steps"]) == (3, "blue", 3)
    assert "sampling, engine 3/3" in done.err
    assert "warning: The following part of your input was truncated" in done.err


def test_prompts_in_turn_are_held_against_the_float_pipeline(model, tmp_path):
    out = tmp_path / "latents.safetensors"
    more = ["--prompt", "a", "--prompt", "b", "--count", 3, "--scheduler", "dpm++2m", "--steps", 3, "--compare"]
    done = command("sample", *model, *more, "--out", out)
    assert done.code == 0, done.err
    found = load_file(out)
    assert found["engine"].shape == found["float"].shape == (3, 4, 8, 8)
    distance = np.linalg.norm(found["engine"] - found["float"]) / np.linalg.norm(found["float"])
    assert 0 < distance < 0.2


def test_a_picture_is_changed_by_the_same_components(model, tmp_path):
    Image.new("RGB", (24, 16), "red").save(tmp_path / "in.png")
    (tmp_path / "call.yaml").write_text(
        "prompt: a ball\nimage: in.png\nstrength: 0.5\ncallback_on_step_end_tensor_inputs: [latents]\n"
    )
    out, numbers = tmp_path / "out.png", tmp_path / "numbers.json"
    done = command("sample", *model, "--call", tmp_path / "call.yaml", "--steps", 4, "--out", out, "--json", numbers)
    assert done.code == 0, done.err
    assert Image.open(out).size == (24, 16)
    assert json.loads(numbers.read_text())["options"]["pipeline"] == "StableDiffusionImg2ImgPipeline"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "draws what a prompt says; give --prompt"),
        (["--prompt", " "], "prompt 1 is empty"),
        (["--prompt", "a", "--strength", 0.5], "got --strength, which StableDiffusionPipeline does not take"),
        (["--prompt", "a", "--image", "none.png"], "the picture none.png does not exist"),
        (["--prompt", "a", "--conditions", "x.safetensors"], "--conditions and --prompt were given"),
        (["--conditions", "x.safetensors"], "was given with --conditions, which go to the denoiser alone"),
        (["--prompt", "a", "--scheduler", "flow-match-euler"], "is for flow matching"),
        (["--prompt", "a", "--labels", "1"], "got --labels, which StableDiffusionPipeline does not take"),
        (["--prompt", "a", "--component", "text_encoder"], "--component is 'text_encoder', which does not denoise"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(more, message, model, tmp_path):
    done = command("sample", *model, *more, "--out", tmp_path / "x.png")
    assert done.code == 2
    assert message in done.err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_a_pipeline_around_another_denoiser_is_refused(model, tmp_path):
    tiny_text_pipeline().save_pretrained(tmp_path / "sd")
    config = tmp_path / "sd" / "unet" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "norm_num_groups": 2}))
    more = ["--prompt", "a", "--out", tmp_path / "x.png"]
    done = command("sample", *model[:2], "--model", tmp_path / "sd", *more)
    assert done.code == 2
    assert "has norm_num_groups 2, expected 4 as what was quantized" in done.err
    assert not (tmp_path / "x.png").exists()


@pytest.fixture
def changed(model, tmp_path):
    """Function from values to the pipeline with them in its scheduler's file."""

    def with_values(**values):
        shutil.copytree(model[3], tmp_path / "sd")
        config = tmp_path / "sd" / "scheduler" / "scheduler_config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), **values}))
        return [*model[:2], "--model", tmp_path / "sd", "--prompt", "a", "--steps", 2]

    return with_values


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"prediction_type": "v_prediction"}, "has prediction_type 'v_prediction', expected 'epsilon' as the record"),
        (
            {"beta_end": 0.02, "beta_schedule": "linear"},
            "has beta_end 0.02, beta_schedule 'linear', expected 0.012, 'scaled_linear' as the record was calibrated",
        ),
    ],
    ids=["prediction", "betas"],
)
def test_a_scheduler_that_does_not_step_the_trained_model_is_refused(changed, values, message, tmp_path):
    for more in ([], ["--scheduler", "ddim"]):
        done = command("sample", *changed(**values), *more, "--out", tmp_path / "x.png")
        shutil.rmtree(tmp_path / "sd")
        assert done.code == 2
        assert message in done.err
        assert not (tmp_path / "x.png").exists()


def test_a_scheduler_that_samples_otherwise_is_said_and_which_one_counts(changed, model, tmp_path):
    options = changed(timestep_spacing="trailing")
    for more, words in ([], "which counts; name one as --scheduler"), (["--scheduler", "ddim"], "but --scheduler ddim"):
        done = command("sample", *options, *more, "--out", tmp_path / "x.png")
        assert done.code == 0, done.err
        said = [line for line in done.err.splitlines() if "timestep_spacing 'trailing'" in line]
        assert len(said) == 1, done.err
        assert words in said[0]
    done = command("sample", *model, "--prompt", "a", "--steps", 2, "--out", tmp_path / "x.png")
    assert "the record was calibrated with" not in done.err


def test_a_file_of_the_call_says_how_many_images(model, tmp_path):
    (tmp_path / "call.yaml").write_text("prompt: [a, b]\ncount: 1\nsteps: 1\n")
    done = command("sample", *model, "--call", tmp_path / "call.yaml", "--out", tmp_path / "x.png")
    assert done.code == 0, done.err
    assert Image.open(tmp_path / "x.png").size == (16, 16)
    assert "2 prompts were given for --count 1: those behind are not drawn" in done.err
