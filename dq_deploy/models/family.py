"""The family of a denoiser, by its configuration or its module, and what follows from that alone."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from reprlib import repr as short
from typing import TYPE_CHECKING, Any, cast

from dq_deploy.errors import ModelError
from dq_deploy.models.layers import Family

if TYPE_CHECKING:
    import torch

    from dq_deploy.record import Call, Record

FAMILIES = ("unet2d", "unet2d_condition")
"""Names of the denoiser families; each is a module of `families`."""

CLASS_NAMES = {"UNet2DModel": "unet2d", "UNet2DConditionModel": "unet2d_condition"}
"""diffusers class name of each family."""


def family_of(config: Mapping[str, Any]) -> str:
    """Family of a diffusers configuration, by its `_class_name`.

    Raises:
        ModelError: the class is not one of the supported ones.
    """
    name = config.get("_class_name")
    if not isinstance(name, str) or name not in CLASS_NAMES:
        raise ModelError(f"config.json names the class {short(name)}, expected one of {', '.join(CLASS_NAMES)}")
    return CLASS_NAMES[name]


def family_module(family: str) -> Family:
    """What differs in one family.

    Raises:
        ModelError: there is no such family.
    """
    if family not in FAMILIES:
        raise ModelError(f"denoiser family {family!r} is unknown, expected one of {', '.join(FAMILIES)}")
    return cast("Family", importlib.import_module(f"dq_deploy.models.families.{family}"))


def family_of_config(config: Mapping[str, Any]) -> Family:
    """What differs in the family of a diffusers configuration."""
    return family_module(family_of(config))


def family_of_module(module: torch.nn.Module) -> Family:
    """What differs in the family of a diffusers module.

    Raises:
        ModelError: its class is not one of the supported ones.
    """
    name = type(module).__name__
    if name not in CLASS_NAMES:
        raise ModelError(f"module is a {name}, expected one of {', '.join(CLASS_NAMES)}")
    return family_module(CLASS_NAMES[name])


def build_denoiser(family: str, config: Mapping[str, Any], *, device: str = "cpu") -> torch.nn.Module:
    """A denoiser with random weights, float32, eval mode; `device="meta"` makes shapes only, at no cost.

    Raises:
        ModelError: unknown family, or a configuration that diffusers cannot build or that is not supported.
    """
    return family_module(family).build(config, device=device)


def default_call(config: Mapping[str, Any], sizes: Mapping[str, int] | None = None) -> Call:
    """How a denoiser of this configuration is called where no pipeline was seen to call it.

    Args:
        config: its diffusers configuration.
        sizes: of the axes that vary, by name; those left out are the configuration's.

    Raises:
        ModelError: the configuration does not say the shapes.
    """
    from dq_deploy.models.default_calls import call_for

    return call_for(config, sizes or {})


def call_of_record(record: Record) -> Call:
    """How a record's denoiser is called: as the record says, or by its configuration where an older version did not."""
    if record.call is not None and record.call.output:
        return record.call
    return default_call(record.model_config)
