"""Qwen-Image with the places of its tokens as angles, not as complex numbers, which no engine has.

diffusers' code runs unchanged but for that: the class that makes the places keeps angles, and queries and keys are
turned by their cosines and sines behind the norms that give them: the same sums, in real numbers.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.transformers.transformer_qwenimage import QwenEmbedRope

from dq_deploy.errors import ModelError

ROTATION, ANGLES = "image_rotary_emb", "dq_angles"
TURNED = (("norm_q", 0), ("norm_k", 0), ("norm_added_q", 1), ("norm_added_k", 1))
"""Norms of an attention, and whether they give the picture's tokens or the text's."""

REFUSED = {
    "zero_cond_t": "every sample at two timesteps at once",
    "use_layer3d_rope": "pictures of several layers",
}
"""Entries of a configuration that are not supported, and what they stand for."""


class Angles(QwenEmbedRope):
    """The angles of each token's place: [tokens, head size / 2] of the picture, and of the text."""

    def __init__(self, theta: int, axes_dim: list[int], scale_rope: bool = False) -> None:
        with torch.device("cpu"):  # no file holds them: they have values where only shapes are built
            super().__init__(theta, axes_dim, scale_rope)

    def rope_params(self, index: torch.Tensor, dim: int, theta: float = 10000) -> torch.Tensor:
        """Angles, float32 [places, dim / 2]."""
        return torch.outer(index, 1.0 / torch.pow(theta, torch.arange(0, dim, 2).to(torch.float32).div(dim)))

    def _get_device_freqs(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        return self.pos_freqs.to(device), self.neg_freqs.to(device)

    _compute_video_freqs = QwenEmbedRope._compute_video_freqs.__wrapped__  # what is kept would outlive a trace


def with_angles(module: Any) -> torch.nn.Module:
    """The same QwenImageTransformer2DModel, which turns queries and keys by real numbers.

    Raises:
        ModelError: the configuration asks for what is not supported.
    """
    for key, what in REFUSED.items():
        if module.config[key]:
            raise ModelError(f"config.json has {key}, which stands for {what}; this is not supported")
    old = module.pos_embed
    module.pos_embed = Angles(old.theta, old.axes_dim, old.scale_rope)
    for block in module.transformer_blocks:
        block.attn.register_forward_pre_hook(_hand_over, with_kwargs=True)
        block.attn.register_forward_hook(_take_back)
        for name, _ in TURNED:
            getattr(block.attn, name).register_forward_hook(_turn)
    return module


def _hand_over(
    attention: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Give each norm the angles of its tokens."""
    angles = kwargs[ROTATION]
    for name, stream in TURNED:
        setattr(getattr(attention, name), ANGLES, angles[stream])
    return args, {**kwargs, ROTATION: None}


def _take_back(attention: torch.nn.Module, *_: object) -> None:
    for name, _stream in TURNED:
        delattr(getattr(attention, name), ANGLES)


def _turn(norm: torch.nn.Module, _: object, x: torch.Tensor) -> torch.Tensor:
    """[B, tokens, heads, head size] with each pair of neighbours turned by its token's angle."""
    angles = getattr(norm, ANGLES)[:, None]
    cos, sin = angles.cos(), angles.sin()
    first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([first * cos - second * sin, first * sin + second * cos], dim=-1).flatten(-2)
