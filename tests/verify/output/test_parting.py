"""A low margin is explained by rounding, or it is a failure that names the layer where engine and simulation part."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from dq_deploy.verify.inputs import plan_batches
from dq_deploy.verify.output.difference import StepOutput, run_module, simulation
from dq_deploy.verify.output.parting import _hooked, find_parting, lowest_parting
from tests.tiny import ONE_LEVEL, random_record, tiny_denoiser

LAYER = "down_blocks.0.resnets.0.conv2"


@pytest.fixture(scope="module")
def ran():
    """A record, its batches, what each layer of the simulation was given in the first of them, and all outputs."""
    record = random_record(tiny_denoiser(**ONE_LEVEL), steps=2)
    batches = plan_batches(record, steps=1, inputs=1, mixed=True, seed=0)
    module, inputs = simulation(record, requantized=False), {}
    hooks = _hooked(module, record, lambda name, x: inputs.setdefault(name, x.numpy().copy()) is None or None)
    finals = run_module(module, batches[:1])
    for hook in hooks:
        hook.remove()
    return record, batches[:1], inputs, finals


def step_of(margin):
    return StepOutput(
        bucket=0,
        timestep=0.0,
        samples=1,
        engine_psnr_db=20.0 + margin,
        training_psnr_db=20.0 + margin,
        simulation_psnr_db=20.0,
    )


def kept(inputs):
    return SimpleNamespace(of=lambda _index: {name: (x, x) for name, x in inputs.items()})


def test_an_engine_that_gives_what_the_simulation_gives_is_explained(ran):
    record, batches, inputs, finals = ran
    found = find_parting(record, batches, kept(inputs), finals, step_of(-5.0), requantized=False)
    assert found.explained
    assert (found.layer, found.error) == ("", 0.0)


def test_an_output_that_rounding_does_not_make_is_not_explained_and_the_layer_is_named(ran):
    record, batches, inputs, finals = ran
    wrong = {**inputs, LAYER: inputs[LAYER] * np.float32(1.1)}
    found = find_parting(
        record, batches, kept(wrong), [tuple(1.5 * value for value in finals[0])], step_of(-5.0), requantized=False
    )
    assert not found.explained
    assert found.layer == LAYER
    assert LAYER in found.text()


def test_only_a_low_margin_is_looked_into(ran):
    record, batches, inputs, finals = ran
    known = (record, batches, kept(inputs), finals)
    assert lowest_parting(*known, [step_of(30.0)], requantized=False) is None
    assert lowest_parting(*known, [step_of(30.0), step_of(3.0)], requantized=False) is not None
