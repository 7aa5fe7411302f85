"""What the loop's model is told of its pipeline and denoiser, and which inputs its requests have."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dq_deploy.errors import ModelError, OptionError
from dq_deploy.models import build_denoiser, condition_names, label_limits
from dq_deploy.models.conditions import sample_name
from dq_deploy.models.family import class_of_family
from dq_deploy.models.load.json_file import read_json
from dq_deploy.models.load.pipeline_folder import INDEX, find_denoiser, scheduler_of
from dq_deploy.models.load.scheduler_file import scheduler_config_of
from dq_deploy.models.output_class import OutputClass
from dq_deploy.models.pipeline import build_scheduler
from dq_deploy.models.pipeline.call import PICTURE_CHANNELS
from dq_deploy.models.pipeline.folder import PipelineFolder, read_pipeline_folder
from dq_deploy.models.sizes import sized
from dq_deploy.pipelines.quantized import check_same_kind
from dq_deploy.pipelines.same_scheduler import NAME_ONE, check_same_scheduler
from dq_deploy.serve.triton.config_text import TensorText
from dq_deploy.serve.triton.denoiser_config import as_column
from dq_deploy.targets.manifest import call_of_manifest

if TYPE_CHECKING:
    from dq_deploy.manifest.values import EngineManifest
    from dq_deploy.record import Call

_ON_PICTURES = ("Img2Img", "Inpaint", "ControlNet", "Upscale", "InstructPix2Pix", "ImageVariation", "VideoDiffusion")
"""In the name of a class that works on a picture, which a request does not carry."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Loop:
    """A denoising loop.

    Attributes:
        folder: of the pipeline; None for a denoiser alone.
        component: the denoiser's name in it; None likewise.
        scheduler: configuration of the scheduler; None for a pipeline without one.
        scheduler_name: of that scheduler in the pipeline.
        replaces: whether it takes the place of the pipeline's own when that is made, as the one that an engine was
            calibrated with does; else the pipeline is made with it, and may change it.
        takes: arguments of the pipeline's `__call__`; empty for a denoiser alone.
        class_name: of the pipeline, or of the denoiser alone.
        variant: of the weight files.
        call: of the denoiser.
        returns: module, name and fields of what the denoiser's class returns.
        sample: [C, H, W] of a denoiser alone.
    """

    folder: PipelineFolder | None
    component: str | None
    scheduler: Mapping[str, Any] | None
    scheduler_name: str | None
    replaces: bool
    takes: Mapping[str, inspect.Parameter]
    class_name: str
    variant: str | None
    call: Call
    returns: OutputClass
    sample: tuple[int, int, int] | None = None

    @property
    def latents(self) -> bool:
        """Whether what is drawn are latents and no pictures."""
        return self.sample is not None and self.sample[0] not in PICTURE_CHANNELS

    @property
    def guided(self) -> bool:
        """Whether a request may say how strongly the prompt is followed: then two samples may be in a call."""
        blind = "true_cfg_scale" in self.takes and not self._says("guidance_embeds")
        return "guidance_scale" in self.takes and not blind

    def _says(self, key: str) -> Any:
        assert self.folder is not None
        return read_json(self.folder.path / str(self.component) / "config.json").get(key)

    def inputs(self, manifest: EngineManifest) -> list[TensorText]:
        """What a request for pictures holds."""
        labels = label_limits(self.call) is not None and (self.folder is None or "class_labels" in self.takes)
        shape = next(e.shape for e in manifest.inputs if e.name == sample_name(self.call))
        sides = any(isinstance(size, str) for size in shape[1:]) and (self.folder is None or "height" in self.takes)
        negative = "negative_prompt" in self.takes and "true_cfg_scale" not in self.takes and self.guided
        found = [
            TensorText(name="PROMPT", dtype="text", dims=(-1,)) if "prompt" in self.takes else None,
            TensorText(name="LABEL", dtype="int64", dims=(-1,)) if labels else None,
            _optional("NEGATIVE_PROMPT", "text") if negative and self._says("time_cond_proj_dim") is None else None,
            TensorText(name="SEED", dtype="int64", dims=(1,)),
            _optional("STEPS", "int32"),
            _optional("COUNT", "int32"),
            _optional("GUIDANCE", "float32") if self.guided else None,
            *([_optional("HEIGHT", "int32"), _optional("WIDTH", "int32")] if sides else []),
        ]
        return [entry for entry in found if entry is not None]

    def settings(self, manifest: EngineManifest, *, denoiser: str, steps: int | None, most: int) -> dict[str, Any]:
        """The JSON values of loop.json.

        Args:
            manifest: of the engine as it was written.
            denoiser: name of the denoiser's model.
            steps: denoising steps of a request that does not say.
            most: samples of a call, 0 where the engine has no batch.
        """
        from dq_deploy.models.pipeline.denoiser_pipeline import DEFAULT_STEPS

        config = {key: value for key, value in manifest.model_config.items() if not key.startswith("_")}
        limits = label_limits(self.call)
        return {
            "denoiser": denoiser,
            "class_name": class_of_family(str(manifest.family)),
            "config": config,
            "returns": [self.returns.kind.__module__, self.returns.kind.__name__],
            "inputs": [
                {"name": e.name, "dtype": e.dtype, "shape": list(e.shape), "as_column": as_column(e, most)}
                for e in manifest.inputs
            ],
            "output": manifest.outputs[0].name,
            "multiples": dict(manifest.multiples or {}),
            "constants": dict(manifest.constants or {}),
            "component": self.component,
            "left_out": [] if self.folder is None else sorted(_left_out(self.folder)),
            "variant": self.variant,
            "scheduler": None if self.scheduler is None else dict(self.scheduler),
            "scheduler_name": self.scheduler_name,
            "scheduler_replaces": self.replaces,
            "steps": steps,
            "default_steps": DEFAULT_STEPS,
            "labels": None if limits is None else list(limits),
            "channels": None if self.sample is None else self.sample[0],
            "size": None if self.sample is None else list(self.sample[1:]),
            "latents": self.latents,
        }


