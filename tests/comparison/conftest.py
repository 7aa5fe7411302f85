"""A tiny model folder and its images, made once a module."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dq_deploy import load_model
from dq_deploy.comparison import Measures, Settings, Subject, prepare_subject
from tests.tiny import tiny_denoiser


def write_tiny_model(folder: Path) -> Path:
    """A diffusers folder of the tiny class-conditional model."""
    denoiser = tiny_denoiser(classes=3)
    denoiser.module.save_pretrained(folder / "unet")  # type: ignore[operator]
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(denoiser.scheduler_config))
    return folder


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def subject(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """Four images at two steps, no features, no timing."""
    return prepare_subject(
        load_model(model_dir),
        Settings(images=4, steps=2, rounds=0, threads=1),
        Measures(extractor=None),
        model=model_dir,
        cache=tmp_path_factory.mktemp("cache"),
    )
