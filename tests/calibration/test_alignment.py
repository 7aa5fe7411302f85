"""Density and diversity of steps: what the definitions say, computed plainly, and free of the features' scale."""

from __future__ import annotations

import numpy as np
import pytest

from dq_deploy.calibration import align_steps, features_by_step, run_of_denoiser
from dq_deploy.calibration.alignment import by_step
from dq_deploy.errors import NonFiniteError
from tests.tiny import tiny_denoiser


@pytest.fixture
def features() -> np.ndarray:
    rng = np.random.default_rng(0)
    base = rng.standard_normal((1, 3, 4, 2, 2))
    far = rng.standard_normal((6, 3, 4, 2, 2)) * np.array([0.01, 0.02, 0.03, 0.5, 1, 3]).reshape(-1, 1, 1, 1, 1)
    return (base + far).astype(np.float32)


def test_density_and_diversity_are_the_definitions(features: np.ndarray) -> None:
    found = align_steps(features, radius=0.3)
    wide = features.astype(np.float64)
    distance = np.array([[np.mean((a - b) ** 2) for b in wide] for a in wide])
    mean = distance[~np.eye(6, dtype=bool)].mean()
    length = np.linalg.norm(wide, axis=2)
    cos = np.array(
        [
            [(a * b).sum(1) / (m * n) for b, n in zip(wide, length, strict=True)]
            for a, m in zip(wide, length, strict=True)
        ]
    )
    assert found.mean_distance == pytest.approx(mean, rel=1e-5)
    assert found.density.tolist() == (distance <= 0.3 * mean).sum(1).tolist()
    np.testing.assert_allclose(found.diversity, (1 - cos).sum(axis=(1, 2, 3, 4)), rtol=1e-4, atol=1e-4)


def test_the_scale_of_features_changes_nothing(features: np.ndarray) -> None:
    one, other = align_steps(features, radius=0.3), align_steps(100 * features, radius=0.3)
    assert one.density.tolist() == other.density.tolist()
    np.testing.assert_allclose(one.weights(1.0), other.weights(1.0), rtol=1e-4)


def test_lambda_weighs_diversity_and_both_lie_within_one(features: np.ndarray) -> None:
    found = align_steps(features, radius=0.3)
    density, both = found.weights(0.0), found.weights(2.0)
    assert (density.min(), density.max()) == (0, 1)
    assert (both - density).max() == pytest.approx(2)
    assert found.density.argmax() < 3
    assert found.diversity.argmax() == 5


def test_steps_that_are_all_the_same_have_weights_of_zero() -> None:
    assert align_steps(np.ones((3, 1, 2, 1, 1), np.float32), radius=1).weights(1.0).tolist() == [0, 0, 0]
    assert align_steps(np.ones((1, 1, 2, 1, 1), np.float32), radius=1).weights(1.0).tolist() == [0]


def test_features_are_sorted_by_step_and_as_many_of_each() -> None:
    times = np.array([900, 900, 500, 500, 500, 500, 100, 100], np.float32)  # a scheduler that comes twice
    rows = np.arange(8, dtype=np.float32).reshape(8, 1)
    assert by_step(times, rows)[..., 0].tolist() == [[6, 7], [2, 3], [0, 1]]


def test_features_are_what_the_module_received_of_every_picture() -> None:
    denoiser = tiny_denoiser()
    middle = denoiser.module.get_submodule("mid_block.attentions.0")
    run = run_of_denoiser(denoiser.module, denoiser.scheduler_config, denoiser.call, steps=3, samples=4, at_once=3)
    assert features_by_step(run, middle, 4).shape == (3, 4, 16, 4, 4)
    broken = denoiser.module.get_submodule("mid_block.resnets.0.conv1")
    broken.weight.data[0] = float("nan")  # type: ignore[operator]
    with pytest.raises(NonFiniteError, match=r"mid_block\.resnets\.0\.conv1"):
        features_by_step(run, middle, 4)
