"""A folder of diffusers as a pipeline, from disk alone, with any torch module in the denoiser's place."""

from __future__ import annotations

import importlib.util
import inspect
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dq_deploy.errors import (
    DqError,
    DqWarning,
    ModelError,
    OptionError,
    library_errors,
    raise_if_out_of_memory,
    words_of,
)
from dq_deploy.models.call import input_specs
from dq_deploy.models.conditions import sample_name
from dq_deploy.models.load.component_class import checked_class, todays_config
from dq_deploy.models.load.json_file import read_json
from dq_deploy.models.load.pipeline_folder import INDEX, find_denoiser, scheduler_of
from dq_deploy.models.load.scheduler_file import scheduler_config_of
from dq_deploy.models.load.single_file import offline
from dq_deploy.models.pipeline.float_parts import float_parts
from dq_deploy.models.pipeline.folder import PipelineFolder, read_pipeline_folder
from dq_deploy.models.pipeline.schedulers import build_scheduler
from dq_deploy.models.sizes import sized

if TYPE_CHECKING:
    import torch

    from dq_deploy.models.pipeline.call import PipelineCall
    from dq_deploy.record import Call


_CONFIGURATIONS = ("config.json", "preprocessor_config.json", "tokenizer_config.json")
"""Of a pipeline's parts, whichever a part has."""


def open_folder(
    path: Path,
    *,
    component: str | None,
    denoiser: torch.nn.Module | None,
    scheduler: str | None,
    variant: str | None,
    asked: PipelineCall | None,
) -> Any:
    """See `dq_deploy.models.pipeline.open_pipeline`."""
    place = find_denoiser(path, component)
    with quiet():
        folder = None if place.pipeline is None else read_pipeline_folder(place.pipeline)
        if folder is None or place.component is None:
            pipeline = _bare(place.folder, denoiser, scheduler, variant)
        else:
            pipeline = _of_index(folder, place.component, denoiser, scheduler, variant)
            pipeline = pipeline if asked is None else suited(pipeline, asked)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def suited(pipeline: Any, asked: PipelineCall) -> Any:
    """The pipeline itself, or diffusers' other one of the same components that takes the picture or mask asked for.

    Raises:
        OptionError: diffusers has none.
    """
    from diffusers import AutoPipelineForImage2Image, AutoPipelineForInpainting

    takes = inspect.signature(type(pipeline).__call__).parameters
    if asked.mask is not None and not {"mask", "mask_image"} & takes.keys():
        option, kind = "mask", AutoPipelineForInpainting
    elif asked.image is not None and "image" not in takes:
        option, kind = "image", AutoPipelineForImage2Image
    else:
        return pipeline
    try:
        return kind.from_pipe(pipeline)
    except ValueError as error:
        raise OptionError(
            f"got `{option}`, which {type(pipeline).__name__} does not take, and diffusers has no other pipeline of "
            "its components that does"
        ) from error


def _bare(folder: Path, denoiser: torch.nn.Module | None, scheduler: str | None, variant: str | None) -> Any:
    steps = build_scheduler(scheduler_config_of(folder), scheduler)
    return pipeline_of_denoiser(_float_denoiser(folder, variant) if denoiser is None else denoiser, steps)


def pipeline_of_denoiser(denoiser: torch.nn.Module, scheduler: Any) -> Any:
    """The pipeline around a denoiser alone."""
    from diffusers import ScoreSdeVePipeline, ScoreSdeVeScheduler

    from dq_deploy.models.pipeline.denoiser_pipeline import DenoiserPipeline

    if isinstance(scheduler, ScoreSdeVeScheduler):  # corrects and predicts: diffusers has one pipeline for it
        pipeline = ScoreSdeVePipeline(unet=denoiser, scheduler=scheduler)
    else:
        pipeline = DenoiserPipeline(denoiser=denoiser, scheduler=scheduler)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def sized_as_called(asked: PipelineCall, config: Mapping[str, Any], call: Call) -> PipelineCall:
    """What is asked of the pipeline around a denoiser alone, with the size in which the denoiser is called.

    A size that was asked for stays, and that of the denoiser's configuration, which has its defaults, goes unsaid.
    """
    name, own = sample_name(call), config.get("sample_size")
    sides = next(sized(spec.shape, 1, call.sizes)[2:] for spec in input_specs(call) if spec.name == name)
    if (
        asked.height is not None
        or len(sides) != 2
        or sides == (tuple(own) if isinstance(own, Sequence) else (own,) * 2)
    ):
        return asked
    return replace(asked, height=sides[0], width=sides[1])


def _of_index(
    folder: PipelineFolder, name: str, denoiser: torch.nn.Module | None, scheduler: str | None, variant: str | None
) -> Any:
    import torch
    from diffusers import DiffusionPipeline, ModelMixin

    given: dict[str, Any] = {}
    driver = scheduler_of(name, folder.components)
    if driver in folder.components:
        given[driver] = build_scheduler(scheduler_config_of(folder.path / name), scheduler)
    elif scheduler is not None:
        raise OptionError(f"got the scheduler {scheduler} for a {folder.class_name}, which has none")
    placeholder = denoiser
    if denoiser is None:
        denoiser = placeholder = _float_denoiser(folder.path / name, variant)
    elif not isinstance(denoiser, ModelMixin):  # diffusers takes no other module at first, only behind
        placeholder = _without_weights(folder, name)
    given[name] = placeholder
    given |= _left_out(folder)
    _check_parts(folder, given)
    chosen = _variant(folder, given, variant)
    with offline():
        given |= float_parts(folder, given, chosen, _in_words(folder))
    with offline(), _in_words(folder):
        pipeline = DiffusionPipeline.from_pretrained(
            folder.path,
            torch_dtype=torch.float32,
            local_files_only=True,
            variant=chosen,
            **given,
        )
    if placeholder is not denoiser:
        setattr(pipeline, name, denoiser)
    return pipeline


