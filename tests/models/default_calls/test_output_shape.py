"""What a default call does not say of the output, two runs on shapes alone say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import diffusers
import pytest
import torch

from dq_deploy.errors import ModelError
from dq_deploy.models.default_calls import call_for
from dq_deploy.models.default_calls.output_shape import with_output
from tests.configurations.published import ACCEPTED
from tests.configurations.scaled import scaled

SMALL = {full.class_name: scaled(full) for full in reversed(ACCEPTED)}


def module_of(config: Any) -> torch.nn.Module:
    with torch.device("meta"):
        return getattr(diffusers, config["_class_name"])(**{k: v for k, v in config.items() if k[0] != "_"})


@pytest.mark.parametrize("name", ["AuraFlowTransformer2DModel", "SanaTransformer2DModel"])
def test_an_output_is_named_by_the_sizes_it_goes_with(name):
    call = call_for(SMALL[name].config, SMALL[name].sizes)
    assert call.output == ()
    assert with_output(call, module_of(SMALL[name].config)).output == ("B", 4, "height", "width")


@pytest.mark.parametrize("name", [name for name in SMALL if not name.startswith(("Aura", "Sana"))])
def test_what_a_call_says_of_the_output_is_what_a_run_gives(name):
    call = call_for(SMALL[name].config, SMALL[name].sizes)
    assert with_output(replace(call, output=()), module_of(SMALL[name].config)).output == call.output


class Several(torch.nn.Module):
    def forward(self, sample, **others):
        return sample, sample


def test_several_outputs_are_refused():
    small = SMALL["UNet2DModel"]
    with pytest.raises(ModelError, match="a Several gives 2 outputs, expected one tensor"):
        with_output(replace(call_for(small.config), output=()), Several())
