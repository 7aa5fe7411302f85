"""The denoisers: any model class of diffusers that is told the time, built from its configuration alone."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from reprlib import repr as short
from typing import TYPE_CHECKING, Any

from dq_deploy.errors import ModelError, first_line, raise_if_out_of_memory

if TYPE_CHECKING:
    import torch

    from dq_deploy.record import Call, Record

CLASS_NAMES = {"UNet2DModel": "unet2d", "UNet2DConditionModel": "unet2d_condition"}
"""The two classes whose family has a name of its own in records; every other class's is the class name."""

TRIED = (
    "UNet2DModel",
    "UNet2DConditionModel",
    "DiTTransformer2DModel",
    "PixArtTransformer2DModel",
    "SD3Transformer2DModel",
    "FluxTransformer2DModel",
    "ControlNetModel",
    "SanaTransformer2DModel",
    "AuraFlowTransformer2DModel",
    "HunyuanDiT2DModel",
    "QwenImageTransformer2DModel",
    "CogVideoXTransformer3DModel",
    "WanTransformer3DModel",
    "LTXVideoTransformer3DModel",
    "UNetSpatioTemporalConditionModel",
    "UNetMotionModel",
    "StableAudioDiTModel",
    "AudioLDM2UNet2DConditionModel",
    "UNet1DModel",
)
"""The classes of diffusers that this project's tests quantize, export and sample."""

NOT_SUPPORTED = {
    "Lumina2Transformer2DModel": (
        "makes numbers of Python of the lengths of its texts, so that no graph of it holds for two batches; it would "
        "need the places of its tokens computed from the mask"
    ),
    "ZImageTransformer2DModel": (
        "takes lists of samples and texts, each of its own size, and calls its timestep 't'; it would need a forward "
        "with a batch in front"
    ),
}
"""Classes that denoise and are not taken all the same, with what they would need."""


def family_of(config: Mapping[str, Any]) -> str:
    """Family of a diffusers configuration, by its `_class_name`.

    Raises:
        ModelError: it names no class.
    """
    name = config.get("_class_name")
    if not isinstance(name, str) or not name.isidentifier():
        raise ModelError(f"config.json names the class {short(name)}, expected the name of a diffusers class")
    return CLASS_NAMES.get(name, name)


def class_of_family(family: str) -> str:
    """Name of a family's class in diffusers."""
    return next((name for name, own in CLASS_NAMES.items() if own == family), family)


def family_of_module(module: torch.nn.Module) -> str:
    """Family of a diffusers module, by its class."""
    name = type(module).__name__
    return CLASS_NAMES.get(name, name)


def words_of_untried(family: str) -> str:
    """What is said of a class that no test of this project has; nothing of those that have one."""
    name = class_of_family(family)
    if name in TRIED:
        return ""
    return (
        f"{name} was never tried here: it is taken by the same rules as {', '.join(TRIED[2:6])} and "
        f"{len(TRIED) - 6} more classes, so compare its pictures"
    )


def build_denoiser(family: str, config: Mapping[str, Any], *, device: str = "cpu") -> torch.nn.Module:
    """A denoiser with random weights, float32, eval mode, no gradients.

    Args:
        family: `unet2d`, `unet2d_condition`, or the name of another class of diffusers.
        config: its diffusers configuration; keys that begin with `_` are not read.
        device: `meta` makes shapes only, at no cost; buffers that no file holds have their values all the same.

    Raises:
        ModelError: diffusers has no such class or it does not denoise, or the configuration is one that diffusers
            cannot build or run.
    """
    name = class_of_family(family)
    kind = _denoiser_class(name)
    plain = {key: value for key, value in config.items() if not key.startswith("_")}
    module = _built(kind, plain, device)
    if name in TRIED:
        _check_runs(module, {**config, "_class_name": name})
    return module


def _denoiser_class(name: str) -> type:
    """The class of this name, if it is one that denoises.

    Raises:
        ModelError: it is not.
    """
    from dq_deploy.models.load.component_class import denoises, diffusers_class

    kind = diffusers_class(name)
    if kind is None:
        raise ModelError(f"denoiser family {short(name)} is unknown: diffusers has no class of this name")
    if not denoises(kind):
        raise ModelError(f"{name} is no model that is told a timestep, so it does not denoise; expected such a class")
    if name in NOT_SUPPORTED:
        raise ModelError(f"{name} {NOT_SUPPORTED[name]}; this class is not supported")
    taken = inspect.signature(vars(kind).get("forward", kind)).parameters
    if "timestep" not in taken:
        other = next(name for name in taken if "timestep" in name or name in ("t", "r"))
        raise ModelError(
            f"the forward of {name} calls its timestep {other!r}, expected 'timestep'; this class is not supported"
        )
    return kind


def _built(kind: type, plain: Mapping[str, Any], device: str) -> torch.nn.Module:
    """The module that a configuration describes.

    Raises:
        ModelError: diffusers cannot build it, or it has no layer that could be quantized.
    """
    import torch

    from dq_deploy.models.layers import is_quantizable

    try:
        with torch.device(device):
            module = _made(kind, plain)
        if device == "meta":
            _fill_buffers(module, kind, plain)
    except ModelError:
        raise
    except Exception as error:
        raise_if_out_of_memory(error)
        raise ModelError(
            f"config.json does not describe a {kind.__name__} that can be built: {first_line(error)}"
        ) from error
    if not any(is_quantizable(child) for child in module.modules()):
        raise ModelError(f"{kind.__name__} has no linear layer and no 2-D convolution; nothing of it can be quantized")
    return module.eval().requires_grad_(False)


def _made(kind: type, plain: Mapping[str, Any]) -> torch.nn.Module:
    from dq_deploy.models.families import adapted

    if kind.__name__ == "UNet2DModel":
        from dq_deploy.models.families.stem import unet2d_with_stem

        return unet2d_with_stem(plain)
    module: torch.nn.Module = kind(**plain)
    return adapted(module)


def _fill_buffers(module: torch.nn.Module, kind: type, plain: Mapping[str, Any]) -> None:
    """Give buffers that no file holds, as the places of tokens, the values that the class computes for them."""
    from dq_deploy.models.buffers import computed_buffers, set_computed_buffer, without_weights

    computed = [name for name, value in computed_buffers(module).items() if value.is_meta]
    if not computed:
        return
    with without_weights():
        values = computed_buffers(_made(kind, plain))
    for name in computed:
        set_computed_buffer(module, name, values[name])


def _check_runs(module: torch.nn.Module, config: Mapping[str, Any]) -> None:
    """Run a module on shapes alone, as its configuration says it is called.

    Raises:
        ModelError: it cannot run so: diffusers checks little of a configuration.
    """
    from dq_deploy.models.capture.captured import captured

    try:
        call = default_call(config)
    except ModelError:
        if config.get("sample_size") is not None:
            raise
        # any size will do: one that every level halves evenly
        side = 2 ** max(3, len(config.get("block_out_channels") or (1, 1, 1, 1)))
        call = default_call(config, {"height": side, "width": side})
    captured(module, call)


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
    if record.call is not None and record.call.outputs:
        return record.call
    return default_call(record.model_config)
