"""The default call of a denoiser class, from its configuration alone.

A bare denoiser folder has no pipeline whose calls could be recorded; what its forward is given is then what the
pipelines of its class give it. Nothing here builds a module, and only a class without an entry loads diffusers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from dq_deploy.models.default_calls.audio import audioldm2_parts, stable_audio_parts, unet1d_parts
from dq_deploy.models.default_calls.controlnet import controlnet_parts
from dq_deploy.models.default_calls.from_signature import parts_from_signature
from dq_deploy.models.default_calls.parts import CallParts
from dq_deploy.models.default_calls.transformers import (
    dit_parts,
    flux_parts,
    hunyuan_parts,
    pixart_parts,
    qwen_image_parts,
    sd3_parts,
)
from dq_deploy.models.default_calls.unet2d import unet2d_parts
from dq_deploy.models.default_calls.unet2d_condition import unet2d_condition_parts
from dq_deploy.models.default_calls.video import cogvideox_parts, ltx_parts, motion_parts, svd_parts, wan_parts
from dq_deploy.record import OUTPUT, Call

CLASSES: Mapping[str, Callable[[Mapping[str, Any], Mapping[str, int]], CallParts]] = MappingProxyType(
    {
        "UNet2DModel": unet2d_parts,
        "UNet2DConditionModel": unet2d_condition_parts,
        "ControlNetModel": controlnet_parts,
        "DiTTransformer2DModel": dit_parts,
        "PixArtTransformer2DModel": pixart_parts,
        "SD3Transformer2DModel": sd3_parts,
        "FluxTransformer2DModel": flux_parts,
        "HunyuanDiT2DModel": hunyuan_parts,
        "QwenImageTransformer2DModel": qwen_image_parts,
        "CogVideoXTransformer3DModel": cogvideox_parts,
        "WanTransformer3DModel": wan_parts,
        "LTXVideoTransformer3DModel": ltx_parts,
        "UNetSpatioTemporalConditionModel": svd_parts,
        "UNetMotionModel": motion_parts,
        "StableAudioDiTModel": stable_audio_parts,
        "AudioLDM2UNet2DConditionModel": audioldm2_parts,
        "UNet1DModel": unet1d_parts,
    }
)
"""The classes with an entry of their own, by name in diffusers."""


def call_for(config: Mapping[str, Any], sizes: Mapping[str, int] = MappingProxyType({})) -> Call:
    """How a denoiser of this configuration is called where no pipeline says it.

    Args:
        config: the denoiser's diffusers configuration.
        sizes: of the axes that vary, by name (`height`, `width`, `tokens`); the others are the configuration's, or
            what the pipelines of the class have.

    Returns:
        The call. Where only a run can say the shapes of the outputs, `outputs` is empty.

    Raises:
        ModelError: the configuration does not say a width or a size, or nothing is known of the class's inputs.
    """
    parts = CLASSES.get(str(config.get("_class_name")), parts_from_signature)(config, sizes)
    outputs = {OUTPUT: parts.output} if parts.output else {}
    return Call(inputs=parts.inputs, constants=parts.constants, sizes=parts.sizes, outputs=outputs)
