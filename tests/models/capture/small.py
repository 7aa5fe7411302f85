"""Small denoisers of the image transformers, with seeded random weights, norms and gates included."""

from __future__ import annotations

import torch

from dq_deploy.models import build_denoiser, default_call, family_of
from dq_deploy.record import Call
from tests.configurations.published import ACCEPTED
from tests.configurations.scaled import scaled

DIT, PIXART, SD3, FLUX = "DiT-XL-2-256", "PixArt-XL-2-1024-MS", "stable-diffusion-3.5-medium", "FLUX.1-schnell"


def small(name: str, *, device: str = "meta") -> tuple[torch.nn.Module, Call]:
    """The small form of a published denoiser whose name begins so, and its call."""
    form = scaled(next(one for one in ACCEPTED if one.name.startswith(name)))
    torch.manual_seed(0)
    module = build_denoiser(family_of(form.config), form.config, device=device)
    if device != "meta":
        for parameter in module.parameters():  # diffusers begins with ones and zeros, which would hide a wrong fold
            parameter.data += 0.2 * torch.randn(parameter.shape)
    return module, default_call(form.config, form.sizes)
