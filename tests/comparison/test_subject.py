"""The float model's images are drawn once, and what cannot be measured is said before anything is trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dq_deploy import load_model
from dq_deploy.comparison import Measures, Settings, Subject, prepare_subject
from dq_deploy.comparison.subject import labels_in_turn
from dq_deploy.errors import InputError, ModelError, OptionError
from dq_deploy.models import default_call
from tests.tiny import ONE_LEVEL, tiny_conditional_denoiser, tiny_denoiser

SETTINGS = Settings(images=4, steps=2, rounds=0)
BARE = Measures(extractor=None)


def test_images_come_from_the_cache_and_from_the_same_noise(
    subject: Subject, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = subject.draw(subject.denoiser.module)
    np.testing.assert_array_equal(drawn, subject.images)
    assert subject.labels is not None
    assert subject.labels.tolist() == [0, 1, 2, 0]
    monkeypatch.setattr("dq_deploy.comparison.subject._draw", lambda *_: pytest.fail("drawn again"))
    again = prepare_subject(subject.denoiser, SETTINGS, BARE, model=model_dir, cache=subject.cache)
    np.testing.assert_array_equal(again.images, subject.images)
    assert again.identity == subject.identity


def test_other_settings_have_other_images(subject: Subject, model_dir: Path) -> None:
    settings = replace(SETTINGS, seed=7)
    other = prepare_subject(subject.denoiser, settings, BARE, model=model_dir, cache=subject.cache)
    assert not np.array_equal(other.images, subject.images)
    assert other.identity != subject.identity


def test_another_noise_schedule_has_other_images(subject: Subject, model_dir: Path) -> None:
    scheduler = {**subject.denoiser.scheduler_config, "prediction_type": "sample"}  # type: ignore[dict-item]
    changed = replace(subject.denoiser, scheduler_config=scheduler)
    other = prepare_subject(changed, SETTINGS, BARE, model=model_dir, cache=subject.cache)
    assert not np.array_equal(other.images, subject.images)
    assert other.identity != subject.identity


def test_damaged_images_in_the_cache_are_drawn_again(subject: Subject, model_dir: Path, tmp_path: Path) -> None:
    prepare_subject(subject.denoiser, SETTINGS, BARE, model=model_dir, cache=tmp_path)
    (cached,) = tmp_path.glob("float-*.npz")
    whole = cached.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], whole[:-200] + bytes(200)):
        cached.write_bytes(damaged)
        again = prepare_subject(subject.denoiser, SETTINGS, BARE, model=model_dir, cache=tmp_path)
        np.testing.assert_array_equal(again.images, subject.images)


def test_only_the_named_classes_are_drawn() -> None:
    config = {"_class_name": "UNet2DModel", "sample_size": 8}
    call = default_call({**config, "num_class_embeds": 11})
    found = labels_in_turn(call, 5, (0, 7))
    assert found is not None
    assert found.tolist() == [0, 7, 0, 7, 0]
    assert labels_in_turn(default_call(config), 5) is None
    with pytest.raises(OptionError, match="out of range"):
        labels_in_turn(call, 5, (11,))


def test_latents_are_compared_without_features(tmp_path: Path) -> None:
    denoiser = tiny_conditional_denoiser()
    found = prepare_subject(denoiser, SETTINGS, Measures(), model=tmp_path, cache=tmp_path)
    assert found.baseline.extractor is None
    assert found.baseline.data_range == pytest.approx(float(np.ptp(found.images)))
    assert "draws latents" in found.remarks[0]
    with pytest.raises(InputError, match="leave them out"):
        prepare_subject(denoiser, SETTINGS, Measures(classifier="digits:x"), model=tmp_path, cache=tmp_path)


def test_what_cannot_be_measured_is_refused(model_dir: Path, tmp_path: Path) -> None:
    denoiser = load_model(model_dir)
    with pytest.raises(OptionError, match="the classifier is 'x'"):
        prepare_subject(denoiser, SETTINGS, replace(BARE, classifier="x"), model=model_dir, cache=tmp_path)
    bare = replace(denoiser, scheduler_config=None)
    with pytest.raises(ModelError, match="no scheduler"):
        prepare_subject(bare, SETTINGS, BARE, model=model_dir, cache=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_denoiser_alone_is_drawn_in_the_size_that_it_is_called_at(tmp_path: Path) -> None:
    denoiser = tiny_denoiser(**ONE_LEVEL, sample_size=None, sizes={"height": 4, "width": 12})
    found = prepare_subject(denoiser, SETTINGS, BARE, model=tmp_path, cache=tmp_path)
    assert found.images.shape == (4, 1, 4, 12)
    assert found.identity["size"] == [4, 12]
