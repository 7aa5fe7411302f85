"""What no default call fits is refused at full size, without weights, in one line that says why."""

from __future__ import annotations

import pytest

from dq_deploy.errors import ModelError
from dq_deploy.models import build_denoiser, default_call, family_of
from dq_deploy.models.default_calls.output_shapes import with_outputs
from tests.configurations.configuration import Configuration
from tests.configurations.published import PUBLISHED


def taken(full: Configuration) -> None:
    module = build_denoiser(family_of(full.config), full.config, device="meta")
    with_outputs(default_call(full.config), module)


@pytest.mark.parametrize("full", [one for one in PUBLISHED if one.refusal is not None], ids=lambda one: one.name)
def test_a_refusal_says_why(full):
    with pytest.raises(ModelError) as caught:
        taken(full)
    assert full.refusal in str(caught.value)
    assert "\n" not in str(caught.value)
