"""`dq-quantize` as a user types it, on a tiny model folder."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from dq_deploy.models import family
from dq_deploy.record import content_sha256, load_record
from tests.cli.dying_quantize import SIGNAL
from tests.cli.running import command
from tests.forked import Forked
from tests.tiny import tiny_denoiser

QUICK = ("--steps", 4, "--samples", 4, "--iterations", 2, "--preset", "fast")


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    denoiser = tiny_denoiser(classes=3)
    denoiser.module.save_pretrained(folder / "unet")  # type: ignore[operator]
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(denoiser.scheduler_config))
    return folder


def test_a_record_is_written_with_the_asked_bits(model_dir: Path, tmp_path: Path) -> None:
    out, summary = tmp_path / "model.pt", tmp_path / "summary.json"
    done = command(
        "quantize",
        "--model",
        model_dir,
        "--method",
        "minmax",
        *("--weights", 6, "--activations", 7, "--steps", 3, "--samples", 2),
        *("--keep", "conv_in,time_embedding.*", "--layer-bits", "mid_block.*=8", "--layer-bits", "*.conv2=4/8"),
        *("--out", out, "--json", summary),
    )
    assert done.code == 0, done.err
    record = load_record(out)
    assert record.steps == 3
    assert "conv_in" not in record.layers
    found = {name: (layer.weight_bits, layer.activation_bits) for name, layer in record.layers.items()}
    assert found["mid_block.resnets.0.conv1"] == (8, 8)
    assert found["mid_block.resnets.0.conv2"] == (4, 8)
    assert found["down_blocks.0.resnets.0.conv1"] == (6, 7)
    assert json.loads(summary.read_text())["layers"] == len(record.layers)
    assert "W6A7" in done.out


def test_training_reports_its_loss_and_leaves_no_state(model_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.safetensors"
    done = command("quantize", "--model", model_dir, *QUICK, "--out", out)
    assert done.code == 0, done.err
    assert load_record(out).provenance["method"] == "dilatequant"
    assert "training blocks" in done.err
    assert "loss" in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_list_layers_shows_shapes_work_bits_and_folds(model_dir: Path, tmp_path: Path) -> None:
    table = tmp_path / "layers.json"
    done = command("quantize", "--model", model_dir, "--list-layers", "--json", table)
    assert done.code == 0, done.err
    rows = {row["name"]: row for row in json.loads(table.read_text())["layers"]}
    assert rows["conv_in"]["output_shape"] == [1, 8, 8, 8]
    assert rows["conv_in"]["macs"] == 8 * 8 * 8 * 9
    assert rows["conv_in"]["weight_bits"] == 8
    assert rows["time_embedding.linear_1"]["weight_bits"] is None
    assert rows["mid_block.attentions.0.to_q"]["fold"] == "into mid_block.attentions.0.group_norm"
    assert "SiLU" in rows["mid_block.resnets.0.conv1"]["fold"]


def test_list_layers_needs_no_weights_and_says_why_bits_are_others(tmp_path: Path) -> None:
    config = {"_class_name": "FluxTransformer2DModel", "num_layers": 1, "num_single_layers": 1}
    (tmp_path / "config.json").write_text(json.dumps(config))
    done = command("quantize", "--model", tmp_path, "--list-layers", "--keep", "proj_out", "--json", tmp_path / "l")
    assert done.code == 0, done.err
    listed = json.loads((tmp_path / "l").read_text())
    assert listed["parameters"] == 535_318_336
    assert f"{listed['parameters']:,} parameters; the configuration was read and no weights" in done.out
    assert "float, keep 'proj_out': proj_out" in done.out
    assert "W8A8, projection of the time embedding (modulation), 8 bits by default: transformer_blocks.0." in done.out
    assert "never tried" not in done.err


def test_a_class_that_was_never_tried_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(family, "TRIED", ("UNet2DModel", "UNet2DConditionModel", "DiTTransformer2DModel"))
    config = {
        "_class_name": "SanaTransformer2DModel",
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 1,
        "sample_size": 8,
        "caption_channels": 8,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    done = command("quantize", "--model", tmp_path, "--list-layers")
    assert (done.code, "SanaTransformer2DModel was never tried here" in done.err) == (0, True), done.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--out is missing"),
        (("--out", "m.pt", "--list-layers"), "expected one of them"),
        (
            ("--out", "m.bin"),
            "extension '.bin', expected .pt or .safetensors for a record; give the output a name such",
        ),
        (("--out", "."), "output . is a folder, expected a file name such as model.pt; add one"),
        (("--out", "/nowhere/m.pt"), "/nowhere does not exist"),
        (("--out", "m.pt", "--weights", 9), "weight_bits is 9"),
        (("--out", "m.pt", "--method", "gptqq"), "method is 'gptqq'"),
        (("--out", "m.pt", "--keep", "nothing.*"), "matches no layer"),
        (("--out", "m.pt", "--layer-bits", "conv_in"), "--layer-bits got 'conv_in'"),
        (("--out", "m.pt", "--layer-bits", "conv_in=4/8/8"), "--layer-bits got"),
        (("--out", "m.pt", "--layer-bits", "time*=4", "--keep", "time*"), "narrow a pattern"),
        (("--out", "m.pt", "--method", "minmax", "--iterations", 5), "which does not train"),
        (("--out", "m.pt", "--no-resume", "--resume-dir", "d"), "expected one of them"),
        (("--out", "m.pt", "--preset", "turbo"), "preset is 'turbo'"),
        (("--out", "m.pt", "--preset", ""), "preset is ''"),
        (("--out", "m.pt", "--method", ""), "method is ''"),
        (("--out", "m.pt", "--calibration", ""), "calibration is ''"),
        (("--out", "m.pt", "--labels", "3"), "expected 0..2"),
        (("--out", "m.pt", "--labels", "a"), "--labels got 'a'"),
        (("--out", "m.pt", "--json", "m.pt"), "two outputs"),
        (("--out", "m.pt", "--steps", 1001), "steps is 1001"),
    ],
)
def test_a_users_mistake_is_one_line_and_writes_nothing(
    arguments: tuple[Any, ...], message: str, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = command("quantize", "--model", model_dir, *arguments)
    assert done.code == 2
    assert message in done.err
    assert done.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_wrong_model_folder_is_named(tmp_path: Path) -> None:
    done = command("quantize", "--model", tmp_path, "--out", tmp_path / "m.pt")
    assert done.code == 2
    assert done.err.startswith("error: ")
    assert not list(tmp_path.iterdir())


def test_an_interrupt_keeps_finished_blocks_and_says_how_to_go_on(model_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.pt"
    arguments = ["--model", str(model_dir), *map(str, QUICK), "--iterations", "5", "--out", str(out)]
    process = Forked("tests.cli.dying_quantize", *arguments, environment={SIGNAL: str(int(signal.SIGINT))})
    state = tmp_path / "model.pt.resume"
    done = process.ended()
    err = done.stderr
    assert done.returncode == 130, err
    assert list(state.glob("block-*"))
    assert f"what is finished is kept in {state}; run the same command to go on" in err
    assert "error: interrupted" in err
    assert not out.exists()
    resumed = command("quantize", *arguments)
    assert resumed.code == 0, resumed.err
    assert "going on with the state" in resumed.out
    fresh = command("quantize", *arguments[:-1], tmp_path / "b.pt", "--no-resume")
    assert fresh.code == 0, fresh.err
    assert content_sha256(load_record(out)) == content_sha256(load_record(tmp_path / "b.pt"))
    assert not state.exists()


def test_the_state_of_another_run_is_refused_and_stays(model_dir: Path, tmp_path: Path) -> None:
    state = tmp_path / "m.pt.resume"
    state.mkdir()
    (state / "state.json").write_text(json.dumps({"format": "dq_deploy.resume", "options": {}}))
    (state / "trajectory.safetensors").write_bytes(b"much work")
    done = command("quantize", "--model", model_dir, *QUICK, "--out", tmp_path / "m.pt")
    assert done.code == 2
    assert "holds another run" in done.err
    assert (state / "trajectory.safetensors").read_bytes() == b"much work"
