"""Pipelines of image transformers run around an integer denoiser: guidance, ids, masks, constants reach the engine."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")

from dq_deploy import IntegerDenoiser
from dq_deploy.calibration.recording import call_of_pipeline
from dq_deploy.errors import InputError
from dq_deploy.models import Denoiser
from dq_deploy.models.pipeline import PipelineCall, denoiser_name
from dq_deploy.pipelines.draw import draw_images
from tests.pipelines.float_runner import FloatRunner
from tests.pipelines.tiny_transformers import TRANSFORMERS, flux


def made(make):
    """A pipeline, its float denoiser and what is asked of it."""
    torch.manual_seed(0)
    pipeline, options = make()
    pipeline.set_progress_bar_config(disable=True)
    module = getattr(pipeline, denoiser_name(pipeline)).eval()
    asked = PipelineCall(steps=2, seed=1, **options)
    config = {key: value for key, value in module.config.items() if key != "_use_default_values"}
    denoiser = Denoiser(
        family=type(module).__name__,
        module=module,
        config={**config, "_class_name": type(module).__name__},
        call=call_of_pipeline(pipeline, module, asked, {}).call,
        scheduler_config=None,
        source="tiny",
        source_sha256="0" * 64,
    )
    return pipeline, denoiser, asked


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_a_float_engine_gives_the_pictures_of_diffusers_bit_for_bit(name):
    pipeline, denoiser, asked = made(TRANSFORMERS[name])
    own = draw_images(pipeline, asked)
    unet = IntegerDenoiser(FloatRunner(denoiser))
    setattr(pipeline, denoiser_name(pipeline), unet)
    engine = draw_images(pipeline, asked)
    assert unet.calls == 2
    assert np.array_equal(own.images, engine.images)
    assert own.timesteps == engine.timesteps


def test_what_an_engine_was_not_made_for_is_refused_by_name():
    pipeline, denoiser, asked = made(flux)
    without = dataclasses.replace(
        denoiser.call, inputs=tuple(item for item in denoiser.call.inputs if item.name != "guidance")
    )
    pipeline.transformer = IntegerDenoiser(FloatRunner(dataclasses.replace(denoiser, call=without)))
    with pytest.raises(InputError, match=r"step 1|gives guidance, a tensor of shape \(1,\), which this engine has no"):
        draw_images(pipeline, asked)
