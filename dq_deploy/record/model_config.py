"""What a denoiser's configuration means where it is silent: the defaults of the diffusers class it names.

Only keys that are read outside of diffusers' own constructor are here; the rest diffusers fills in itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from reprlib import repr as short
from typing import Any

from dq_deploy.errors import ModelError

CLASS_DEFAULTS: dict[str, dict[str, Any]] = {
    "UNet2DModel": {"in_channels": 3, "out_channels": 3, "sample_size": None, "num_class_embeds": None},
    "UNet2DConditionModel": {
        "in_channels": 4,
        "out_channels": 4,
        "sample_size": None,
        "num_class_embeds": None,
        "cross_attention_dim": 1280,
    },
}
"""By class of diffusers; a test compares them with its signatures."""


def value_of(config: Mapping[str, Any], key: str) -> Any:
    """A key of the configuration, or the default of the class that it names; None where that is unknown."""
    if key in config:
        return config[key]
    return CLASS_DEFAULTS.get(str(config.get("_class_name")), {}).get(key)


def channels_of(config: Mapping[str, Any], key: str) -> int:
    """`in_channels` or `out_channels`.

    Raises:
        ModelError: no whole number from 1.
    """
    value = value_of(config, key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ModelError(f"config.json has {key} {short(value)}, expected a whole number from 1")
    return value


def sample_size(config: Mapping[str, Any]) -> tuple[int, int]:
    """(height, width) of a sample.

    Raises:
        ModelError: the configuration has none.
    """
    size = value_of(config, "sample_size")
    pair = (size, size) if isinstance(size, int) else size
    whole = isinstance(pair, (list, tuple)) and len(pair) == 2
    if not whole or not all(isinstance(s, int) and not isinstance(s, bool) and s > 0 for s in pair):
        raise ModelError(
            f"config.json has sample_size {short(size)}, expected a whole number or [height, width]; add it"
        )
    return int(pair[0]), int(pair[1])


def sample_shape(config: Mapping[str, Any]) -> tuple[int, int, int]:
    """[C, H, W] of the denoiser's input.

    Raises:
        ModelError: the configuration does not say it.
    """
    return (channels_of(config, "in_channels"), *sample_size(config))