def _optional(name: str, dtype: str) -> TensorText:
    return TensorText(name=name, dtype=dtype, dims=(1,), optional=True)


def plan_loop(manifest: EngineManifest, model: Path | None, *, component: str | None, scheduler: str | None) -> Loop:
    """The loop around an engine.

    Args:
        manifest: of the engine.
        model: folder of the pipeline or of a denoiser alone; None for a denoiser alone.
        component: the denoiser's name, where the pipeline has several.
        scheduler: that is asked for; None is the engine's, else the folder's.

    Raises:
        OptionError: a pipeline around another denoiser, or one that a request of texts and numbers cannot draw with.
        ModelError: no denoiser, or several and none is named.
    """
    if manifest.family is None:
        raise OptionError("the engine does not say which denoiser it is; export it again")
    if len(manifest.outputs) != 1:
        raise OptionError(f"the engine has {len(manifest.outputs)} outputs, expected a denoiser's one")
    if model is None:
        return _alone(manifest, None, scheduler)
    place = find_denoiser(model, component, class_of_family(manifest.family))
    check_same_kind(manifest.family, manifest.model_config, read_json(place.folder / "config.json"), str(place.folder))
    folder = None if place.pipeline is None else read_pipeline_folder(place.pipeline)
    if folder is None or place.component is None:
        check_same_scheduler(manifest.scheduler_config, place.folder)
        return _alone(manifest, place.folder, scheduler)
    check_same_scheduler(manifest.scheduler_config, place.folder, asked=scheduler, advice=NAME_ONE)
    return _of_pipeline(manifest, folder, place.component, scheduler)


def _returned(manifest: EngineManifest) -> tuple[Any, OutputClass]:
    module = build_denoiser(str(manifest.family), manifest.model_config, device="meta")
    returns = OutputClass(type(module))
    if len(returns.fields) != 1:
        raise OptionError(
            f"a {type(module).__name__} returns {', '.join(returns.fields)}, expected a denoiser's output"
        )
    return module, returns


