"""Pictures out of any pipeline: steps are counted, a value that is not finite names its step, warnings are kept."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from dq_deploy import IntegerDenoiser
from dq_deploy.errors import OptionError
from dq_deploy.models.pipeline import PipelineCall, build_scheduler
from dq_deploy.models.pipeline.open import pipeline_of_denoiser
from dq_deploy.pipelines.draw import bucket_distances, constant_images, draw_images
from dq_deploy.pipelines.watch import SamplingStopped
from tests.pipelines.float_runner import FloatRunner
from tests.tiny import ONE_LEVEL, tiny_denoiser


@pytest.fixture(scope="module")
def denoiser():
    return tiny_denoiser(classes=3, **ONE_LEVEL)


def pipeline_of(denoiser, scheduler=None):
    return pipeline_of_denoiser(denoiser.module, build_scheduler(denoiser.scheduler_config, scheduler))


def test_images_do_not_depend_on_the_batch_and_steps_are_told(denoiser):
    call = PipelineCall(steps=3, count=3, labels=(0, 1, 2), seed=5)
    told = []
    pipeline = pipeline_of(denoiser, "ddim")
    drawn = draw_images(pipeline, call, batch=2, on_step=lambda done, steps: told.append((done, steps)))
    assert told == [(1, 6), (2, 6), (3, 6), (4, 6), (5, 6), (6, 6)]
    assert drawn.timesteps == (666.0, 333.0, 0.0)
    assert not drawn.latents
    assert np.abs(drawn.images).max() <= 1
    again = draw_images(pipeline, call, batch=3)
    np.testing.assert_allclose(again.images, drawn.images, atol=1e-5)
    assert "step" not in vars(pipeline.scheduler)
    with pytest.raises(OptionError, match="batch is 0"):
        draw_images(pipeline, call, batch=0)


@pytest.mark.parametrize("engine", [False, True])
def test_a_value_that_is_not_finite_names_its_step(engine, denoiser):
    runner = FloatRunner(denoiser)
    own, calls = runner._run, []

    def broken(feeds):
        calls.append(1)
        output = own(feeds)["output"]
        return {"output": output * (np.nan if len(calls) == 2 else 1)}

    runner._run, runner.finite_check = broken, engine
    pipeline = pipeline_of(denoiser, "ddim")
    pipeline.denoiser = IntegerDenoiser(runner)
    with pytest.raises(SamplingStopped, match=r"step 2 of 3 \(timestep 333\): .*(not finite|NaN)") as stopped:
        draw_images(pipeline, PipelineCall(steps=3, labels=(0,)))
    assert stopped.value.step == 1
    assert stopped.value.arguments["sample"].shape == (1, 1, 8, 8)


def test_a_text_pipeline_draws_as_diffusers_does_and_says_what_it_cuts():
    pytest.importorskip("transformers")
    from tests.pipelines.tiny_pipelines import tiny_text_pipeline

    pipeline = tiny_text_pipeline()
    call = PipelineCall(prompts=("a red ball", "a " * 100), count=2, steps=3, guidance=4.0, negative_prompt="blue")
    drawn = draw_images(pipeline, call)
    assert "truncated" in drawn.remarks[0]
    logging.getLogger("diffusers").setLevel(logging.ERROR)  # as a command has it
    try:
        assert draw_images(pipeline, call).remarks == drawn.remarks
        assert logging.getLogger("diffusers").level == logging.ERROR
    finally:
        logging.getLogger("diffusers").setLevel(logging.WARNING)
    own = pipeline(**call.arguments(pipeline, [0], output_type="np")).images
    np.testing.assert_allclose((drawn.images[:1] + 1) / 2, np.moveaxis(own, -1, 1), atol=1e-6)
    latents = draw_images(pipeline, call, latents=True)
    assert latents.latents
    assert latents.images.shape == (2, 4, 8, 8)


def test_distances_are_to_the_calibrated_timestep_of_the_bucket():
    distances = bucket_distances([0, 40, 90, 500], np.float32([0, 100]), np.float32([50]))
    assert distances.tolist() == [0, 40, 10, 400]


def test_constant_images_are_found():
    images = np.zeros((3, 1, 2, 2), np.float32)
    images[1, 0, 0, 0] = 1
    assert constant_images(images) == [0, 2]


def test_each_thread_collects_the_warnings_it_causes():
    import logging
    import threading

    from dq_deploy.pipelines.watch import collected_warnings

    logger = logging.getLogger("diffusers.anything")
    before = (list(logging.getLogger("diffusers").handlers), logging.getLogger("diffusers").level)
    inside, found = threading.Barrier(2), {}

    def work(name):
        with collected_warnings() as remarks:
            inside.wait(10)
            logger.warning("%s is cut", name)
            logger.warning("%s is cut", name)
            inside.wait(10)
        found[name] = remarks

    threads = [threading.Thread(target=work, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {"a": ["a is cut"], "b": ["b is cut"]}
    assert (logging.getLogger("diffusers").handlers, logging.getLogger("diffusers").level) == before
