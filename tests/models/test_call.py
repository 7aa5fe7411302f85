"""A denoiser that fails names the layer that was running, and gives one tensor."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers.models.transformers.prior_transformer import PriorTransformerOutput

from dq_deploy.errors import LibraryError
from dq_deploy.models import call_denoiser, example_inputs
from dq_deploy.models.call import named_outputs
from dq_deploy.simulation.fake_quant import simulate
from tests.tiny import ONE_LEVEL, random_record, tiny_denoiser

LAYER = "up_blocks.0.resnets.1.conv2"


@pytest.mark.parametrize("simulated", [False, True])
def test_the_failing_layer_is_named(simulated, monkeypatch):
    denoiser = tiny_denoiser(**ONE_LEVEL)
    inputs = {name: torch.from_numpy(np.array(v)) for name, v in example_inputs(denoiser.call, 2, 0).items()}
    module = simulate(random_record(denoiser)) if simulated else denoiser.module
    name = f"denoiser.{LAYER}" if simulated else LAYER
    child = module.get_submodule(name)

    def breaks(*_args):
        raise ValueError("kernel is broken")

    monkeypatch.setattr(child, "forward", breaks)
    with pytest.raises(LibraryError, match=f"the denoiser fails in layer {LAYER}: ValueError: kernel is broken"):
        call_denoiser(module, inputs)


def test_a_wrong_shape_names_the_layer_that_meets_it():
    denoiser = tiny_denoiser(**ONE_LEVEL)
    inputs = {"sample": torch.ones(1, 2, 8, 8), "timestep": torch.ones(1)}
    with pytest.raises(LibraryError, match="fails in layer conv_in: RuntimeError"):
        call_denoiser(denoiser.module, inputs)


def test_a_denoiser_s_tensor_is_found_whatever_its_output_calls_it() -> None:
    tensor = torch.ones(1)
    assert named_outputs(PriorTransformerOutput(predicted_image_embedding=tensor))["output"] is tensor
    assert named_outputs((tensor,))["output"] is tensor
    assert named_outputs(tensor)["output"] is tensor
