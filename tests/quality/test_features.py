from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dq_deploy.errors import InputError
from dq_deploy.quality.features import as_rgb, checked_images, resized
from tests.quality.images import noisy_pair, tiny_extractor


def test_images_that_are_no_floats_in_range_are_refused_or_cut():
    good, _ = noisy_pair(2)
    with pytest.raises(InputError, match="uint8"):
        checked_images((good * 127).astype(np.uint8))
    with pytest.raises(InputError, match="1 or 3 channels"):
        checked_images(np.zeros((2, 4, 8, 8), np.float32))
    with pytest.raises(InputError, match="1 or 3 channels"):
        tiny_extractor().features(good[:0])
    with pytest.raises(InputError, match="not finite"):
        checked_images(np.full((1, 1, 8, 8), np.nan))
    assert np.abs(checked_images(3 * good)).max() == 1


def test_grey_becomes_three_equal_channels():
    grey, _ = noisy_pair(2)
    assert (as_rgb(grey) == grey).all()
    assert as_rgb(grey).shape == (2, 3, 16, 16)
    colour, _ = noisy_pair(2, channels=3)
    assert as_rgb(colour) is colour


def test_resizing_keeps_the_mean_both_ways():
    images, _ = noisy_pair(2, channels=3)
    assert (resized(images, 16, 16).numpy() == images).all()
    for size in (4, 64):
        assert resized(images, size, size).numpy().mean() == pytest.approx(images.mean(), abs=0.02)


def test_features_that_are_not_finite_or_misshapen_are_an_error():
    images, _ = noisy_pair(2)
    for features in (np.full((2, 3), np.nan, np.float32), np.zeros((2, 3, 4), np.float32)):
        broken = replace(tiny_extractor(), network=lambda x, features=features: (features, ()))
        with pytest.raises(InputError, match="tiny gave features"):
            broken.features(images)
