"""Small diffusers denoisers of many classes with random weights, and how each is called."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

Inputs = Mapping[str, tuple[tuple[int | str, ...], str]]


@dataclass(frozen=True, kw_only=True)
class Tiny:
    """A class of diffusers with a configuration of its smallest kind.

    Attributes:
        name: of the class.
        config: its arguments.
        inputs: shape and dtype of each input besides the timestep, by argument.
        arguments: the keyword arguments of a call, where they are not the inputs themselves.
    """

    name: str
    config: Mapping[str, Any]
    inputs: Inputs
    arguments: Callable[[dict[str, Tensor]], dict[str, Any]] = field(default=dict)
    last_timestep: float = 250.0

    def module(self) -> nn.Module:
        """One with random weights, none of them zero."""
        torch.manual_seed(0)
        module: nn.Module = getattr(diffusers, self.name)(**self.config).eval()
        with torch.no_grad():
            for value in module.parameters():
                if not value.any() or (value == 1).all():  # gates and norms begin at 0 and 1
                    value.add_(torch.randn(value.shape) * 0.2)
        return module

    def step(self, module: nn.Module, timestep: Tensor, *values: Tensor) -> Tensor:
        """The last output for a timestep and the inputs in order; a ControlNet has several."""
        given = self.arguments(dict(zip(self.inputs, values, strict=True)))
        output = module(timestep=timestep, **given, return_dict=False)
        last: Tensor = output[-1]
        return last


def added(*names: str) -> Callable[[dict[str, Tensor]], dict[str, Any]]:
    """Moves arguments into `added_cond_kwargs`."""

    def arguments(given: dict[str, Tensor]) -> dict[str, Any]:
        return {k: v for k, v in given.items() if k not in names} | {
            "added_cond_kwargs": {name: given[name] for name in names}
        }

    return arguments


SAMPLE = (("B", 4, 8, 8), "float32")
TEXT = (("B", 7, 16), "float32")
TEXT_UNET = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 16,
    "attention_head_dim": 4,
    "norm_num_groups": 4,
}
TEXT_INPUTS: Inputs = {"sample": SAMPLE, "encoder_hidden_states": TEXT}
PLAIN_UNET = {
    "sample_size": 8,
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "norm_num_groups": 4,
    "attention_head_dim": 4,
}


def text_unet(inputs: Inputs = {}, arguments: Any = dict, **changes: Any) -> Tiny:  # noqa: B006
    """A UNet with text."""
    return Tiny(
        name="UNet2DConditionModel",
        config={**TEXT_UNET, **changes},
        inputs={**TEXT_INPUTS, **inputs},
        arguments=arguments,
    )


def plain_unet(inputs: Inputs = {}, **changes: Any) -> Tiny:  # noqa: B006
    """A UNet without."""
    sample = {"sample": (("B", 3, 8, 8), "float32")}
    return Tiny(name="UNet2DModel", config={**PLAIN_UNET, **changes}, inputs={**sample, **inputs})


def residuals(given: dict[str, Tensor]) -> dict[str, Any]:
    """A ControlNet's residuals."""
    down = tuple(given[f"down.{i}"] for i in range(4))
    rest = {k: v for k, v in given.items() if "." not in k and k != "mid"}
    return rest | {"down_block_additional_residuals": down, "mid_block_additional_residual": given["mid"]}


