"""A small UNet2DModel and a record of it with arbitrary quantizers: real code paths at toy cost."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from dq_deploy.models import Denoiser, build_denoiser, default_call, quantizable_layers
from dq_deploy.record import Layer, Part, Record, edges_from_timesteps

SCHEDULER = {
    "_class_name": "DDPMScheduler",
    "num_train_timesteps": 1000,
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "epsilon",
    "clip_sample": True,
    "timestep_spacing": "leading",
    "steps_offset": 0,
    "variance_type": "fixed_small",
}


def tiny_config(classes: int | None = None, **changes: Any) -> dict[str, Any]:
    """Configuration of a UNet2DModel with one attention block, 8x8 images and about 20,000 parameters."""
    return {
        "_class_name": "UNet2DModel",
        "sample_size": 8,
        "in_channels": 1,
        "out_channels": 1,
        "layers_per_block": 1,
        "block_out_channels": [8, 16],
        "norm_num_groups": 4,
        "attention_head_dim": 8,
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
        "num_class_embeds": classes,
        **changes,
    }


ONE_LEVEL: dict[str, Any] = {
    "block_out_channels": [8],
    "down_block_types": ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"],
    "add_attention": False,
}
"""Changes of `tiny_config` for a third of the layers and of the time to trace them."""


ONE_TEXT_LEVEL: dict[str, Any] = {
    "block_out_channels": [8],
    "down_block_types": ["CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D"],
    "mid_block_type": None,
    "attention_head_dim": 2,
    "transformer_layers_per_block": 1,
}
"""Changes of `tiny_conditional_config` for one level and no middle block: every kind of layer, a third of the time."""


def tiny_denoiser(
    seed: int = 0, classes: int | None = None, sizes: dict[str, int] | None = None, **changes: Any
) -> Denoiser:
    """A tiny float denoiser with seeded random weights, called at its configuration's size or at others."""
    import torch

    torch.manual_seed(seed)
    config = tiny_config(classes, **changes)
    module = build_denoiser("unet2d", config)
    return Denoiser(
        family="unet2d",
        module=module,
        config=config,
        call=default_call(config, sizes),
        scheduler_config=dict(SCHEDULER),
        source="tiny",
        source_sha256="0" * 64,
    )


def tiny_conditional_config(sdxl: bool = False, **changes: Any) -> dict[str, Any]:
    """Configuration of a UNet2DConditionModel as Stable Diffusion 1.x has it, or as SDXL; about 50,000 parameters."""
    config = {
        "_class_name": "UNet2DConditionModel",
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "layers_per_block": 1,
        "block_out_channels": [8, 16],
        "norm_num_groups": 4,
        "cross_attention_dim": 12,
        "attention_head_dim": 2,
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    }
    if sdxl:
        config |= {
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 4,
            "projection_class_embeddings_input_dim": 32,
            "attention_head_dim": [1, 2],
            "transformer_layers_per_block": [1, 2],
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
        }
    return {**config, **changes}


LATENT_SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "clip_sample": False,
}


def tiny_conditional_denoiser(seed: int = 0, sdxl: bool = False, **changes: Any) -> Denoiser:
    """A tiny text-conditioned float denoiser with seeded random weights, norms and biases included."""
    import torch

    torch.manual_seed(seed)
    config = tiny_conditional_config(sdxl, **changes)
    module = build_denoiser("unet2d_condition", config)
    for name, parameter in module.named_parameters():
        if "norm" in name:  # diffusers begins with ones and zeros, which would hide a wrong fold
            parameter.data += 0.3 * torch.randn(parameter.shape)
    return Denoiser(
        family="unet2d_condition",
        module=module,
        config=config,
        call=default_call(config),
        scheduler_config=dict(LATENT_SCHEDULER),
        source="tiny conditional",
        source_sha256="1" * 64,
    )


def random_record(
    denoiser: Denoiser, *, weight_bits: int = 4, activation_bits: int = 8, steps: int = 6, seed: int = 0
) -> Record:
    """A record with real weight codes and random activation quantizers; every layer but the time embedding."""
    rng = np.random.default_rng(seed)
    parameters = {key: value.detach().numpy().copy() for key, value in denoiser.module.state_dict().items()}
    layers = {}
    for site in quantizable_layers(denoiser.module, denoiser.call):
        if site.name.startswith("time_embedding"):
            continue
        weight = parameters.pop(f"{site.name}.weight")
        half = 2 ** (weight_bits - 1)
        pre = rng.uniform(0.5, 1, weight.shape[1]).astype(np.float32)
        tail = (1,) * (weight.ndim - 2)
        scaled = weight / pre.reshape(1, -1, *tail)
        weight_scale = (np.abs(scaled).reshape(len(weight), -1).max(axis=1) / (half - 0.5)).astype(np.float32)
        code = np.clip(np.rint(scaled / weight_scale.reshape(-1, 1, *tail)), -half, half - 1)
        levels = 2**activation_bits - 1
        part = Part(
            pre=pre,
            scale=(rng.uniform(4, 7, steps) / levels).astype(np.float32),
            zero_point=rng.integers(levels // 4, levels // 2 + 1, steps).astype(np.int32),
            w_code=code.astype(np.int8)[None],
            w_zero_point=np.zeros((1, len(weight)), np.int32),
            weight_scale=weight_scale[None],
        )
        layers[site.name] = Layer(
            name=site.name,
            kind=site.kind,
            stride=site.stride,
            padding=site.padding,
            dilation=site.dilation,
            groups=site.groups,
            weight_bits=weight_bits,
            activation_bits=activation_bits,
            q_min=0,
            q_max=levels,
            parts=(part,),
            bias=parameters.pop(f"{site.name}.bias", None),
            out_scale=np.full(steps, 8 / 255, np.float32),
            out_zero_point=np.full(steps, 128, np.int32),
        )
    timesteps = np.linspace(0, 950, steps).astype(np.float32)
    return Record(
        family=denoiser.family,
        layers=layers,
        timesteps=timesteps,
        step_edges=edges_from_timesteps(timesteps),
        float_parameters=parameters,
        model_config=denoiser.config,
        scheduler_config=denoiser.scheduler_config,
    )


def with_shared_quantizers(record: Record) -> Record:
    """The record with one quantizer for q, k and v of a self-attention, and for k and v of a cross-attention."""
    layers = dict(record.layers)
    for name, layer in record.layers.items():
        module, _, own = name.rpartition(".")
        read_first = {"to_k": ("to_q", "to_k"), "to_v": ("to_q", "to_k")}.get(own, ())
        for other in read_first:
            first = layers.get(f"{module}.{other}")
            if first is None or first.in_channels != layer.in_channels or ("attn2" in module and other == "to_q"):
                continue
            tables = {field: getattr(first.parts[0], field) for field in ("pre", "scale", "zero_point")}
            layers[name] = dataclasses.replace(layer, parts=(dataclasses.replace(layer.parts[0], **tables),))
            break
    return dataclasses.replace(record, layers=layers)