def _alone(manifest: EngineManifest, folder: Path | None, name: str | None) -> Loop:
    from dq_deploy.models.pipeline.denoiser_pipeline import DenoiserPipeline

    call = call_of_manifest(manifest)
    wanted = condition_names(call)
    if wanted:
        raise OptionError(
            f"the denoiser takes {', '.join(wanted)}, which a denoiser alone gets from nobody; give its pipeline's "
            "folder as `model`"
        )
    config = manifest.scheduler_config
    if config is None and folder is not None:
        config = scheduler_config_of(folder)
    if config is None and name is None:
        raise ModelError(
            "neither the engine nor a folder says the scheduler; give `model`, a folder with scheduler/, or `scheduler`"
        )
    scheduler = build_scheduler(config, name)
    module, returns = _returned(manifest)
    spec = next(entry for entry in manifest.inputs if entry.name == sample_name(call))
    rows, columns = sized(spec.shape, 1, call.sizes)[2:] if len(spec.shape) == 4 else (None, None)
    sample = None
    if type(scheduler).__name__ != "ScoreSdeVeScheduler":
        sample = DenoiserPipeline(denoiser=module, scheduler=scheduler).sample_shape(rows, columns)
    return Loop(
        folder=None,
        component=None,
        scheduler=_plain(scheduler),
        scheduler_name=None,
        replaces=False,
        takes={},
        class_name=class_of_family(str(manifest.family)),
        variant=None,
        call=call,
        returns=returns,
        sample=sample,
    )


def _plain(scheduler: Any) -> dict[str, Any]:
    """The configuration of a scheduler as its file holds it."""
    import json

    return {k: v for k, v in json.loads(scheduler.to_json_string()).items() if k != "_diffusers_version"}


def _of_pipeline(manifest: EngineManifest, folder: PipelineFolder, component: str, name: str | None) -> Loop:
    import diffusers

    takes = inspect.signature(getattr(diffusers, folder.class_name).__call__).parameters
    _check_answerable(folder, takes)
    steps = scheduler_of(component, folder.components)
    known = steps in folder.components
    if name is not None and not known:
        raise OptionError(f"got the scheduler {name} for a {folder.class_name}, which has none")
    own = manifest.scheduler_config if name is None else None
    folders = scheduler_config_of(folder.path / component) if own is None else None
    _, returns = _returned(manifest)
    return Loop(
        folder=folder,
        component=component,
        scheduler=_plain(build_scheduler(folders if own is None else own, name)) if known else None,
        scheduler_name=steps if known else None,
        replaces=own is not None,
        takes=takes,
        class_name=folder.class_name,
        variant=_variant(folder, component),
        call=call_of_manifest(manifest),
        returns=returns,
    )


def _check_answerable(folder: PipelineFolder, takes: Mapping[str, inspect.Parameter]) -> None:
    """Refuse a pipeline that needs more than texts and numbers.

    Raises:
        OptionError: names what it needs.
    """
    kind = folder.class_name
    if any(word in kind for word in _ON_PICTURES) and {"image", "control_image"} & takes.keys():
        raise OptionError(f"the {kind} works on a picture, expected one that draws from texts, labels or a seed")
    known = ("self", "prompt", "class_labels", "batch_size")
    for name, parameter in takes.items():
        needed = parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        if needed and name not in known:
            raise OptionError(f"the {kind} cannot draw without {name}, which a request does not carry")
    encoders = [n for n in (*folder.components, *folder.absent) if n.startswith(("text_encoder", "tokenizer"))]
    if "prompt" in takes and encoders and not set(encoders) & folder.components.keys():
        raise OptionError(f"the {kind} has no text encoder, expected one; copy text_encoder/ and tokenizer/ into it")
    for name in folder.components:
        if not (folder.path / name).is_dir():
            raise ModelError(f"{folder.path / INDEX} names {name}, but the folder {name}/ is missing; copy it")


def _left_out(folder: PipelineFolder) -> set[str]:
    """Text encoders that are null in the index as their tokenizers are; diffusers wants to be told."""
    pairs = [(n, n.replace("text_encoder", "tokenizer")) for n in folder.absent if n.startswith("text_encoder")]
    return {part for pair in pairs if set(pair) <= set(folder.absent) for part in pair}


def _variant(folder: PipelineFolder, component: str) -> str | None:
    """`fp16` where a component has no other weights."""
    for name in folder.components:
        if name != component:
            weights = [p.name for p in (folder.path / name).iterdir() if p.suffix in (".safetensors", ".bin")]
            if weights and all(".fp16." in file for file in weights):
                return "fp16"
    return None
