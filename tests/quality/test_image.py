from __future__ import annotations

import math

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from dq_deploy.errors import InputError
from dq_deploy.quality import psnr_db, ssim


@pytest.fixture
def pair():
    rng = np.random.default_rng(0)
    a = rng.uniform(-1, 1, (3, 3, 24, 20))
    return a, np.clip(a + 0.2 * rng.standard_normal(a.shape), -1, 1)


def test_psnr_equals_scikit_image(pair):
    a, b = pair
    expected = [peak_signal_noise_ratio(x, y, data_range=2) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(psnr_db(a, b, data_range=2), expected, rtol=1e-12)


def test_ssim_equals_scikit_image(pair):
    a, b = pair
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "channel_axis": 0}
    expected = [structural_similarity(x, y, data_range=2, **options) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(ssim(a, b, data_range=2), expected, rtol=1e-9)


def test_an_image_equals_itself(pair):
    a, _ = pair
    assert all(math.isinf(v) for v in psnr_db(a, a, data_range=2))
    np.testing.assert_allclose(ssim(a, a, data_range=2), 1)


def test_a_known_error_has_its_known_psnr():
    a = np.zeros((1, 1, 4, 4))
    np.testing.assert_allclose(psnr_db(a + 0.02, a, data_range=2), [40])


@pytest.mark.parametrize("measure", [psnr_db, ssim])
def test_wrong_shapes_and_ranges_are_refused(measure, pair):
    a, b = pair
    with pytest.raises(InputError, match="shapes"):
        measure(a, b[:1], data_range=2)
    with pytest.raises(InputError, match="data_range"):
        measure(a, b, data_range=0)


def test_an_image_smaller_than_the_window_has_no_ssim():
    with pytest.raises(InputError, match="at least 11"):
        ssim(np.zeros((1, 1, 8, 8)), np.zeros((1, 1, 8, 8)), data_range=2)