SIMPLE = {
    "down_block_types": ("SimpleCrossAttnDownBlock2D", "ResnetDownsampleBlock2D"),
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "up_block_types": ("ResnetUpsampleBlock2D", "SimpleCrossAttnUpBlock2D"),
}
KANDINSKY = {**SIMPLE, "encoder_hid_dim_type": "image_proj", "encoder_hid_dim": 12, "addition_embed_type": "image"}
IF_STAGE = {
    **SIMPLE,
    "addition_embed_type": "text",
    "addition_embed_type_num_heads": 2,
    "encoder_hid_dim": 12,
    "encoder_hid_dim_type": "text_proj",
    "resnet_time_scale_shift": "scale_shift",
    "act_fn": "gelu",
    "time_embedding_act_fn": None,
    "resnet_skip_time_act": True,
}
SDXL = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 34,
    "use_linear_projection": True,
    "transformer_layers_per_block": (1, 2),
}
DIT = {
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "in_channels": 4,
    "out_channels": 8,
    "num_layers": 2,
    "sample_size": 8,
    "patch_size": 2,
    "num_embeds_ada_norm": 10,
    "norm_type": "ada_norm_zero",
}
PIXART = {
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "in_channels": 4,
    "out_channels": 8,
    "num_layers": 2,
    "cross_attention_dim": 16,
    "sample_size": 8,
    "caption_channels": 12,
    "use_additional_conditions": False,
}
SD3 = {
    "sample_size": 8,
    "patch_size": 2,
    "in_channels": 4,
    "num_layers": 2,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "joint_attention_dim": 12,
    "caption_projection_dim": 16,
    "pooled_projection_dim": 10,
    "out_channels": 4,
    "pos_embed_max_size": 8,
}
SD3_INPUTS: Inputs = {
    "hidden_states": SAMPLE,
    "encoder_hidden_states": (("B", 5, 12), "float32"),
    "pooled_projections": (("B", 10), "float32"),
}
FLUX = {
    "patch_size": 1,
    "in_channels": 4,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 12,
    "pooled_projection_dim": 10,
    "axes_dims_rope": (4, 4, 8),
}
FLUX_INPUTS: Inputs = {
    "hidden_states": (("B", 16, 4), "float32"),
    "encoder_hidden_states": (("B", 5, 12), "float32"),
    "pooled_projections": (("B", 10), "float32"),
    "img_ids": ((16, 3), "float32"),
    "txt_ids": ((5, 3), "float32"),
}
PROJECTED = {"projection_class_embeddings_input_dim": 6}

