"""`dq-sample`: pictures out of a pipeline with an engine in its denoiser's place, and beside them the float model's."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dq_deploy.cli.frame import check_outputs, numbers_from_text, progress, refuse, run, warn, write_json
from dq_deploy.cli.frame.arguments import takes
from dq_deploy.cli.frame.reused_rows import warn_of_reuse
from dq_deploy.cli.text.sample.arguments import SampleArguments
from dq_deploy.cli.text.sample.summary import Samples, show_samples

if TYPE_CHECKING:
    from torch import nn

    from dq_deploy.models.load.pipeline_folder import DenoiserPlace
    from dq_deploy.models.pipeline import PipelineCall
    from dq_deploy.numerics.arrays import F32
    from dq_deploy.pipelines.draw import Drawn
    from dq_deploy.pipelines.quantized import Quantized
    from dq_deploy.pipelines.watch import SamplingStopped

DEFAULT_COUNT = 8
DEFAULT_BATCH = 10
LONGEST_CAPTION = 24

Rows = list[tuple[str, "F32"]]

MOST_IMAGES = 100_000
"""All lie in memory, and in one picture of them all."""


@takes(SampleArguments)
def sample(given: SampleArguments) -> None:
    """Draw pictures with an engine in the denoiser's place."""
    _check_options(given)
    pictures = (given.image, given.mask, given.control_image, given.call)
    check_outputs(given.out, given.json, inputs=(given.ckpt, given.engine, given.conditions, given.model, *pictures))
    labels = None if given.labels is None else numbers_from_text(given.labels, "--labels", low=0)
    _set_threads(given.threads)
    asked = _asked(given, labels)
    from dq_deploy.models.pipeline import denoiser_name
    from dq_deploy.models.pipeline.open import sized_as_called
    from dq_deploy.pipelines.quantized import open_quantized, pipeline_around

    with ExitStack() as stack:
        quantized = open_quantized(
            given.ckpt,
            given.engine,
            stack,
            threads=given.threads,
            device=given.device,
            attention=given.attention,
            hash_check=given.hash_check,
        )
        place = _pipeline_place(given, asked, quantized)
        folder, component = (None, None) if place is None else (place.pipeline, place.component)
        asked, embeddings = _completed(given, asked, quantized, alone=folder is None)
        pipeline = pipeline_around(quantized, folder, asked, component=component)
        if folder is None:
            asked = sized_as_called(asked, getattr(pipeline, denoiser_name(pipeline)).config, quantized.call)
        _check_picture(given.out, quantized, alone=folder is None)
        module = _float_module(given, component, quantized, alone=folder is None) if given.compare else None
        samples, rows = _sampled(given, _Driver(pipeline=pipeline, component=component, asked=asked), quantized, module)
    _write(given, replace(samples, conditions=embeddings), rows)
    show_samples(samples, given.out)


def _check_options(given: SampleArguments) -> None:
    """Refuse what is out of range, and what the other options leave without a use."""
    out = given.out
    refuse(
        out.suffix.lower() not in ("", ".png") and out.suffix != ".safetensors",  # a pipe or a device has none
        f"--out is {out}, expected a name that ends in .png, or in .safetensors for the numbers",
    )
    refuse(given.count is not None and given.count < 1, f"--count is {given.count}, expected at least 1")
    refuse(
        given.count is not None and given.count > MOST_IMAGES,
        f"--count is {given.count}, expected at most {MOST_IMAGES}, which memory holds; run it in parts, each with a "
        "--seed of its own",
    )
    refuse(given.batch is not None and given.batch < 1, f"--batch is {given.batch}, expected at least 1")
    refuse(
        given.device is not None and given.engine is None,
        f"--device {given.device} was given without --engine, which alone has it; leave it out",
    )
    refuse(
        given.attention is not None and given.engine is None,
        f"--attention {given.attention} was given without --engine, which alone has it; leave it out",
    )
    refuse(
        given.conditions is not None and bool(given.prompt),
        "--conditions and --prompt were given, expected one: embeddings go to a denoiser alone, prompts to a pipeline",
    )


def _set_threads(threads: int | None) -> None:
    from dq_deploy.processes.threads import check_threads

    check_threads(threads)
    if threads is None:
        return
    import torch

    torch.set_num_threads(threads)


def _asked(given: SampleArguments, labels: Sequence[int] | None) -> PipelineCall:
    """What the options and the file of the call ask for."""
    from dq_deploy.models.pipeline.call_file import read_call

    return read_call(
        given.call,
        prompts=tuple(given.prompt or ()),
        negative_prompt=given.negative_prompt,
        guidance=given.guidance,
        steps=given.steps,
        scheduler=given.scheduler,
        image=given.image,
        mask=given.mask,
        strength=given.strength,
        control_image=given.control_image,
        height=given.height,
        width=given.width,
        eta=given.eta,
        labels=None if labels is None else tuple(labels),
        seed=given.seed,
        count=given.count,
    )


