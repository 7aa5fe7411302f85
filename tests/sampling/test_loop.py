"""The sampling loop is diffusers' own, from noise that belongs to the image and not to the batch."""

from __future__ import annotations

import numpy as np
import pytest

from dq_deploy.errors import ModelError, NonFiniteError, OptionError
from dq_deploy.sampling import (
    SampleOptions,
    SamplingStopped,
    bucket_distances,
    constant_images,
    denoiser_of_module,
    first_non_finite_layer,
    labels_for,
    noise_for,
    sample_images,
    sampler_timesteps,
)
from tests.tiny import SCHEDULER, tiny_config, tiny_denoiser


@pytest.fixture(scope="module")
def denoiser():
    return tiny_denoiser(classes=3)


def draw(denoiser, labels, denoise=None, scheduler_config=SCHEDULER, model_config=None, **options):
    return sample_images(
        denoise or denoiser_of_module(denoiser.module),
        model_config=model_config or denoiser.config,
        scheduler_config=scheduler_config,
        count=len(labels),
        labels=np.asarray(labels, np.int64),
        options=SampleOptions(**options),
    )


@pytest.mark.parametrize(("scheduler", "eta"), [("ddim", 0.0), ("ddim", 1.0), ("ddpm", 0.0)])
def test_an_image_does_not_depend_on_its_batch(denoiser, scheduler, eta):
    options = {"steps": 4, "scheduler": scheduler, "eta": eta}
    together = draw(denoiser, [0, 1, 2], batch=3, **options)
    alone = draw(denoiser, [0, 1, 2], batch=1, **options)
    np.testing.assert_allclose(together, alone, atol=1e-5)  # torch sums differ by batch in the last bits
    assert not np.allclose(together[0], together[1], atol=1e-2)


def test_the_loop_equals_diffusers_own_pipeline(denoiser):
    import torch
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler.from_config(SCHEDULER)
    scheduler.set_timesteps(5)
    latent = torch.from_numpy(noise_for(denoiser.config, count=2, seed=7))
    labels = torch.tensor([1, 2])
    with torch.inference_mode():
        for t in scheduler.timesteps:
            output = denoiser.module(latent, t.float().expand(2), labels).sample
            latent = scheduler.step(output, t, latent, eta=0.0).prev_sample
    found = draw(denoiser, [1, 2], steps=5, seed=7)
    np.testing.assert_array_equal(found, latent.clamp(-1, 1).numpy())


def test_seeds_and_eta_change_the_images(denoiser):
    base = draw(denoiser, [1], steps=3)
    np.testing.assert_array_equal(base, draw(denoiser, [1], steps=3))
    assert not np.array_equal(base, draw(denoiser, [1], steps=3, seed=1))
    assert not np.array_equal(base, draw(denoiser, [1], steps=3, eta=1.0))


@pytest.mark.parametrize("variance", ["fixed_small", "learned_range"])
@pytest.mark.parametrize("scheduler", ["ddim", "ddpm"])
def test_a_learned_variance_is_used_or_dropped(variance, scheduler):
    denoiser = tiny_denoiser(classes=3, out_channels=2)
    config = {**SCHEDULER, "variance_type": variance}
    images = draw(denoiser, [0, 1], steps=3, scheduler=scheduler, scheduler_config=config)
    assert images.shape == (2, 1, 8, 8)
    assert np.isfinite(images).all()


def test_a_denoiser_with_other_output_channels_is_refused():
    denoiser = tiny_denoiser(classes=3, out_channels=3)
    with pytest.raises(ModelError, match="3 channels for 1"):
        draw(denoiser, [0], steps=2)


def test_the_first_non_finite_step_is_named(denoiser):
    plain, calls = denoiser_of_module(denoiser.module), []

    def breaks_at_the_third(sample, timestep, labels):
        calls.append(float(timestep[0]))
        output = plain(sample, timestep, labels)
        return output * np.float32(np.nan) if len(calls) == 3 else output

    with pytest.raises(SamplingStopped, match=r"step 3 of 5 \(timestep 400\)") as caught:
        draw(denoiser, [0], denoise=breaks_at_the_third, steps=5)
    assert caught.value.exit_code == 3
    assert caught.value.step == 2
    assert len(calls) == 3


def test_an_engine_that_reports_non_finite_values_is_named_with_its_step(denoiser):
    def refuses(sample, timestep, labels):
        raise NonFiniteError("output holds NaN")

    with pytest.raises(SamplingStopped, match=r"step 1 of 2 .*output holds NaN"):
        draw(denoiser, [0], denoise=refuses, steps=2)


def test_the_first_layer_that_leaves_the_finite_numbers_is_found():
    denoiser = tiny_denoiser(classes=3)
    sample, timestep = np.zeros((1, 1, 8, 8), np.float32), np.zeros(1, np.float32)
    labels = np.zeros(1, np.int64)
    assert first_non_finite_layer(denoiser.module, sample, timestep, {"class_labels": labels}) is None
    name = "down_blocks.1.resnets.0.conv1"
    denoiser.module.get_submodule(name).weight.data[0] = np.inf
    assert first_non_finite_layer(denoiser.module, sample, timestep, {"class_labels": labels}) == name


def test_labels_are_checked_against_the_model():
    conditional, unconditional = tiny_config(3), tiny_config(None)
    assert labels_for(unconditional, None) is None
    np.testing.assert_array_equal(labels_for(conditional, [0, 2]), [0, 2])
    with pytest.raises(OptionError, match="has no classes"):
        labels_for(unconditional, [0])
    with pytest.raises(OptionError, match="give `labels`"):
        labels_for(conditional, None)
    with pytest.raises(OptionError, match="label 3 is out of range, expected 0 to 2"):
        labels_for(conditional, [0, 3])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"scheduler": "euler"}, "ddim, ddpm"),
        ({"steps": 0}, "at least 1"),
        ({"eta": 2.0}, "0 to 1"),
        ({"eta": 0.5, "scheduler": "ddpm"}, '`scheduler="ddim"`'),
        ({"seed": -1}, "0 or more"),
    ],
)
def test_options_out_of_range_are_refused(wrong, message):
    with pytest.raises(OptionError, match=message):
        SampleOptions(**wrong)


def test_more_steps_than_were_trained_are_refused():
    with pytest.raises(OptionError, match="at most 1000"):
        sampler_timesteps(SCHEDULER, SampleOptions(steps=1001))
    with pytest.raises(ModelError, match="no scheduler configuration"):
        sampler_timesteps(None, SampleOptions())


def test_distances_to_the_calibrated_timesteps():
    calibrated = np.array([0, 100, 200], np.float32)
    edges = np.array([50, 150], np.float32)
    np.testing.assert_array_equal(bucket_distances([200, 149, 0, 30], calibrated, edges), [0, 49, 0, 30])


def test_constant_images_are_found():
    images = np.random.default_rng(0).normal(size=(3, 2, 4, 4)).astype(np.float32)
    images[1, 0], images[1, 1] = 0.5, -0.5
    assert constant_images(images) == [1]
