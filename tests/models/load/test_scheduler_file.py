"""The scheduler beside a denoiser is the same one however the folder is named, and is read as diffusers reads it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

from dq_deploy import load_model
from dq_deploy.errors import ModelError
from tests.tiny import ONE_LEVEL, tiny_denoiser


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipe")
    tiny_denoiser(**ONE_LEVEL).module.save_pretrained(folder / "unet")
    DDIMScheduler(prediction_type="v_prediction", clip_sample=False).save_pretrained(folder / "scheduler")
    return folder


@pytest.fixture
def pipe(made, tmp_path):
    """The folder with links to its files in another place, as a hub's cache has them."""
    for path in made.glob("*/*"):
        target = tmp_path / "snapshot" / path.relative_to(made)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(path)
    return tmp_path / "snapshot"


def prediction_of(path):
    config = load_model(path).scheduler_config
    return None if config is None else config["prediction_type"]


def test_every_name_of_a_folder_finds_the_scheduler_beside_it(pipe, tmp_path, monkeypatch):
    (tmp_path / "mine").symlink_to(pipe / "unet")
    (tmp_path / "whole").symlink_to(pipe)
    names = [pipe, pipe / "unet", f"{pipe}/unet/", pipe / "unet" / ".." / "unet", tmp_path / "mine", tmp_path / "whole"]
    names += [pipe / "unet" / "..", os.path.relpath(pipe / "unet")]
    assert [prediction_of(name) for name in names] == ["v_prediction"] * len(names)
    monkeypatch.chdir(pipe / "unet")
    assert [prediction_of(name) for name in (".", "../unet", "..", "./")] == ["v_prediction"] * 4


def test_a_linked_denoiser_belongs_to_the_pipeline_it_is_linked_into(pipe, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "unet").symlink_to(pipe / "unet")
    assert prediction_of(other / "unet") == "v_prediction"  # no scheduler there: that of the link's target
    DDIMScheduler().save_pretrained(other / "scheduler")
    assert prediction_of(other / "unet") == prediction_of(other) == "epsilon"


@pytest.mark.parametrize("inside", ["", "unet"])
def test_a_pipeline_without_the_scheduler_that_it_names_is_refused(inside, pipe):
    index = pipe / "model_index.json"
    index.write_text(json.dumps({"unet": ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", "DDPMScheduler"]}))
    (pipe / "scheduler" / "scheduler_config.json").unlink()
    with pytest.raises(ModelError, match=r"names DDPMScheduler, but .*scheduler_config\.json is missing; copy it"):
        load_model(pipe / inside)
    index.write_text(json.dumps({"unet": ["diffusers", "UNet2DModel"], "scheduler": [None, None]}))
    assert load_model(pipe / inside).scheduler_config is None


def test_a_denoiser_under_another_name_is_in_its_pipeline_too(pipe):
    (pipe / "unet").rename(pipe / "unet_ema")
    assert prediction_of(pipe / "unet_ema") == "v_prediction"
    DDIMScheduler().save_pretrained(pipe / "unet_ema")
    assert prediction_of(pipe / "unet_ema") == "epsilon"


def write_scheduler(pipe, **changes):
    path = pipe / "scheduler" / "scheduler_config.json"
    value = json.loads(path.read_text())
    path.unlink()
    path.write_text(json.dumps({key: item for key, item in {**value, **changes}.items() if item is not ...}))


def test_minus_infinity_as_diffusers_writes_it_is_read(pipe):
    write_scheduler(pipe, lambda_min_clipped=float("-inf"))
    assert prediction_of(pipe) == "v_prediction"
    DPMSolverMultistepScheduler().save_pretrained(pipe / "other")
    text = (pipe / "other" / "scheduler_config.json").read_text()
    assert "-Infinity" in text
    (pipe / "scheduler" / "scheduler_config.json").write_text(text)
    assert load_model(pipe).scheduler_config["_class_name"] == "DPMSolverMultistepScheduler"


def test_another_value_that_is_not_finite_is_named(pipe):
    write_scheduler(pipe, sample_max_value=float("inf"))
    with pytest.raises(ModelError, match="sample_max_value inf, expected finite"):
        load_model(pipe)


def test_the_index_of_the_pipeline_names_the_class_of_a_silent_file(pipe):
    index: Path = pipe / "model_index.json"
    index.write_text(json.dumps({"unet": ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", "DDIMScheduler"]}))
    write_scheduler(pipe, _class_name=...)
    for name in (pipe, pipe / "unet"):
        assert load_model(name).scheduler_config["_class_name"] == "DDIMScheduler"
    write_scheduler(pipe, _class_name="PNDMScheduler")
    with pytest.raises(ModelError, match=r"names the scheduler 'DDIMScheduler'.*'PNDMScheduler'; give both one class"):
        load_model(pipe)
