"""`dq-quantize` of a text-conditioned model: what calibrates it is chosen, checked and written down."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from dq_deploy.models import default_call, example_inputs
from dq_deploy.record import load_record
from tests.cli.running import command
from tests.tiny import tiny_conditional_config, tiny_conditional_denoiser

QUICK = ("--method", "minmax", "--steps", 2, "--samples", 2)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    denoiser = tiny_conditional_denoiser()
    denoiser.module.save_pretrained(folder / "unet")  # type: ignore[operator]
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(denoiser.scheduler_config))
    return folder


@pytest.fixture
def latents(tmp_path: Path) -> Path:
    path = tmp_path / "latents.safetensors"
    save_file(example_inputs(default_call(tiny_conditional_config()), 4, 0), path)
    return path


def test_without_embeddings_they_are_random_and_the_table_says_so(model_dir: Path, tmp_path: Path) -> None:
    out, summary = tmp_path / "model.pt", tmp_path / "summary.json"
    done = command("quantize", "--model", model_dir, *QUICK, "--out", out, "--json", summary)
    assert done.code == 0, done.err
    told = load_record(out).provenance["calibration"]
    assert told["sampler"] == "DDIMScheduler of DenoiserPipeline"
    assert "warning: no --conditions were given: encoder_hidden_states are random" in done.err
    assert "no text was encoded" in told["conditions"]
    assert json.loads(summary.read_text())["calibration"] == told
    assert "random normal embeddings" in " ".join(done.out.split())


def test_recorded_latents_bring_their_own_timesteps(model_dir: Path, latents: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.pt"
    done = command("quantize", "--model", model_dir, *QUICK, "--latents", latents, "--out", out)
    assert done.code == 0, done.err
    record = load_record(out)
    recorded = np.unique(example_inputs(default_call(tiny_conditional_config()), 4, 0)["timestep"])
    np.testing.assert_array_equal(record.timesteps, recorded)
    assert record.provenance["calibration"]["latents"].startswith("latents.safetensors ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--calibration", "guess"), "calibration is 'guess', expected one of trajectory, random, latents"),
        (("--calibration", "latents"), "needs a file, expected --latents"),
        (("--calibration", "random", "--latents", "LATENTS"), "got --latents and --calibration random"),
        (("--conditions", "LATENTS"), "expected encoder_hidden_states"),
        (("--conditions", "none.safetensors"), "does not exist"),
    ],
)
def test_a_wrong_choice_is_one_line(
    options: tuple[str, ...], message: str, model_dir: Path, latents: Path, tmp_path: Path
) -> None:
    given = [latents if option == "LATENTS" else option for option in options]
    out = tmp_path / "model.pt"
    done = command("quantize", "--model", model_dir, *QUICK, *given, "--out", out)
    assert done.code == 2
    assert message in done.err
    assert done.err.count("\n") == 1
    assert not out.exists()


def test_embeddings_for_a_model_without_them_are_refused(demo_model_dir: Path, latents: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.pt"
    done = command("quantize", "--model", demo_model_dir, *QUICK, "--conditions", latents, "--out", out)
    assert (done.code, "the model takes no embeddings" in done.err) == (2, True)


def test_list_layers_shows_the_folds_of_the_transformers(model_dir: Path, tmp_path: Path) -> None:
    table = tmp_path / "layers.json"
    assert command("quantize", "--model", model_dir, "--list-layers", "--json", table).code == 0
    folds = {row["name"]: row["fold"] for row in json.loads(table.read_text())["layers"]}
    block = "mid_block.attentions.0.transformer_blocks.0"
    assert folds[f"{block}.attn1.to_v"] == f"into {block}.norm1"
    assert folds[f"{block}.ff.net.2"] == f"into {block}.ff.net.0.proj"
    assert folds[f"{block}.attn2.to_k"].startswith("no: input is the text embedding")


def test_rows_that_are_used_again_and_timesteps_that_are_none_are_told(model_dir: Path, tmp_path: Path) -> None:
    given = example_inputs(default_call(tiny_conditional_config()), 1, 0)
    given["timestep"] = np.array([70000], np.float32)
    save_file(given, tmp_path / "l.safetensors")
    out = tmp_path / "model.pt"
    done = command("quantize", "--model", model_dir, *QUICK, "--latents", tmp_path / "l.safetensors", "--out", out)
    assert (done.code, "timestep holds 70000, expected 0 to 999" in done.err) == (2, True)
    given.pop("sample"), given.pop("timestep")
    save_file(given, tmp_path / "c.safetensors")
    done = command("quantize", "--model", model_dir, *QUICK, "--conditions", tmp_path / "c.safetensors", "--out", out)
    assert done.code == 0, done.err
    assert "warning: --conditions has 1 row for" in done.err