def _pipeline_place(given: SampleArguments, asked: PipelineCall, quantized: Quantized) -> DenoiserPlace | None:
    """The pipeline that draws, or None where the denoiser alone does: then its steps are all there is."""
    from dq_deploy.errors import OptionError
    from dq_deploy.models.family import class_of_family
    from dq_deploy.models.load.hub_files import snapshot_of
    from dq_deploy.models.load.pipeline_folder import INDEX, find_denoiser, is_pipeline

    options = ("prompts", "negative_prompt", "guidance", "image", "mask", "strength", "control_image")
    needs = [name for name in options if getattr(asked, name) not in (None, ())]
    named = given.model
    if named is None and (needs or asked.extra):
        source = quantized.provenance.get("config") or quantized.provenance.get("source")
        if source is None or not (snapshot_of(Path(source)) / INDEX).is_file():
            raise OptionError("the pipeline that draws is not known, expected its folder; give `model` DIR")
        named = Path(source)
    if named is None or given.conditions is not None:
        alone = not given.compare  # which reads the float model there
        refuse(
            bool(given.model and alone),
            f"--model {given.model} was given with --conditions, which go to "
            "the denoiser alone, and without --compare; leave one out",
        )
        refuse(
            bool(given.component and alone),
            f"--component {given.component} was given, but no pipeline draws; leave it out",
        )
        return None
    recorded = quantized.provenance.get("component") if is_pipeline(named) else None
    family = quantized.manifest.family
    place = find_denoiser(named, given.component or recorded, None if family is None else class_of_family(family))
    if place.pipeline is None or not (place.pipeline / INDEX).is_file():
        refuse(bool(needs), f"{named} is a denoiser alone, expected a pipeline's folder for what is asked of one")
        refuse(not given.compare, f"--model {named} is no pipeline and --compare was not given; leave it out")
        return None
    return place


def _completed(
    given: SampleArguments, asked: PipelineCall, quantized: Quantized, *, alone: bool
) -> tuple[PipelineCall, str | None]:
    """The call with the number of images and steps, and what the embeddings are, in words."""
    from dq_deploy.models.pipeline.call_file import says_count
    from dq_deploy.pipelines.conditions import conditions_for, labels_for

    chosen = 1 if asked.image or asked.control_image or asked.extra else DEFAULT_COUNT
    fixed = asked.prompts or asked.labels
    if given.count is None and (given.call is None or not says_count(given.call)):
        asked = replace(asked, count=len(fixed) if fixed else chosen)
    if fixed and asked.count < len(fixed):
        what = "prompts" if asked.prompts else "labels"
        warn(f"{len(fixed)} {what} were given for --count {asked.count}: those behind are not drawn")
    if asked.steps is None:
        asked = replace(asked, steps=quantized.steps)
    if not alone:
        return asked, None
    labels_for(quantized.call, asked.labels)
    source, rows = conditions_for(quantized.call, given.conditions, count=asked.count, seed=asked.seed)
    words = source.files.get("conditions")
    if rows and words is None:
        warn("no --conditions were given: the embeddings are random and stand for no text")
        words = f"random normal embeddings, seed {asked.seed}"
    elif rows:
        warn_of_reuse(source, asked.count, "images")
    return replace(asked, conditions=rows), words


def _check_picture(out: Path, quantized: Quantized, *, alone: bool) -> None:
    from dq_deploy.errors import OptionError
    from dq_deploy.models.pipeline.call import PICTURE_CHANNELS
    from dq_deploy.record.model_config import channels_of

    channels = channels_of(quantized.manifest.model_config, "in_channels")
    if alone and out.suffix != ".safetensors" and channels not in PICTURE_CHANNELS:
        raise OptionError(
            f"the model gives latents of {channels} channels, which {out.name} cannot show; give the pipeline's folder "
            "as `model` and `prompt`, or --out latents.safetensors"
        )


def _float_module(given: SampleArguments, component: str | None, quantized: Quantized, *, alone: bool) -> nn.Module:
    from dq_deploy.pipelines.quantized import float_denoiser

    denoiser, remark = float_denoiser(quantized, given.model, component or given.component, alone=alone)
    if remark is not None:
        warn(remark)
    return denoiser.module


@dataclass(frozen=True, kw_only=True)
class _Driver:
    """A pipeline, its denoiser's name where it has several, and what is asked of it."""

    pipeline: Any
    component: str | None
    asked: PipelineCall


def _sampled(
    given: SampleArguments, driver: _Driver, quantized: Quantized, module: nn.Module | None
) -> tuple[Samples, Rows]:
    """What the command reports, and the rows of images."""
    from dq_deploy.models.pipeline import denoiser_name, scheduler_name
    from dq_deploy.pipelines.draw import constant_images
    from dq_deploy.quality.image import image_distances

    pipeline, asked = driver.pipeline, driver.asked
    steps = scheduler_name(pipeline, getattr(pipeline, denoiser_name(pipeline, driver.component)))
    drawn, seconds = _draw(given, driver, quantized, None)
    for remark in drawn.remarks:
        warn(remark)
    captions = _captions(asked)
    rows: Rows = [(quantized.name, drawn.images)]
    distances = float_seconds = None
    if module is not None:
        reference, float_seconds = _draw(given, driver, quantized, module)
        rows = [("float", reference.images), *rows, ("difference", (drawn.images - reference.images) / np.float32(2))]
        # latents have no range of their own; pictures lie in [-1, 1]
        span = float(reference.images.max() - reference.images.min()) if drawn.latents else 2.0
        distances = image_distances(drawn.images, reference.images, captions, data_range=span)
    return Samples(
        name=quantized.name,
        latents=drawn.latents,
        asked=asked,
        pipeline=type(pipeline).__name__,
        scheduler=None if steps is None else type(getattr(pipeline, steps)).__name__,
        batch=_batch(given, pipeline),
        conditions=None,
        captions=captions,
        furthest_from_calibrated=_say_distance(quantized, drawn),
        seconds=seconds,
        float_seconds=float_seconds,
        distances=distances,
        constant_images=tuple(constant_images(drawn.images)),
    ), rows


