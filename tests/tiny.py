"""A denoiser small enough to quantize in a second, with every structure the real ones have."""

from __future__ import annotations

from typing import Any

from dq_deploy.models import Denoiser, build_denoiser

SCHEDULER_CONFIG: dict[str, Any] = {
    "_class_name": "DDPMScheduler",
    "num_train_timesteps": 1000,
    "beta_schedule": "squaredcos_cap_v2",
    "clip_sample": True,
    "prediction_type": "epsilon",
    "timestep_spacing": "leading",
}


def tiny_config(classes: int | None = None) -> dict[str, Any]:
    """A UNet2DModel of 8 x 8 samples: two levels, an attention block, skip concatenations."""
    return {
        "_class_name": "UNet2DModel",
        "sample_size": 8,
        "in_channels": 1,
        "out_channels": 1,
        "layers_per_block": 1,
        "block_out_channels": [8, 16],
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
        "attention_head_dim": 8,
        "norm_num_groups": 4,
        "num_class_embeds": classes,
    }


def tiny_denoiser(seed: int = 0, classes: int | None = None) -> Denoiser:
    """A tiny denoiser with random weights and random norm parameters."""
    import torch

    config = tiny_config(classes)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = build_denoiser("unet2d", config)
        for name, parameter in module.named_parameters():
            if "norm" in name:
                parameter.data += 0.3 * torch.randn_like(parameter)
    return Denoiser(
        family="unet2d",
        module=module,
        config=config,
        scheduler_config=dict(SCHEDULER_CONFIG),
        source="tiny",
        source_sha256=f"{seed:064x}",
    )
