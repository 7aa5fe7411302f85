"""The float model's side of a comparison: its images, what they are measured against, its graph for timing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dq_deploy.artifacts import NPZ_ERRORS, atomic_path, sha256_of_file
from dq_deploy.comparison.real_images import digest_of
from dq_deploy.comparison.settings import Settings
from dq_deploy.errors import InputError, MissingDependencyError
from dq_deploy.models import Denoiser, label_limits
from dq_deploy.models.pipeline.call import PICTURE_CHANNELS
from dq_deploy.numerics.arrays import F32
from dq_deploy.quality import QualityBaseline, load_classifier, load_extractor, quality_baseline
from dq_deploy.record.model_config import channels_of

if TYPE_CHECKING:
    import torch

    from dq_deploy.calibration import AskedPipeline
    from dq_deploy.models.pipeline import PipelineCall
    from dq_deploy.pipelines.watch import OnStep
    from dq_deploy.quality.table import Recognise
    from dq_deploy.record import Call

IMAGES_RANGE = 2.0


@dataclass(frozen=True, kw_only=True)
class Measures:
    """What images are measured with.

    Attributes:
        extractor: specification of `dq_deploy.quality.load_extractor`, or None for no feature columns.
        classifier: specification of `dq_deploy.quality.load_classifier`, or None.
        recognise: images to labels, in place of a classifier that has no specification.
        real: [M, C, H, W] real images in [-1, 1], or None.
        real_name: what they are, in words.
    """

    extractor: str | None = "efficientnet-lite0"
    classifier: str | None = None
    recognise: Recognise | None = None
    real: NDArray[np.floating] | None = None
    real_name: str = ""

    def identity(self) -> dict[str, Any]:
        """What decides the numbers: JSON values, files by their hash."""
        return {
            "extractor": _with_hash(self.extractor),
            "classifier": "the caller's" if self.recognise is not None else _with_hash(self.classifier),
            "real": None if self.real is None else digest_of(self.real),
        }


def _with_hash(spec: str | None) -> str | None:
    kind, _, path = (spec or "").partition(":")
    return f"{kind}:{sha256_of_file(Path(path))}" if path and Path(path).is_file() else spec


@dataclass(frozen=True, kw_only=True, eq=False)
class Subject:
    """A float model with its images, ready for rows.

    Attributes:
        model: its folder.
        variant: file variant, or None.
        denoiser: the model.
        settings: how images are drawn.
        pipeline: of diffusers, that draws them.
        component: name of its denoiser.
        asked: of the pipeline.
        images: [N, C, H, W] float32, of the float model.
        baseline: what rows are measured against.
        identity: what decides a row's measurement, JSON values.
        remarks: what is not measured, and why.
        cache: folder for the float graph.
    """

    model: Path
    variant: str | None
    denoiser: Denoiser
    settings: Settings
    pipeline: Any
    component: str
    asked: PipelineCall
    images: F32
    baseline: QualityBaseline
    identity: dict[str, Any]
    remarks: tuple[str, ...] = ()
    cache: Path = field(default_factory=Path)

    @property
    def labels(self) -> NDArray[np.int64] | None:
        """[N] classes of the images, or None."""
        return None if self.asked.labels is None else np.asarray(self.asked.labels, np.int64)

    def draw(self, denoiser: torch.nn.Module, on_step: OnStep | None = None) -> F32:
        """Images with another denoiser in the pipeline, from the same noise, for the same prompts or classes."""
        return _draw(self.pipeline, self.component, denoiser, self.asked, self.settings, on_step)

    def float_graph(self) -> Path:
        """The model's float graph as an ONNX file, made when it is first asked for."""
        from dq_deploy.targets import write_float_graph

        path = self.cache / f"float-{self.denoiser.source_sha256[:12]}.onnx"
        if not path.is_file():
            # random weights: they cost the same time
            write_float_graph(self.denoiser.family, self.denoiser.config, self.denoiser.call, path)
        return path


def _draw(
    pipeline: Any,
    component: str,
    denoiser: torch.nn.Module,
    asked: PipelineCall,
    settings: Settings,
    on_step: OnStep | None,
) -> F32:
    from dq_deploy.models.pipeline.denoiser_pipeline import DenoiserPipeline
    from dq_deploy.pipelines.draw import draw_images

    setattr(pipeline, component, denoiser)
    batch = settings.batch if isinstance(pipeline, DenoiserPipeline) else 1
    return draw_images(pipeline, asked, component=component, batch=batch, on_step=on_step).images


def labels_in_turn(call: Call, count: int, classes: Sequence[int] = ()) -> NDArray[np.int64] | None:
    """Classes in turn, [count] int64, by default all the model has; None for a model without classes.

    A model may have one more than there are things to draw, for no class at all: give the others.

    Raises:
        OptionError: a class the model does not have.
    """
    from dq_deploy.pipelines.conditions import labels_for

    known = label_limits(call)
    if known is None and not classes:
        return None
    low, high = known or (0, 0)
    chosen = list(classes) or list(range(low, high + 1))
    labels = labels_for(call, [chosen[i % len(chosen)] for i in range(count)])
    return None if labels is None else np.asarray(labels, np.int64)


