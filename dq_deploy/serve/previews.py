"""A picture on the way: what the pipeline has so far, as its VAE shows it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from dq_deploy.errors import OptionError
from dq_deploy.models.pipeline.call import PICTURE_CHANNELS
from dq_deploy.numerics.arrays import Array
from dq_deploy.pipelines.grid import bytes_from_unit


def why_no_preview(pipeline: Any) -> str | None:
    """Why pictures on the way cannot be shown, in words; None where they can.

    A sample that is a picture is shown as it is, and latents [B, C, H, W] as the pipeline's own VAE decodes them.
    Latents that a pipeline packs into rows are not unpacked here.
    """
    vae = getattr(pipeline, "vae", None)
    if hasattr(pipeline, "_pack_latents") or hasattr(pipeline, "_unpack_latents"):
        return f"the {type(pipeline).__name__} packs its latents"
    if vae is None:
        others = [name for name in ("vqvae", "movq", "decoder") if getattr(pipeline, name, None) is not None]
        return f"the {type(pipeline).__name__} decodes by its {others[0]}" if others else None
    if not hasattr(vae.config, "scaling_factor"):
        return f"the configuration of the {type(vae).__name__} has no scaling_factor"
    return None


def preview_of(pipeline: Any, result: Any, call: Any) -> Array:
    """The picture behind a step, [H, W, C] uint8: the scheduler's own guess of the last sample where it makes one.

    Args:
        pipeline: that is drawing.
        result: of its scheduler's step.
        call: what is asked of it.

    Raises:
        OptionError: it cannot be shown.
    """
    why = why_no_preview(pipeline)
    if why is not None:
        raise OptionError(f"pictures on the way cannot be shown: {why}; ask for none")
    latents = _sample_of(result).float()
    vae = getattr(pipeline, "vae", None)
    if vae is not None:
        config = vae.config
        mean, std = (getattr(config, name, None) for name in ("latents_mean", "latents_std"))
        if mean is not None and std is not None:
            shape = (1, -1, 1, 1)
            latents = latents * torch.tensor(std).view(shape) / config.scaling_factor + torch.tensor(mean).view(shape)
        else:
            latents = latents / config.scaling_factor + (getattr(config, "shift_factor", None) or 0.0)
        latents = vae.decode(latents, return_dict=False)[0]
    pixels = latents[0].clamp(-1, 1).permute(1, 2, 0).numpy()
    if pixels.shape[-1] not in PICTURE_CHANNELS:
        raise OptionError(f"the sample has {pixels.shape[-1]} channels, which no picture has; ask for no previews")
    return bytes_from_unit(np.ascontiguousarray(pixels))


def _sample_of(result: Any) -> torch.Tensor:
    """What a scheduler's step gives: a tuple, or an output with names."""
    guess = getattr(result, "pred_original_sample", None)
    if guess is None and isinstance(result, tuple) and len(result) > 1 and isinstance(result[1], torch.Tensor):
        guess = result[1]  # by diffusers' schedulers the second of the tuple, where there is one
    if guess is not None and guess.ndim == 4:
        return guess
    sample = result[0] if isinstance(result, tuple) else result.prev_sample
    if sample.ndim != 4:
        raise OptionError("pictures on the way cannot be shown: the sample is no picture; ask for none")
    return sample
