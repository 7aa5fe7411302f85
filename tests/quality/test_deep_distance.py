from __future__ import annotations

import numpy as np
import pytest

from dq_deploy.errors import InputError
from dq_deploy.quality.deep_distance import distance_of_maps, feature_distance
from tests.quality.images import noisy_pair, tiny_extractor


def test_equal_images_have_distance_zero_and_noise_adds_to_it():
    little, reference = noisy_pair(9, noise=0.05)
    much, _ = noisy_pair(9, noise=0.5)
    extractor = tiny_extractor()
    assert (feature_distance(extractor, reference, reference)[0] == 0).all()
    near, far = (feature_distance(extractor, x, reference)[0] for x in (little, much))
    assert (near > 0).all()
    assert (near < far).all()


def test_the_features_are_those_of_the_images_whatever_the_batch():
    images, reference = noisy_pair(9)
    distances, features = feature_distance(tiny_extractor(batch=4), images, reference)
    np.testing.assert_allclose(features, tiny_extractor().features(images), rtol=1e-6)
    np.testing.assert_allclose(distances, feature_distance(tiny_extractor(), images, reference)[0], rtol=1e-6)


def test_the_formula_on_maps_known_by_hand():
    a = np.zeros((1, 2, 1, 2), np.float32)
    b = np.zeros((1, 2, 1, 2), np.float32)
    a[0, :, 0, 0], b[0, :, 0, 0] = (5, 0), (0, 3)  # orthogonal: 2
    a[0, :, 0, 1], b[0, :, 0, 1] = (1, 0), (-4, 0)  # opposite: 4
    zeros = np.zeros((1, 2, 1, 1), np.float32)  # no direction: 0
    np.testing.assert_allclose(distance_of_maps((a,), (b,)), [3])
    np.testing.assert_allclose(distance_of_maps((a, zeros), (b, zeros)), [1.5])


def test_what_cannot_be_compared_is_refused():
    images, reference = noisy_pair(3)
    with pytest.raises(InputError, match="one shape"):
        feature_distance(tiny_extractor(), images, reference[:2])
    with pytest.raises(InputError, match="no feature maps"):
        feature_distance(tiny_extractor(maps=False), images, reference)
    with pytest.raises(InputError, match="no feature maps"):
        tiny_extractor(maps=False).maps(images)