def _left_out(folder: PipelineFolder) -> dict[str, None]:
    """Text encoders that are null in the index as their tokenizers are, as SD3's third; diffusers wants to be told."""
    pairs = [
        (name, name.replace("text_encoder", "tokenizer")) for name in folder.absent if name.startswith("text_encoder")
    ]
    return {part: None for pair in pairs if set(pair) <= set(folder.absent) for part in pair}


def _float_denoiser(folder: Path, variant: str | None) -> torch.nn.Module:
    from dq_deploy.models import load_model

    return load_model(folder, variant=variant).module


def _without_weights(folder: PipelineFolder, name: str) -> Any:
    """The float class on the meta device: it answers for what a pipeline looks up while it is made."""
    import torch

    config = read_json(folder.path / name / "config.json")
    kind: Any = checked_class(config, str(folder.path / name))
    with torch.device("meta"), library_errors(f"{folder.path / name}", "check its config.json"):
        return kind.from_config(todays_config(config, kind))


def _check_parts(folder: PipelineFolder, given: dict[str, Any]) -> None:
    """Refuse a folder that lacks a component which it names, or names none for one that its class needs.

    Raises:
        ModelError: the first that is missing.
    """
    import diffusers

    for name, (_, kind) in folder.components.items():
        if name not in given and not (folder.path / name).is_dir():
            raise ModelError(
                f"{folder.path / INDEX} names the {name} {kind}, but the folder {name}/ is missing; copy "
                "it from where the pipeline came from"
            )
        elif name not in given:
            for file in _CONFIGURATIONS:
                if (folder.path / name / file).is_file():
                    read_json(folder.path / name / file)  # of one that is no object diffusers says something else
            _check_vocabulary(folder.path / name, *folder.components[name])
    kind = getattr(diffusers, folder.class_name)
    optional = {*kind._optional_components, "safety_checker", "feature_extractor"}
    for name, parameter in list(inspect.signature(kind.__init__).parameters.items())[1:]:
        plain = parameter.default is not parameter.empty or parameter.kind is parameter.VAR_KEYWORD
        if not plain and name not in {*optional, *folder.components, *given}:
            raise ModelError(
                f"{folder.path / INDEX} has no {name}, expected the one that a {folder.class_name} works with; copy "
                f"{name}/ from where the pipeline came from and name its class"
            )


def _check_vocabulary(place: Path, library: str, kind: str) -> None:
    """Refuse a tokenizer's folder without its words: transformers makes an empty one, which reads every text alike.

    Raises:
        ModelError: no file of the words that the class reads is there.
    """
    if library != "transformers" or "Tokenizer" not in kind:
        return
    import transformers

    files = dict(getattr(getattr(transformers, kind, None), "vocab_files_names", {}))
    whole = files.pop("tokenizer_file", None)
    names = [whole, " with ".join(files.values())] if whole and files else [whole or " with ".join(files.values())]
    there = [all((place / file).is_file() for file in name.split(" with ")) for name in names if name]
    if there and not any(there) and not any(place.glob("*.model")):
        raise ModelError(f"{place} has no {' nor '.join(names)}, expected the words of a {kind}; copy the folder again")


def _variant(folder: PipelineFolder, given: dict[str, Any], variant: str | None) -> str | None:
    """The variant that is asked for, or `fp16` where a component has no other weights."""
    for name in folder.components:
        if name in given:
            continue
        weights = {p.name for p in (folder.path / name).iterdir() if p.suffix in (".safetensors", ".bin")}
        has = any(".fp16." in file for file in weights)
        if has and (variant == "fp16" or all(".fp16." in file for file in weights)):
            return "fp16"
    if variant in (None, "fp16"):
        return None
    return variant if any((folder.path / name).glob(f"*.{variant}.*") for name in folder.components) else None


@contextmanager
def _in_words(folder: PipelineFolder) -> Iterator[None]:
    """What diffusers and transformers say of a folder they cannot load, in one line."""
    try:
        yield
    except DqError:
        raise
    except Exception as error:
        raise_if_out_of_memory(error)
        raise ModelError(
            f"the pipeline {folder.path} cannot be loaded: {words_of(error)}; check its folders against "
            "model_index.json"
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Without the progress bars of loading, and what transformers and diffusers say of packages nobody asked for."""
    from diffusers.utils import logging as ours

    loggers = [logging.getLogger(name) for name in ("transformers", "diffusers")]
    levels = [logger.level for logger in loggers]
    shown = ours.is_progress_bar_enabled()
    ours.disable_progress_bar()
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), _quiet_transformers():
            warnings.simplefilter("ignore")
            warnings.simplefilter("default", DqWarning)  # our own are meant to be read
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if shown:
            ours.enable_progress_bar()


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    if importlib.util.find_spec("transformers") is None:
        yield
        return
    from transformers.utils import logging as theirs

    shown = theirs.is_progress_bar_enabled()
    theirs.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            theirs.enable_progress_bar()
