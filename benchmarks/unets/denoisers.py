"""The float denoisers that are measured: trained models, and public shapes with random weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dq_deploy.models import Denoiser, build_denoiser, default_call

if TYPE_CHECKING:
    from dq_deploy.calibration import CalibrationSource

DEMO = Path(__file__).resolve().parents[2] / "examples" / "mnist-ddpm-32"
TERRAIN_FLOAT = (
    "time_embedding.*",
    "up_blocks.4.resnets.3.conv_shortcut",
    "up_blocks.4.resnets.4.conv_shortcut",
    "up_blocks.4.resnets.4.conv1",
    "conv_out",
)
"""Layers of terrain that stay float: 5 % of its work, see docs/measured.md."""
CIFAR: dict[str, Any] = {
    "_class_name": "UNet2DModel",
    "sample_size": 32,
    "in_channels": 3,
    "out_channels": 3,
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "freq_shift": 1,
    "flip_sin_to_cos": False,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [128, 256, 256, 256],
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "downsample_padding": 0,
    "act_fn": "silu",
    "attention_head_dim": None,
    "norm_num_groups": 32,
    "norm_eps": 1e-6,
    "num_class_embeds": None,
}
CIFAR_SCHEDULER: dict[str, Any] = {
    "_class_name": "DDPMScheduler",
    "num_train_timesteps": 1000,
    "beta_schedule": "linear",
    "prediction_type": "epsilon",
    "clip_sample": True,
    "timestep_spacing": "leading",
    "variance_type": "fixed_large",
}
SD15: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel",
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "center_input_sample": False,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "downsample_padding": 1,
    "mid_block_scale_factor": 1,
    "act_fn": "silu",
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
DIT_XL: dict[str, Any] = {
    "_class_name": "DiTTransformer2DModel",
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "in_channels": 4,
    "out_channels": 8,
    "num_layers": 28,
    "sample_size": 32,
    "patch_size": 2,
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "num_embeds_ada_norm": 1000,
    "norm_type": "ada_norm_zero",
}
SDXL: dict[str, Any] = {
    **SD15,
    "sample_size": 128,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [320, 640, 1280],
    "transformer_layers_per_block": [1, 2, 10],
    "attention_head_dim": [5, 10, 20],
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
SD15_SCHEDULER: dict[str, Any] = {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "clip_sample": False,
}


def cifar_denoiser() -> Denoiser:
    """The CIFAR-10 DDPM shape, 35.7 million parameters, with seeded random weights."""
    import torch

    torch.manual_seed(0)
    module = build_denoiser("unet2d", CIFAR)
    return Denoiser(
        family="unet2d",
        module=module,
        config=dict(CIFAR),
        call=default_call(CIFAR),
        scheduler_config=dict(CIFAR_SCHEDULER),
        source="cifar-10 ddpm shape, random weights, seed 0",
        source_sha256="0" * 64,
    )


def sd15_denoiser() -> Denoiser:
    """The Stable Diffusion 1.5 shape, 860 million parameters, with seeded random weights."""
    import torch

    torch.manual_seed(0)
    return Denoiser(
        family="unet2d_condition",
        module=build_denoiser("unet2d_condition", SD15),
        config=dict(SD15),
        call=default_call(SD15),
        scheduler_config=dict(SD15_SCHEDULER),
        source="stable diffusion 1.5 shape, random weights, seed 0",
        source_sha256="0" * 64,
    )


def dit_xl_denoiser() -> Denoiser:
    """The shape of DiT-XL/2 for pictures of 256 x 256, 750 million parameters, with seeded random weights."""
    import torch

    from dq_deploy.models import family_of

    torch.manual_seed(0)
    family = family_of(DIT_XL)
    return Denoiser(
        family=family,
        module=build_denoiser(family, DIT_XL),
        config=dict(DIT_XL),
        call=default_call(DIT_XL),
        scheduler_config={"_class_name": "DDIMScheduler"},
        source="DiT-XL/2 shape, random weights, seed 0",
        source_sha256="0" * 64,
    )


def denoiser_of(name: str, pipeline: Path | None = None) -> Denoiser:
    """The denoiser `demo`, `cifar`, `sd15` or `dit-xl`; `terrain` is the one of its pipeline's folder.

    Raises:
        OptionError: `terrain` without that folder.
    """
    from dq_deploy import load_model
    from dq_deploy.errors import OptionError

    if name == "demo":
        return load_model(DEMO)
    if name == "terrain":
        if pipeline is None:
            raise OptionError("terrain needs --terrain FOLDER, which examples/terrain.py makes")
        return load_model(pipeline)
    return {"cifar": cifar_denoiser, "sd15": sd15_denoiser, "dit-xl": dit_xl_denoiser}[name]()


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A float model and how it is quantized.

    Attributes:
        denoiser: the model.
        source: of calibration inputs.
        options: of `minmax`, by name.
    """

    denoiser: Denoiser
    source: CalibrationSource
    options: dict[str, Any]

    def calibration(self, **other: Any) -> dict[str, Any]:
        """The calibration inputs by name, [M, ...], for others to use as well; `other` options give others."""
        from dq_deploy.methods.options import options_for
        from dq_deploy.methods.prepare.calibration_inputs import collect_inputs
        from dq_deploy.methods.progress import silent

        return dict(
            collect_inputs(
                self.denoiser, options_for("minmax", **{**self.options, **other}), self.source, silent
            ).inputs
        )


def subject_of(name: str, pipeline: Path | None = None) -> Subject:
    """A model by the name of `denoiser_of`."""
    from dq_deploy.calibration import CalibrationSource, prepare_calibration
    from dq_deploy.calibration.request import CalibrationRequest

    denoiser = denoiser_of(name, pipeline)
    if name == "terrain" and pipeline is not None:
        options = {"steps": 1, "samples": 32, "channel_scales": True, "keep": TERRAIN_FLOAT}
        ready = prepare_calibration(denoiser, pipeline, CalibrationRequest())
        return Subject(denoiser=ready.denoiser, source=ready.source, options=options)
    if name in ("sd15", "dit-xl"):
        options = {"steps": 4, "samples": 1, "memory_gib": 4.0}
        return Subject(denoiser=denoiser, source=CalibrationSource(kind="random"), options=options)
    return Subject(
        denoiser=denoiser, source=CalibrationSource(), options={"steps": 20, "samples": 16 if name == "demo" else 4}
    )
