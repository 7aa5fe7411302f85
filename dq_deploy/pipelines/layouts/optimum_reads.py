"""What the pipelines of Optimum load and give: classes, components, the denoiser's inputs; and what is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dq_deploy.errors import ModelError, OptionError
from dq_deploy.models.pipeline.folder import PipelineFolder

ENGINE_FILE = "model.onnx"
"""Name of the denoiser's graph in its folder: Optimum's own for ONNX Runtime."""
COPIED = ("tokenizer", "tokenizer_2", "tokenizer_3", "feature_extractor")
"""Components whose files are copied as they are."""
TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
TEXT_OUTPUTS: Mapping[str, tuple[str, ...]] = {
    "CLIPTextModel": ("last_hidden_state", "pooler_output"),
    "CLIPTextModelWithProjection": ("text_embeds", "last_hidden_state"),
    "T5EncoderModel": ("last_hidden_state",),
}
"""Classes of text encoders that are exported, with their outputs in Optimum's order."""
AUTOENCODER = "AutoencoderKL"

GIVEN: Mapping[str, tuple[str, ...]] = {
    "unet": ("sample", "timestep", "encoder_hidden_states", "timestep_cond", "text_embeds", "time_ids"),
    "transformer": (
        "hidden_states",
        "encoder_hidden_states",
        "encoder_attention_mask",
        "pooled_projections",
        "timestep",
        "guidance",
        "txt_ids",
        "img_ids",
    ),
}
"""Inputs that Optimum gives a denoiser, by the name of the component."""

_BOTH = (
    "StableDiffusionPipeline",
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionInpaintPipeline",
    "StableDiffusionXLPipeline",
    "StableDiffusionXLImg2ImgPipeline",
    "StableDiffusionXLInpaintPipeline",
    "LatentConsistencyModelPipeline",
    "LatentConsistencyModelImg2ImgPipeline",
    "StableDiffusion3Pipeline",
    "StableDiffusion3Img2ImgPipeline",
    "StableDiffusion3InpaintPipeline",
    "FluxPipeline",
)
PIPELINES: Mapping[str, tuple[str, ...]] = {
    "onnxruntime": _BOTH,
    "openvino": (*_BOTH, "FluxImg2ImgPipeline", "FluxInpaintPipeline"),
}
"""Pipelines of diffusers that Optimum opens from such a folder, by target."""

_LEFT_OUT = {
    "safety_checker": "Optimum runs it in torch; load yours and give it to from_pretrained as safety_checker",
    "image_encoder": "the denoiser takes no pictures as a prompt",
}
_HIDDEN_STATES = ("StableDiffusionXL", "StableDiffusion3")
"""Pipelines that read a layer of the text encoder before the last one, by the start of their names."""


@dataclass(frozen=True, kw_only=True)
class FolderPlan:
    """Which components are written, and how.

    Attributes:
        text_encoders: class of each text encoder, by component.
        copied: components whose files are copied.
        left_out: what is not written, one line each with the reason.
        hidden_states: whether the text encoders give the output of every layer.
    """

    text_encoders: Mapping[str, str]
    copied: tuple[str, ...]
    left_out: tuple[str, ...]
    hidden_states: bool


def plan_folder(folder: PipelineFolder, component: str, target: str) -> FolderPlan:
    """What is written for a pipeline.

    Args:
        folder: of the pipeline.
        component: name of its denoiser.
        target: `onnxruntime` or `openvino`.

    Raises:
        OptionError: Optimum has no such pipeline, or loads no denoiser of that name.
        ModelError: a component of another class than is exported.
    """
    name = folder.class_name
    if name not in PIPELINES[target]:
        raise OptionError(
            f"{folder.path} is a {name}, which Optimum does not run on {target}; expected one of "
            f"{', '.join(PIPELINES[target])}"
        )
    if component not in GIVEN:
        raise OptionError(f"the denoiser is the {component}, expected unet or transformer: Optimum loads no other")
    encoders: dict[str, str] = {}
    left_out = []
    for part, (_, kind) in folder.components.items():
        if part in _LEFT_OUT:
            left_out.append(f"{part} {kind} is left out: {_LEFT_OUT[part]}")
        elif part in TEXT_ENCODERS:
            encoders[part] = _known(folder, part, kind, tuple(TEXT_OUTPUTS))
        elif part == "vae":
            _known(folder, part, kind, (AUTOENCODER,))
        elif part not in (component, "scheduler", *COPIED):
            raise ModelError(f"{folder.path} has {part} {kind}, which Optimum does not load; it cannot be written")
    if "vae" not in folder.components:
        raise ModelError(f"{folder.path} has no vae, expected an {AUTOENCODER}: Optimum opens no pipeline without one")
    return FolderPlan(
        text_encoders=encoders,
        copied=tuple(part for part in COPIED if part in folder.components),
        left_out=tuple(left_out),
        hidden_states=name.startswith(_HIDDEN_STATES),
    )


def _known(folder: PipelineFolder, part: str, kind: str, known: tuple[str, ...]) -> str:
    if kind not in known:
        raise ModelError(f"{folder.path} has the {part} {kind}, expected {' or '.join(known)}: no other is exported")
    return kind


def check_inputs(names: Sequence[str], component: str) -> None:
    """Refuse a denoiser that takes what Optimum does not give.

    Args:
        names: of the engine's inputs.
        component: `unet` or `transformer`.

    Raises:
        OptionError: names those inputs.
    """
    others = [name for name in names if name not in GIVEN[component]]
    if others:
        raise OptionError(
            f"the record takes {', '.join(others)}, which Optimum does not give a {component}; expected no more than "
            f"{', '.join(GIVEN[component])}: quantize the model as it is called without"
        )


def check_text_encoder(config: Mapping[str, object], source: str) -> None:
    """Refuse a text encoder that is given the mask of its text: its graph takes the text alone.

    Args:
        config: of the text encoder.
        source: its folder, in words.

    Raises:
        OptionError: the configuration asks for the mask.
    """
    if config.get("use_attention_mask"):
        raise OptionError(
            f"{source} has use_attention_mask true, expected a text encoder that reads the text alone; Optimum would "
            "leave the mask out without a word"
        )
