"""The default call of UNet2DModel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dq_deploy.errors import ModelError
from dq_deploy.models.default_calls.parts import CallParts, class_labels, sample_sizes, tensor, whole
from dq_deploy.models.sizes import HEIGHT, WIDTH
from dq_deploy.record import BATCH, CallInput
from dq_deploy.record.model_config import channels_of, value_of

TRAINED = (0, 999)
"""Timesteps that a label may be, where it is embedded as they are."""


def unet2d_parts(config: Mapping[str, Any], given: Mapping[str, int]) -> CallParts:
    """`sample`, `timestep`, and labels where the class takes some."""
    return CallParts(
        inputs=(*sample_and_timestep(config), *_labels(config)),
        sizes=sample_sizes(config, given),
        output=(BATCH, channels_of(config, "out_channels"), HEIGHT, WIDTH),
    )


def sample_and_timestep(config: Mapping[str, Any], channels: int | None = None) -> tuple[CallInput, CallInput]:
    """The inputs that every UNet has; the channels are the configuration's `in_channels` where none are given."""
    size = channels_of(config, "in_channels") if channels is None else channels
    return tensor("sample", size, HEIGHT, WIDTH), tensor("timestep")


def _labels(config: Mapping[str, Any]) -> tuple[CallInput, ...]:
    kind = value_of(config, "class_embed_type")
    if kind is None:
        known = value_of(config, "num_class_embeds") is not None
        return (class_labels(whole(config, "num_class_embeds")),) if known else ()
    if kind == "timestep":
        return (tensor("class_labels", limits=TRAINED),)
    if kind == "identity":
        return (tensor("class_labels", 4 * first_width(config)),)
    raise ModelError(f"config.json has class_embed_type {kind!r}, expected null, 'timestep' or 'identity'")


def first_width(config: Mapping[str, Any]) -> int:
    """Channels of the first level.

    Raises:
        ModelError: `block_out_channels` is no list of whole numbers from 1.
    """
    widths = value_of(config, "block_out_channels")
    first = widths[0] if isinstance(widths, (list, tuple)) and widths else None
    if not isinstance(first, int) or isinstance(first, bool) or first < 1:
        raise ModelError(f"config.json has block_out_channels {widths!r}, expected a list of whole numbers from 1")
    return first
