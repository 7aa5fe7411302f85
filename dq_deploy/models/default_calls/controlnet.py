"""The default call of ControlNetModel, which reads a latent and a control picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dq_deploy.errors import ModelError
from dq_deploy.models.default_calls.parts import CallParts, tensor, whole
from dq_deploy.models.default_calls.unet2d_condition import unet2d_condition_parts
from dq_deploy.models.sizes import HEIGHT, WIDTH, multiple_name
from dq_deploy.record.model_config import value_of

CONTROL_PICTURE = "controlnet_cond"


def controlnet_parts(config: Mapping[str, Any], given: Mapping[str, int]) -> CallParts:
    """The inputs of a UNet of the same configuration, and `controlnet_cond` behind the text as the forward has it.

    A run says the shapes of the outputs, a residual for each block of the UNet beside it.

    Raises:
        ModelError: a value of the configuration that decides a shape is missing or wrong.
    """
    parts = unet2d_condition_parts({**config, "out_channels": whole(config, "in_channels")}, given)
    pixels = picture_pixels(config)
    names = {side: side if pixels == 1 else multiple_name(side, pixels) for side in (HEIGHT, WIDTH)}
    picture = tensor(CONTROL_PICTURE, whole(config, "conditioning_channels"), *names.values())
    first = [item for item in parts.inputs if item.name in ("sample", "timestep", "encoder_hidden_states")]
    rest = [item for item in parts.inputs if item not in first]
    return CallParts(
        inputs=(*first, picture, *rest),
        sizes={**parts.sizes, **{names[side]: pixels * parts.sizes[side] for side in names}},
        constants=parts.constants,
    )


def picture_pixels(config: Mapping[str, Any]) -> int:
    """Pixels of the control picture along each side of a position of the sample: its embedding halves it at each level.

    Raises:
        ModelError: the configuration's levels are no list.
    """
    levels = value_of(config, "conditioning_embedding_out_channels")
    if not isinstance(levels, (list, tuple)) or not levels:
        raise ModelError(
            f"config.json has conditioning_embedding_out_channels {levels!r}, expected a list of channels, one a level"
        )
    return 1 << (len(levels) - 1)
