"""`dq-quantize` draws with the model's own pipeline; what the pipeline cannot be asked is one line and exit code 2."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import pytest

if importlib.util.find_spec("transformers") is None:
    pytest.skip("needs transformers, which text pipelines of diffusers import", allow_module_level=True)

from dq_deploy import load_record
from tests.cli.running import command
from tests.pipelines.tiny_pipelines import tiny_text_pipeline

QUICK = ("--method", "minmax", "--steps", 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "pipeline"
    tiny_text_pipeline().save_pretrained(path)
    return path


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text(f"a red ball\n{'a very long ' * 12}cat\n")
    return path


def test_prompts_guidance_and_a_scheduler_calibrate_and_stand_in_the_record(
    folder: Path, prompts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "m.pt"
    asked = ("--prompts", prompts, "--negative-prompt", "grey", "--guidance", 5, "--scheduler", "euler")
    done = command("quantize", "--model", folder, *QUICK, *asked, "--out", out)
    assert done.code == 0, done.err
    assert "warning: 1 of 3 prompts have more than the 77 tokens that tokenizer keeps" in done.err
    record = load_record(out)
    told = record.provenance["calibration"]
    assert told["inputs"] == 2 * 2 * 2  # prompts, steps, halves of guidance
    assert told["sampler"] == "EulerDiscreteScheduler of StableDiffusionPipeline"
    assert (told["prompts"]["count"], told["guidance"], told["negative_prompt"]) == (2, 5, "grey")
    assert record.provenance["options"]["samples"] == 2
    assert record.timesteps.tolist() == [0, 999] or len(record.timesteps) == 2
    assert record.scheduler_config is not None
    assert record.scheduler_config["_class_name"] == "EulerDiscreteScheduler"
    assert record.call is not None
    assert dict(record.call.sizes) == {"height": 8, "width": 8, "tokens": 77}


def test_a_file_of_the_call_says_the_same_and_more(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "call.yaml").write_text(
        "prompt: [a ball, a cat]\nguidance_scale: 1.0\nnum_inference_steps: 3\nheight: 32\nwidth: 16\n"
        "guidance_rescale: 0.5\n"
    )
    out = tmp_path / "m.pt"
    done = command("quantize", "--model", folder, "--method", "minmax", "--call", tmp_path / "call.yaml", "--out", out)
    assert done.code == 0, done.err
    record = load_record(out)
    assert record.provenance["calibration"]["inputs"] == 2 * 4  # a picture each, PNDM comes to one of 3 steps twice
    assert record.provenance["calibration"]["arguments"] == {"guidance_rescale": 0.5}
    assert record.provenance["options"]["steps"] == 3
    assert record.call is not None
    assert dict(record.call.sizes) == {"height": 16, "width": 8, "tokens": 77}


def test_without_prompts_some_of_the_shipped_ones_are_taken_and_told(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.pt"
    done = command("quantize", "--model", folder, *QUICK, "--samples", 1, "--guidance", 1, "--out", out)
    assert done.code == 0, done.err
    assert "warning: no --prompts were given: some of the 64 plain ones that are shipped are taken" in done.err
    assert load_record(out).provenance["calibration"]["prompts"]["count"] == 64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--prompts", "none.txt"), "none.txt does not exist; expected a text file with a prompt a line"),
        (("--prompts", "PROMPTS", "--conditions", "c.safetensors"), "got --prompts and --conditions, expected one"),
        (("--guidance", 5, "--calibration", "random"), "got --guidance and --calibration, expected one"),
        (("--prompts", "PROMPTS", "--labels", "1"), "got --labels, which StableDiffusionPipeline does not take"),
        (("--scheduler", "none"), "none"),
        (("--call", "none.yaml"), "cannot read none.yaml"),
        (("--height", 13), "height"),
    ],
)
def test_what_contradicts_or_is_not_there_is_one_line(
    options: tuple[Any, ...], message: str, folder: Path, prompts: Path, tmp_path: Path
) -> None:
    given = [prompts if option == "PROMPTS" else option for option in options]
    done = command("quantize", "--model", folder, *QUICK, *given, "--out", tmp_path / "m.pt")
    assert done.code == 2, done.err
    lines = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert message in lines[0]
    assert "internal error" not in done.err
    assert not (tmp_path / "m.pt").exists()


def test_prompts_for_what_cannot_read_them_are_refused(folder: Path, prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.pt"
    done = command("quantize", "--model", folder / "unet", *QUICK, "--prompts", prompts, "--out", out)
    assert (done.code, "got --prompts for" in done.err, "a denoiser alone" in done.err) == (2, True, True)
    bare = tmp_path / "bare"
    shutil.copytree(folder, bare, ignore=shutil.ignore_patterns("text_encoder", "tokenizer"))
    done = command("quantize", "--model", bare, *QUICK, "--prompts", prompts, "--out", out)
    assert (done.code, "but the folder text_encoder/ is missing" in done.err) == (2, True), done.err
    assert not out.exists()


def test_a_pipelines_size_is_in_pixels_without_the_pipeline_too(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.pt"
    asked = ("--calibration", "random", "--samples", 2, "--height", 32, "--width", 16)
    done = command("quantize", "--model", folder, *QUICK, *asked, "--out", out)
    assert done.code == 0, done.err
    call = load_record(out).call
    assert call is not None
    assert dict(call.sizes) == {"height": 16, "width": 8, "tokens": 77}
