"""What a default call does not say of the output, two runs on shapes alone say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers.models.controlnets.controlnet import ControlNetOutput

from dq_deploy.errors import ModelError
from dq_deploy.models import build_denoiser, family_of
from dq_deploy.models.default_calls import call_for
from dq_deploy.models.default_calls.output_shapes import with_outputs
from tests.configurations.published import ACCEPTED
from tests.configurations.scaled import scaled

SMALL = {full.class_name: scaled(full) for full in reversed(ACCEPTED)}


def module_of(config: Any) -> torch.nn.Module:
    return build_denoiser(family_of(config), config, device="meta")


@pytest.mark.parametrize("name", ["AuraFlowTransformer2DModel", "SanaTransformer2DModel"])
def test_an_output_is_named_by_the_sizes_it_goes_with(name):
    call = call_for(SMALL[name].config, SMALL[name].sizes)
    assert call.outputs == {}
    assert with_outputs(call, module_of(SMALL[name].config)).outputs == {"output": ("B", 4, "height", "width")}


@pytest.mark.parametrize("name", [name for name in SMALL if not name.startswith(("Aura", "Sana", "Control"))])
def test_what_a_call_says_of_the_output_is_what_a_run_gives(name):
    call = call_for(SMALL[name].config, SMALL[name].sizes)
    assert with_outputs(replace(call, outputs={}), module_of(SMALL[name].config)).outputs == call.outputs


class Several(torch.nn.Module):
    def forward(self, sample, **others):
        return ControlNetOutput(down_block_res_samples=(sample, sample[:, :, 3:]), mid_block_res_sample=sample)


def test_several_outputs_are_named_after_their_fields():
    small = SMALL["UNet2DModel"]
    call = replace(call_for(small.config), outputs={})
    with pytest.raises(ModelError, match=r"axis 2 of the down_block_res_samples.1 that a Several gives goes with none"):
        with_outputs(call, Several())


def test_a_control_network_gives_a_residual_for_each_block_named_by_the_parts_of_its_sides():
    small = SMALL["ControlNetModel"]
    found = with_outputs(call_for(small.config, small.sizes), module_of(small.config))
    assert list(found.outputs)[-2:] == ["down_block_res_samples.3", "mid_block_res_sample"]
    assert found.outputs["down_block_res_samples.1"] == ("B", 8, "height", "width")
    assert found.outputs["mid_block_res_sample"] == ("B", 16, "height_2", "width_2")
    assert found.sizes["height_2"] * 2 == found.sizes["height"]
    assert found.sizes["height_times_8"] == found.sizes["height"] * 8