TINY: Mapping[str, Tiny] = {
    "plain": plain_unet(),
    "plain, Fourier features": plain_unet(time_embedding_type="fourier", freq_shift=1),
    "plain, skip blocks": plain_unet(
        down_block_types=("SkipDownBlock2D", "AttnSkipDownBlock2D"),
        up_block_types=("AttnSkipUpBlock2D", "SkipUpBlock2D"),
        time_embedding_type="fourier",
        block_out_channels=(32, 32),
        norm_num_groups=8,
    ),
    "plain, classes by identity": plain_unet({"class_labels": (("B", 32), "float32")}, class_embed_type="identity"),
    "plain, classes by timestep": plain_unet({"class_labels": (("B",), "float32")}, class_embed_type="timestep"),
    "plain, down by pooling": plain_unet(downsample_type="resnet", upsample_type="resnet"),
    "text": text_unet(),
    "text, masked": text_unet({"encoder_attention_mask": (("B", 7), "mask")}),
    "sdxl": text_unet(
        {"text_embeds": (("B", 10), "float32"), "time_ids": (("B", 6), "float32")},
        added("text_embeds", "time_ids"),
        **SDXL,
    ),
    "classes by projection": text_unet(
        {"class_labels": (("B", 6), "float32")}, class_embed_type="projection", **PROJECTED
    ),
    "classes by simple projection": text_unet(
        {"class_labels": (("B", 6), "float32")}, class_embed_type="simple_projection", **PROJECTED
    ),
    "classes by simple projection, joined": text_unet(
        {"class_labels": (("B", 6), "float32")},
        class_embed_type="simple_projection",
        class_embeddings_concat=True,
        **PROJECTED,
    ),
    "classes by timestep": text_unet({"class_labels": (("B",), "float32")}, class_embed_type="timestep"),
    "classes by identity": text_unet({"class_labels": (("B", 32), "float32")}, class_embed_type="identity"),
    "classes by number": text_unet({"class_labels": (("B",), "int64")}, num_class_embeds=5),
    "guidance embedded": text_unet({"timestep_cond": (("B", 6), "float32")}, time_cond_proj_dim=6),
    "scale and shift": text_unet(resnet_time_scale_shift="scale_shift"),
    "kandinsky": text_unet(
        {"image_embeds": (("B", 12), "float32")},
        lambda g: added("image_embeds")(g) | {"encoder_hidden_states": None},
        **KANDINSKY,
    ),
    "deepfloyd": text_unet({"encoder_hidden_states": (("B", 7, 12), "float32")}, **IF_STAGE),
    "simple cross attention alone": text_unet(only_cross_attention=True, **SIMPLE),
    "norms of text": text_unet(
        {"encoder_hidden_states": (("B", 7, 8), "float32")},
        cross_attention_dim=8,
        cross_attention_norm="layer_norm",
        block_out_channels=(8, 8),
        **SIMPLE,
    ),
    "group norms of text": text_unet(
        {"encoder_hidden_states": (("B", 7, 32), "float32")},
        cross_attention_dim=32,
        cross_attention_norm="group_norm",
        block_out_channels=(32, 32),
        **SIMPLE,
    ),
    "only cross attention": text_unet(only_cross_attention=True),
    "dual cross attention": text_unet(upcast_attention=True, mid_block_only_cross_attention=True),
    "no middle": text_unet(mid_block_type=None),
    "controlled": text_unet(
        {
            "down.0": (("B", 8, 8, 8), "float32"),
            "down.1": (("B", 8, 8, 8), "float32"),
            "down.2": (("B", 8, 4, 4), "float32"),
            "down.3": (("B", 16, 4, 4), "float32"),
            "mid": (("B", 16, 4, 4), "float32"),
        },
        residuals,
    ),
    "odd size": text_unet(
        {"sample": (("B", 4, 10, 6), "float32")},
        block_out_channels=(8, 8, 8),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    ),
    "control": Tiny(
        name="ControlNetModel",
        config={k: v for k, v in TEXT_UNET.items() if k not in ("sample_size", "up_block_types")}
        | {"conditioning_embedding_out_channels": (4, 8)},
        inputs={**TEXT_INPUTS, "controlnet_cond": (("B", 3, 16, 16), "float32")},
        arguments=lambda g: g,
    ),
    "dit": Tiny(
        name="DiTTransformer2DModel",
        config=DIT,
        inputs={"hidden_states": SAMPLE, "class_labels": (("B",), "int64")},
    ),
    "pixart": Tiny(
        name="PixArtTransformer2DModel",
        config=PIXART,
        inputs={
            "hidden_states": SAMPLE,
            "encoder_hidden_states": (("B", 7, 12), "float32"),
            "encoder_attention_mask": (("B", 7), "mask"),
        },
        arguments=lambda g: g | {"added_cond_kwargs": {"resolution": None, "aspect_ratio": None}},
    ),
    "pixart, conditions": Tiny(
        name="PixArtTransformer2DModel",
        config={
            **PIXART,
            "use_additional_conditions": True,
            "num_attention_heads": 2,
            "attention_head_dim": 12,
            "cross_attention_dim": 24,
        },
        inputs={
            "hidden_states": SAMPLE,
            "encoder_hidden_states": (("B", 7, 12), "float32"),
            "encoder_attention_mask": (("B", 7), "mask"),
            "resolution": (("B", 2), "float32"),
            "aspect_ratio": (("B", 1), "float32"),
        },
        arguments=added("resolution", "aspect_ratio"),
    ),
    "sd3": Tiny(name="SD3Transformer2DModel", config=SD3, inputs=SD3_INPUTS),
    "sd3.5": Tiny(
        name="SD3Transformer2DModel",
        config={**SD3, "qk_norm": "rms_norm", "dual_attention_layers": (0,)},
        inputs=SD3_INPUTS,
    ),
    "flux schnell": Tiny(
        name="FluxTransformer2DModel", config={**FLUX, "guidance_embeds": False}, inputs=FLUX_INPUTS, last_timestep=1.0
    ),
    "flux dev": Tiny(
        name="FluxTransformer2DModel",
        config={**FLUX, "guidance_embeds": True},
        inputs={**FLUX_INPUTS, "guidance": (("B",), "float32")},
        last_timestep=1.0,
    ),
}
