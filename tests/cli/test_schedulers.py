"""Every command that reads a scheduler takes any class of diffusers, as itself, and refuses what is none by name."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import diffusers
import numpy as np
import pytest
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler

from dq_deploy import export, load_record, save_record
from tests.cli.running import command
from tests.tiny import ONE_LEVEL, random_record, tiny_denoiser

QUANTIZE = ("quantize", "--method", "minmax", "--steps", 2, "--samples", 2)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scheduled")
    tiny_denoiser(**ONE_LEVEL).module.save_pretrained(folder / "unet")
    return folder


@pytest.fixture
def model(made, tmp_path):
    """Function from a scheduler, a configuration or None to a model folder with it."""

    def with_scheduler(scheduler):
        folder = tmp_path / "model"
        shutil.copytree(made, folder, dirs_exist_ok=True)
        if isinstance(scheduler, dict):
            (folder / "scheduler").mkdir(exist_ok=True)
            (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
        elif scheduler is not None:
            scheduler.save_pretrained(folder / "scheduler")
        return folder

    return with_scheduler


def assert_refused(done, *words):
    assert done.code == 2, done.err
    line = done.err.splitlines()[-1]
    assert line.startswith("error: ")
    assert len(line) <= 300
    for word in words:
        assert word in line
    assert "internal error" not in done.err


OTHERS = [
    ({"_class_name": "NoSuchScheduler"}, "NoSuchScheduler"),
    ({"num_train_timesteps": 10}, "no _class_name"),
    ({"_class_name": "DDIMScheduler", "prediction_type": "flow_prediction"}, "flow_prediction"),
    (None, "scheduler"),
]


@pytest.mark.parametrize(("scheduler", "word"), OTHERS, ids=[word for _, word in OTHERS])
def test_quantizing_refuses_it_and_leaves_nothing(model, tmp_path, scheduler, word):
    folder = model(scheduler)
    assert_refused(command(*QUANTIZE, "--model", folder, "--out", tmp_path / "m.pt"), word)
    compare = ("quantize", "--compare", "minmax", "--compare-images", 2, "--steps", 2, "--samples", 2)
    assert_refused(command(*compare, "--model", folder, "--out", tmp_path / "compared"), word)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_a_training_method_refuses_it_before_it_trains(model, tmp_path):
    folder = model({"_class_name": "NoSuchScheduler"})
    done = command("quantize", "--model", folder, "--steps", 2, "--out", tmp_path / "m.pt")
    assert_refused(done, "NoSuchScheduler")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "CMStochasticIterativeScheduler", "EDMEulerScheduler"])
def test_a_denoiser_alone_is_calibrated_by_its_own_class(model, tmp_path, name):
    scheduler = getattr(diffusers, name)()
    done = command(*QUANTIZE, "--model", model(scheduler), "--out", tmp_path / "m.pt")
    assert done.code == 0, done.err
    scheduler.set_timesteps(2)
    record = load_record(tmp_path / "m.pt")
    assert record.timesteps.tolist() == sorted(float(np.float32(t)) for t in scheduler.timesteps)
    assert record.provenance["calibration"]["sampler"] == f"{name} of DenoiserPipeline"


def test_another_scheduler_is_asked_for_by_name(model, tmp_path):
    for folder in (model(None), model({"_class_name": "NoSuchScheduler"})):
        done = command(*QUANTIZE, "--scheduler", "euler", "--model", folder, "--out", tmp_path / "m.pt")
        assert done.code == 0, done.err
        assert load_record(tmp_path / "m.pt").scheduler_config["_class_name"] == "EulerDiscreteScheduler"
    done = command(*QUANTIZE, "--scheduler", "nothing", "--model", folder, "--out", tmp_path / "m.pt")
    assert_refused(done, "nothing")


@pytest.fixture(scope="module")
def old_record(tmp_path_factory):
    """A record of a version that took every scheduler for DDIM, and its engine."""
    path = tmp_path_factory.mktemp("old") / "old.pt"
    scheduler = {"_class_name": "PNDMScheduler", "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
    save_record(replace(random_record(tiny_denoiser(**ONE_LEVEL)), scheduler_config=scheduler), path)
    export(load_record(path), path.with_suffix(".onnx"))
    return path


def test_an_old_record_of_another_scheduler_is_drawn_by_it(old_record, tmp_path):
    done = command("sample", "--engine", old_record, "--steps", 12, "--count", 1, "--out", tmp_path / "x.png")
    assert done.code == 0, done.err


def test_an_old_record_of_another_scheduler_is_still_proven(old_record):
    done = command("verify", "--engine", old_record.with_suffix(".onnx"), "--ckpt", old_record, "--exact")
    assert done.code == 0, done.err


def test_as_many_steps_as_were_trained_with_an_offset_is_one_line(model, tmp_path):
    folder = model(DDIMScheduler(num_train_timesteps=4, steps_offset=1))
    done = command("quantize", "--method", "minmax", "--steps", 4, "--model", folder, "--out", tmp_path / "m.pt")
    assert_refused(done, "steps_offset 1", "visit timestep 4, expected 0 to 3")
    done = command("quantize", "--method", "minmax", "--steps", 2, "--model", folder, "--out", tmp_path / "m.pt")
    assert done.code == 0, done.err
    assert load_record(tmp_path / "m.pt").timesteps.tolist() == [1, 3]
    assert_refused(
        command("sample", "--ckpt", tmp_path / "m.pt", "--steps", 4, "--out", tmp_path / "x.png"), "timestep 4"
    )


def test_channels_that_config_json_leaves_out_are_the_classes_own_in_every_command(tmp_path):
    folder = tmp_path / "model"
    tiny_denoiser(**ONE_LEVEL, in_channels=3, out_channels=3).module.save_pretrained(folder / "unet")
    DDIMScheduler().save_pretrained(folder / "scheduler")
    path = folder / "unet" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in config.items() if k not in ("in_channels", "out_channels")}))
    made, engine = tmp_path / "m.pt", tmp_path / "m.onnx"
    for arguments in (
        (*QUANTIZE, "--model", folder, "--out", made),
        ("export", "--ckpt", made, "--out", engine),
        ("sample", "--ckpt", made, "--count", 1, "--compare", "--out", tmp_path / "x.png"),
        ("sample", "--engine", made, "--count", 1, "--out", tmp_path / "x.png"),
        ("sample", "--engine", engine, "--count", 1, "--out", tmp_path / "x.png"),
        ("verify", "--engine", engine, "--ckpt", made, "--exact", "--steps-checked", 1),
        ("info", made),
    ):
        done = command(*arguments)
        assert done.code == 0, (arguments[0], done.err)


def test_inputs_recorded_from_another_pipeline_need_no_steps_of_ours(model, tmp_path):
    import numpy as np
    from safetensors.numpy import save_file

    rng = np.random.default_rng(0)
    times = np.repeat(np.array([3.5, 900], np.float32), 4)
    save_file(
        {"sample": rng.standard_normal((8, 1, 8, 8), np.float32), "timestep": times}, tmp_path / "seen.safetensors"
    )
    for scheduler in (EulerDiscreteScheduler(), DPMSolverMultistepScheduler()):  # the latter's file has -Infinity
        folder = model(scheduler)
        recorded = ("--latents", tmp_path / "seen.safetensors", "--out", tmp_path / "m.pt")
        done = command("quantize", "--method", "minmax", "--steps", 2, "--model", folder, *recorded)
        assert done.code == 0, done.err
        record = load_record(tmp_path / "m.pt")
        assert record.timesteps.tolist() == [3.5, 900]
        assert record.scheduler_config["_class_name"] == type(scheduler).__name__
