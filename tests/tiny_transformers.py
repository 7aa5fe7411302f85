"""Tiny float transformers: two streams that each block takes and gives, and tensors that samples share."""

from __future__ import annotations

from typing import Any

from dq_deploy.models import Denoiser, build_denoiser, default_call

SD3: dict[str, Any] = {
    "_class_name": "SD3Transformer2DModel",
    "sample_size": 8,
    "patch_size": 2,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 2,
    "attention_head_dim": 4,
    "num_attention_heads": 2,
    "caption_projection_dim": 8,
    "joint_attention_dim": 6,
    "pooled_projection_dim": 6,
    "pos_embed_max_size": 8,
}

FLUX: dict[str, Any] = {
    "_class_name": "FluxTransformer2DModel",
    "in_channels": 4,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "joint_attention_dim": 6,
    "pooled_projection_dim": 6,
    "guidance_embeds": True,
    "axes_dims_rope": [2, 2, 4],
}

SIZES = {
    "SD3Transformer2DModel": {"height": 8, "width": 8, "tokens": 6},
    "FluxTransformer2DModel": {"image_tokens": 16, "tokens": 6},
}

FLOW_SCHEDULER = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}


def tiny_transformer(config: dict[str, Any], seed: int = 0) -> Denoiser:
    """A float transformer with seeded random weights, norms and biases included."""
    import torch

    torch.manual_seed(seed)
    name = config["_class_name"]
    module = build_denoiser(name, config)
    for parameter in module.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape)
    return Denoiser(
        family=name,
        module=module,
        config=config,
        call=default_call(config, SIZES[name]),
        scheduler_config=dict(FLOW_SCHEDULER),
        source="tiny transformer",
        source_sha256="2" * 64,
    )