def _batch(given: SampleArguments, pipeline: Any) -> int:
    from dq_deploy.models.pipeline.denoiser_pipeline import DenoiserPipeline

    if given.batch is not None:
        return given.batch
    return DEFAULT_BATCH if isinstance(pipeline, DenoiserPipeline) else 1


def _captions(asked: PipelineCall) -> tuple[str, ...]:
    """Of each image: its label, the beginning of its prompt, or its number."""
    if asked.labels is not None:
        return tuple(str(asked.labels[i % len(asked.labels)]) for i in range(asked.count))
    if len(asked.prompts) > 1:
        prompts = [asked.prompts[i % len(asked.prompts)] for i in range(asked.count)]
        return tuple(p if len(p) <= LONGEST_CAPTION else f"{p[: LONGEST_CAPTION - 3]}..." for p in prompts)
    return tuple(f"#{i}" for i in range(asked.count))


def _draw(
    given: SampleArguments, driver: _Driver, quantized: Quantized, module: nn.Module | None
) -> tuple[Drawn, float]:
    """What is drawn and the seconds, with the float module if there is one, else with the engine or the simulation."""
    from dq_deploy.models.pipeline import denoiser_name
    from dq_deploy.pipelines.draw import draw_images
    from dq_deploy.pipelines.watch import SamplingStopped

    name = quantized.name if module is None else "float model"
    pipeline = driver.pipeline
    if module is not None:
        setattr(pipeline, denoiser_name(pipeline, driver.component), module)
    started = time.perf_counter()
    try:
        with progress(f"sampling, {name}") as advance:
            drawn = draw_images(
                pipeline,
                driver.asked,
                component=driver.component,
                batch=_batch(given, pipeline),
                latents=given.out.suffix == ".safetensors" and hasattr(pipeline, "vae"),
                on_step=advance,
            )
    except SamplingStopped as stop:
        raise type(stop)(f"{name}: {stop}{_first_layer(quantized, stop, module)}", **vars(stop)) from stop
    return drawn, time.perf_counter() - started


def _first_layer(quantized: Quantized, stop: SamplingStopped, float_module: nn.Module | None) -> str:
    """Where the float module, or else the record's simulation, leaves the finite numbers on the same input."""
    from dq_deploy.pipelines.quantized import first_non_finite_of
    from dq_deploy.simulation.fake_quant import simulate

    module = float_module
    if module is None:
        if quantized.record is None:
            return "; give --ckpt to learn which layer is the first"
        module = simulate(quantized.record)
    layer = first_non_finite_of(module, stop.arguments)
    if layer is None and (float_module is not None or quantized.name == "simulation"):
        return "; every layer's output is finite there: check the scheduler's configuration"
    if layer is None:
        return "; the checkpoint's simulation is finite there, so the engine differs from it: run dq-verify"
    return f"; the first layer whose output is not finite is {layer}"


def _say_distance(quantized: Quantized, drawn: Drawn) -> float:
    """Say how far the timesteps that were visited lie from the calibrated ones; returns the furthest."""
    if not drawn.timesteps:
        return 0.0
    distances = quantized.distances(drawn.timesteps)
    worst = int(distances.argmax())
    if distances[worst] > 0:
        warn(
            f"{int((distances > 0).sum())} of {len(distances)} steps were not calibrated and use the nearest "
            f"bucket; the furthest is timestep {drawn.timesteps[worst]:g}, {distances[worst]:g} away from its bucket's"
        )
    return float(distances[worst])


def _write(given: SampleArguments, samples: Samples, rows: Rows) -> None:
    """The picture, the grid or the numbers of the images, and the JSON."""
    from dq_deploy.pipelines.grid import write_grid, write_picture, write_samples

    for index in samples.constant_images:
        label = f" (label {samples.captions[index]})" if samples.asked.labels is not None else ""
        warn(f"image {index}{label} holds one single value")
    if given.out.suffix == ".safetensors":
        write_samples(given.out, dict(rows))
    elif len(rows) == 1 and samples.asked.prompts and samples.asked.count == 1:
        write_picture(given.out, rows[0][1][0])
    else:
        write_grid(given.out, rows, list(samples.captions))
    if given.json is not None:
        write_json(given.json, samples.to_json())


def main() -> None:
    """Entry of the console script."""
    run(sample)


if __name__ == "__main__":
    main()
