"""A few steps of a small form by diffusers' own scheduler, its engine in the denoiser's place."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, FluxPipeline, UNet2DConditionModel
from diffusers.configuration_utils import FrozenDict

from dq_deploy.engines.base import Runner
from dq_deploy.models import Denoiser, call_arguments, example_inputs, input_specs
from dq_deploy.models.pipeline.denoiser_pipeline import DenoiserPipeline
from dq_deploy.pipelines.integer_denoiser import IntegerDenoiser
from dq_deploy.record import BATCH

STEPS = 3
"""From 1 on at the least: a Fourier embedding takes the logarithm of the timestep."""

FLUX_CHANNELS = 64
"""Of a token that is denoised; what is more are control pictures."""

FLOWING = (
    "SD3Transformer2DModel",
    "FluxTransformer2DModel",
    "AuraFlowTransformer2DModel",
    "SanaTransformer2DModel",
    "QwenImageTransformer2DModel",
    "WanTransformer3DModel",
    "LTXVideoTransformer3DModel",
)


class BesideOthers(torch.nn.Module):
    """A denoiser that reads more channels than are denoised, as inpainting does: the others are fixed.

    A pipeline puts the mask and the masked picture behind its latents at every step; here they are constant.
    """

    def __init__(
        self, denoiser: torch.nn.Module, kept: int, extra: torch.Tensor, axis: int, constants: Mapping[str, Any]
    ) -> None:
        super().__init__()
        self.constants = constants
        self.denoiser, self.kept, self.extra, self.axis = denoiser, kept, extra, axis
        self.config = FrozenDict({**denoiser.config, "in_channels": kept, "out_channels": kept})
        self.dtype, self.device = torch.float32, torch.device("cpu")

    def __getattr__(self, name: str) -> Any:
        """What pipelines look up besides."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("denoiser"), name)

    def forward(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, ...]:
        """The denoised channels of the output; the sample is the first argument, or FLUX's by name."""
        first, *rest = args or (kwargs.pop("hidden_states"),)
        whole = torch.cat([first, self.extra[: len(first)]], self.axis)
        output = self.denoiser(whole, *rest, **{**self.constants, **kwargs, "return_dict": False})[0]
        return (output.narrow(self.axis, 0, self.kept),)


class UnderControl(torch.nn.Module):
    """A float UNet that follows a control network in integers, both called with the same arguments."""

    def __init__(self, control: torch.nn.Module, denoiser: Denoiser, picture: torch.Tensor) -> None:
        super().__init__()
        known = inspect.signature(UNet2DConditionModel).parameters
        config = {name: value for name, value in denoiser.module.config.items() if name in known}
        up = [kind.replace("Down", "Up") for kind in reversed(config["down_block_types"])]
        self.unet = UNet2DConditionModel(**config, up_block_types=up).eval().requires_grad_(False)
        self.control, self.picture = control, picture
        self.config, self.dtype, self.device = self.unet.config, torch.float32, torch.device("cpu")

    def forward(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, ...]:
        """Of the UNet."""
        batch = len(args[0])
        down, mid = self.control(*args, controlnet_cond=self.picture[:batch], **{**kwargs, "return_dict": False})
        residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
        return self.unet(*args, **residuals, **{**kwargs, "return_dict": False})


def sampled(denoiser: Denoiser, runner: Runner) -> torch.Tensor:
    """The latents of two samples after a few steps.

    Args:
        denoiser: the small form, for its call and configuration.
        runner: the engine.
    """
    module = IntegerDenoiser(runner)
    inputs = example_inputs(denoiser.call, 2, 3)
    rest = {name: torch.from_numpy(value) for name, value in inputs.items() if name != "timestep"}
    first = input_specs(denoiser.call)[0].name
    sample = rest.pop(first)
    flowing = type(denoiser.module).__name__ in FLOWING
    scheduler = FlowMatchEulerDiscreteScheduler() if flowing else DDIMScheduler(clip_sample=False, steps_offset=1)
    if type(denoiser.module).__name__ == "FluxTransformer2DModel":
        packed = FLUX_CHANNELS if sample.shape[2] > FLUX_CHANNELS else sample.shape[2]
        return _flux(module if packed == sample.shape[2] else _narrowed(module, sample, packed, 2, {}), scheduler, rest)
    if sample.ndim != 4 or any(item.shape[0] != BATCH for item in denoiser.call.inputs):
        return _by_hand(denoiser, module, scheduler, sample, rest)
    if type(denoiser.module).__name__ == "ControlNetModel":
        module, sample_channels = UnderControl(module, denoiser, rest.pop("controlnet_cond")), sample.shape[1]
    else:
        sample_channels = int(denoiser.call.outputs["output"][1])
    channels, has = sample_channels, sample.shape[1]
    kept = min(has, channels)
    plain = channels in (has, 2 * has) and not denoiser.call.constants
    narrowed = module if plain else _narrowed(module, sample, kept, 1, denoiser.call.constants)
    pipe = DenoiserPipeline(narrowed, scheduler)
    pipe.set_progress_bar_config(disable=True)
    done = pipe(
        batch_size=2,
        num_inference_steps=STEPS,
        conditions=rest,
        height=sample.shape[2],
        width=sample.shape[3],
        generator=[torch.Generator().manual_seed(i) for i in range(2)],
        output_type="latent",
    )
    latents: torch.Tensor = done.images
    return latents


def _by_hand(
    denoiser: Denoiser, module: torch.nn.Module, scheduler: Any, sample: torch.Tensor, rest: Mapping[str, torch.Tensor]
) -> torch.Tensor:
    """Where the sample is no image, or samples share an input: a loop; what is not denoised of it stays as it is."""
    call = denoiser.call
    name = input_specs(call)[0].name
    output = call.outputs["output"]
    axis = next((i for i, size in enumerate(output) if size != call.inputs[0].shape[i]), None)
    kept = sample.shape[1] if axis is None else min(int(output[axis]), sample.shape[axis])
    axis = 1 if axis is None else axis
    latents, extra = sample.split([kept, sample.shape[axis] - kept], axis)
    limits = next(item.limits for item in call.inputs if item.name == "timestep")
    scheduler.set_timesteps(STEPS)
    for timestep in scheduler.timesteps:
        time = timestep.float() * (1 if limits is None else limits[1] / 1000)
        inputs = {name: torch.cat([latents, extra], axis), "timestep": time.expand(len(sample)), **rest}
        arguments = call_arguments(inputs, call.constants)
        noise = module(**arguments, return_dict=False)[0]
        noise = noise.narrow(axis, 0, kept)  # behind it may stand a variance
        latents = scheduler.step(noise, timestep, latents).prev_sample
    return latents


def _narrowed(
    module: torch.nn.Module, sample: torch.Tensor, kept: int, axis: int, constants: Mapping[str, Any]
) -> torch.nn.Module:
    extra = sample.narrow(axis, kept, sample.shape[axis] - kept)
    return BesideOthers(module, kept, extra, axis, constants)


def _flux(module: torch.nn.Module, scheduler: Any, rest: dict[str, torch.Tensor]) -> torch.Tensor:
    pipe = FluxPipeline(
        scheduler=scheduler,
        vae=None,
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        transformer=module,
    )
    pipe.set_progress_bar_config(disable=True)
    side = 16 * round(len(rest["img_ids"]) ** 0.5)
    done = pipe(
        prompt_embeds=rest["encoder_hidden_states"],
        pooled_prompt_embeds=rest["pooled_projections"],
        height=side,
        width=side,
        num_inference_steps=STEPS,
        output_type="latent",
    )
    latents: torch.Tensor = done.images
    return latents