def prepare_subject(
    denoiser: Denoiser,
    settings: Settings,
    measures: Measures,
    *,
    model: Path,
    cache: Path,
    variant: str | None = None,
    classes: Sequence[int] = (),
    conditions: Mapping[str, NDArray[Any]] | None = None,
    drawn_by: AskedPipeline | None = None,
    on_step: OnStep | None = None,
) -> Subject:
    """Load what rows are measured with, then draw the float model's images, or take them from the cache.

    Args:
        denoiser: the float model.
        settings: how images are drawn.
        measures: what they are measured with.
        model: the model's folder.
        cache: folder for the float model's images and graph; files of other models and settings are kept apart.
        variant: file variant of the model.
        classes: to draw in turn, by default all the model has.
        conditions: rows by input name of a conditioned model, taken in turn; random without them.
        drawn_by: the user's pipeline and what is asked of it; by default the denoiser alone is sampled.
        on_step: called with (steps done, steps in all).

    Raises:
        DqError: what cannot be measured, in one line.
    """
    from dq_deploy.models.pipeline import denoiser_name

    measures, remarks = _usable(measures, denoiser, latents=drawn_by is None and _draws_latents(denoiser))
    recognise = measures.recognise
    if recognise is None and measures.classifier is not None:
        recognise = load_classifier(measures.classifier)
    extractor = None if measures.extractor is None else load_extractor(measures.extractor)
    labels = None if drawn_by is not None else labels_in_turn(denoiser.call, settings.images, classes)
    if recognise is not None and labels is None:
        raise InputError("a classifier was given, but the model has no classes to recognise; leave it out")
    pipeline, asked = _driver(denoiser, settings, labels, conditions or {}, drawn_by)
    component = denoiser_name(pipeline, denoiser.component if drawn_by is not None else None)
    drawn = {
        "model": denoiser.source_sha256,
        "scheduler": denoiser.scheduler_sha256,
        **_words_of(pipeline, asked, drawn_by),
        **settings.of_images(),
        "labels": None if labels is None else digest_of(labels),
    }

    def draw() -> F32:
        return _draw(pipeline, component, denoiser.module, asked, settings, on_step)

    images = _kept(cache / f"float-{_short_hash(drawn)}.npz", draw)
    latents = images.shape[1] not in PICTURE_CHANNELS
    baseline = quality_baseline(
        images,
        real=measures.real,
        labels=None if recognise is None else labels,
        recognise=recognise,
        extractor=extractor,
        data_range=float(np.ptp(images)) if latents else IMAGES_RANGE,
    )
    return Subject(
        model=model,
        variant=variant,
        denoiser=denoiser,
        settings=settings,
        pipeline=pipeline,
        component=component,
        asked=asked,
        images=images,
        baseline=baseline,
        identity={**drawn, **measures.identity()},
        remarks=remarks,
        cache=cache,
    )


def _driver(
    denoiser: Denoiser,
    settings: Settings,
    labels: NDArray[np.int64] | None,
    conditions: Mapping[str, NDArray[Any]],
    drawn_by: AskedPipeline | None,
) -> tuple[Any, PipelineCall]:
    """The pipeline that draws, and what is asked of it."""
    from dq_deploy.models.pipeline import PipelineCall, build_scheduler
    from dq_deploy.models.pipeline.open import pipeline_of_denoiser, sized_as_called
    from dq_deploy.pipelines.conditions import conditions_of

    if drawn_by is not None:
        asked = replace(drawn_by.asked, steps=settings.steps, seed=settings.seed, count=settings.images)
        return drawn_by.pipeline, asked
    pipeline = pipeline_of_denoiser(denoiser.module, build_scheduler(denoiser.scheduler_config))
    asked = PipelineCall(
        steps=settings.steps,
        seed=settings.seed,
        count=settings.images,
        labels=None if labels is None else tuple(int(label) for label in labels),
        conditions=conditions_of(denoiser.call, conditions, count=settings.images, seed=settings.seed),
    )
    return pipeline, sized_as_called(asked, denoiser.module.config, denoiser.call)


def _words_of(pipeline: Any, asked: PipelineCall, drawn_by: AskedPipeline | None) -> dict[str, Any]:
    """What decides the images besides model, scheduler and settings: JSON values."""
    return {
        "pipeline": [type(pipeline).__name__, type(getattr(pipeline, "scheduler", None)).__name__],
        "asked": None if drawn_by is None else dict(drawn_by.words),
        **({} if drawn_by is not None or asked.height is None else {"size": [asked.height, asked.width]}),
        "conditions": {name: digest_of(value.numpy()) for name, value in asked.conditions.items()},
    }


def _draws_latents(denoiser: Denoiser) -> bool:
    return channels_of(denoiser.config, "in_channels") not in PICTURE_CHANNELS


def _usable(measures: Measures, denoiser: Denoiser, *, latents: bool) -> tuple[Measures, tuple[str, ...]]:
    """Without features where the model draws latents, or where the default extractor is not installed."""
    named = [name for name in ("classifier", "recognise", "real") if getattr(measures, name) is not None]
    bare = replace(measures, extractor=None, real=None)
    if latents:
        if named:
            raise InputError(
                f"the model draws latents of {channels_of(denoiser.config, 'in_channels')} channels, to which "
                "no classifier and no real images apply; leave them out"
            )
        return bare, ("the model draws latents: features are not measured, PSNR is of latents",)
    if measures.extractor is None or measures.extractor != Measures.extractor:
        return measures, ()
    try:
        load_extractor(measures.extractor)
    except MissingDependencyError as error:
        if measures.real is not None:
            raise
        return bare, (f"features are not measured: {error}",)
    return measures, ()


def _short_hash(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _kept(path: Path, draw: Callable[[], F32]) -> F32:
    """The images of a file, or drawn and written there; the file's name is the hash of what they depend on."""
    if path.is_file():
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return np.asarray(arrays["images"], np.float32)
        except NPZ_ERRORS:
            path.unlink()  # damaged: drawn again
    images = draw()
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, images=images)
    return images
