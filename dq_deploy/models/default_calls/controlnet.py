"""The default call of ControlNetModel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dq_deploy.models.default_calls.parts import CallParts, tensor, whole
from dq_deploy.models.default_calls.unet2d_condition import PICTURE, given_parts, picture_sizes
from dq_deploy.models.sizes import TOKENS


def controlnet_parts(config: Mapping[str, Any], given: Mapping[str, int]) -> CallParts:
    """What the UNet beside it is given, and the control picture; it has several outputs."""
    parts = given_parts(config, given)
    picture = tensor("controlnet_cond", whole(config, "conditioning_channels"), *PICTURE)
    at = next((i for i, item in enumerate(parts.inputs) if TOKENS in item.shape), len(parts.inputs) - 1) + 1
    return CallParts(
        inputs=(*parts.inputs[:at], picture, *parts.inputs[at:]),
        sizes={**parts.sizes, **picture_sizes(parts.sizes)},
        constants=parts.constants,
    )
