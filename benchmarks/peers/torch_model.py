"""The float model in torch, as the peers that quantize modules take it."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import UNet2DModel


def load(model_dir: str, threads: int):
    """The module, in evaluation mode on `threads` threads."""
    torch.set_num_threads(threads)
    return UNet2DModel.from_pretrained(Path(model_dir) / "unet").eval()


def call(module, inputs):
    """Output of a batch of numpy inputs, as a tensor."""
    given = {name: torch.from_numpy(value) for name, value in inputs.items()}
    with torch.inference_mode():
        return module(**given, return_dict=False)[0]


def denoiser(module):
    """The module as a function of numpy inputs."""
    return lambda inputs: call(module, inputs).numpy()
