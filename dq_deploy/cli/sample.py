"""`dq-sample`: images out of an engine, and beside them the float model's from the same noise."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as short
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from dq_deploy.cli.frame import check_outputs, numbers_from_text, progress, refuse, run, warn, write_json
from dq_deploy.cli.frame.hash_check import HashCheck
from dq_deploy.cli.frame.reused_rows import warn_of_reuse
from dq_deploy.cli.text.sample_summary import Samples, show_samples
from dq_deploy.models import default_call

if TYPE_CHECKING:
    from torch import nn

    from dq_deploy.engines.base import Runner
    from dq_deploy.models import Denoiser
    from dq_deploy.numerics.arrays import F32, I64, Array
    from dq_deploy.record import Record
    from dq_deploy.sampling import SampleOptions, SamplingStopped


@dataclass(frozen=True, kw_only=True)
class _Subject:
    """What is sampled: its configuration, and the engine and record it comes from."""

    family: str | None
    model_config: Mapping[str, Any]
    scheduler_config: Mapping[str, Any] | None
    timesteps: Sequence[float]
    step_edges: Sequence[float]
    record: Record | None
    runner: Runner | None


def sample(
    out: Annotated[Path, typer.Option(help="PNG to write, or .safetensors for the numbers.")],
    ckpt: Annotated[Path | None, typer.Option(help="Quantized model, .pt or .safetensors.")] = None,
    engine: Annotated[
        Path | None,
        typer.Option(help="Exported ONNX file, plan or record to run; without it --ckpt is simulated in torch."),
    ] = None,
    labels: Annotated[str | None, typer.Option(help="Class labels, as 0,1,2 or 0-9; one image each.")] = None,
    count: Annotated[int, typer.Option(help="Images of a model without classes.")] = 8,
    conditions: Annotated[
        Path | None, typer.Option(help="Safetensors file of embeddings, one row a prompt; random without it.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps; default: as many as were calibrated.")] = None,
    scheduler: Annotated[str, typer.Option(help="ddim or ddpm.")] = "ddim",
    eta: Annotated[float, typer.Option(help="DDIM's share of fresh noise, 0 to 1.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of the starting noise and of every step's noise.")] = 0,
    batch: Annotated[int, typer.Option(help="Images at a time.")] = 10,
    compare: Annotated[
        bool, typer.Option("--compare", help="Also draw the float model's images; print PSNR and SSIM.")
    ] = False,
    model: Annotated[
        Path | None, typer.Option(help="Float model for --compare; default: where it was quantized from.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Of the native engine: cpu or cuda; by default a GPU that can run it.")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Threads; default: the engine's choice.")] = None,
    hash_check: HashCheck = True,
    json: Annotated[Path | None, typer.Option(help="Also write the numbers as JSON.")] = None,
) -> None:
    """Draw images with an engine in the denoiser's place."""
    _check_options(out, count=count, compare=compare, model=model, engine=engine, device=device)
    check_outputs(out, json, inputs=(ckpt, engine, conditions, model))
    wanted = None if labels is None else numbers_from_text(labels, "--labels", low=0)
    _set_threads(threads)
    from dq_deploy.sampling import SampleOptions, labels_for

    with ExitStack() as stack:
        subject = _open_subject(ckpt, engine, stack, threads=threads, device=device, hash_check=hash_check)
        options = SampleOptions(
            steps=len(subject.timesteps) if steps is None else steps,
            scheduler=scheduler,
            eta=eta,
            seed=seed,
            batch=batch,
        )
        _check_picture(out, subject)
        given = labels_for(subject.model_config, wanted)
        number = count if given is None else len(given)
        embeddings, words = _conditions(subject, conditions, number, seed)
        task = _Task(options=options, count=number, labels=given, conditions=embeddings, words=words)
        float_module = _float_module(subject, model, ckpt or engine) if compare else None
        samples, rows = _sampled(subject, task, float_module)
    _write(out, json, samples, rows)
    show_samples(samples, out)


def _check_options(
    out: Path, *, count: int, compare: bool, model: Path | None, engine: Path | None, device: str | None
) -> None:
    """Refuse what is out of range, and what the other options leave without a use."""
    refuse(
        out.suffix.lower() not in ("", ".png") and out.suffix != ".safetensors",  # a pipe or a device has none
        f"--out is {out}, expected a name that ends in .png, or in .safetensors for the numbers",
    )
    refuse(count < 1, f"--count is {count}, expected at least 1")
    refuse(
        model is not None and not compare,
        f"--model {model} was given without --compare, which alone has it; leave it out",
    )
    refuse(
        device is not None and engine is None,
        f"--device {device} was given without --engine, which alone has it; leave it out",
    )


@dataclass(frozen=True, kw_only=True)
class _Task:
    """What is drawn of any denoiser.

    Attributes:
        options: how.
        count: images.
        labels: [count], or None for a model without classes.
        conditions: embeddings by input name.
        words: what the embeddings are, or None where there are none.
    """

    options: SampleOptions
    count: int
    labels: I64 | None
    conditions: dict[str, Array]
    words: str | None

    @property
    def captions(self) -> list[str]:
        """Of each image."""
        return [f"#{i}" if self.labels is None else str(self.labels[i]) for i in range(self.count)]


def _set_threads(threads: int | None) -> None:
    from dq_deploy.errors import OptionError

    if threads is None:
        return
    if threads < 1:
        raise OptionError(f"threads is {threads}, expected at least 1")
    import torch

    torch.set_num_threads(threads)


def _sampled(subject: _Subject, task: _Task, float_module: nn.Module | None) -> tuple[Samples, list[tuple[str, F32]]]:
    """What the command reports, and the rows of images."""
    from dq_deploy.quality.image import image_distances
    from dq_deploy.sampling import constant_images, draws_latents

    distance = _report_distance(subject, task.options)
    images, seconds = _draw(subject, task, None)
    name = "simulation" if subject.runner is None else "engine"
    rows = [(name, images)]
    latents = draws_latents(subject.model_config)
    distances = float_seconds = None
    if float_module is not None:
        reference, float_seconds = _draw(subject, task, float_module)
        rows = [("float", reference), *rows, ("difference", (images - reference) / np.float32(2))]
        # latents have no range of their own; pictures lie in [-1, 1]
        span = float(reference.max() - reference.min()) if latents else 2.0
        distances = image_distances(images, reference, task.captions, data_range=span)
    return Samples(
        name=name,
        latents=latents,
        options=task.options,
        labels=None if task.labels is None else tuple(task.labels.tolist()),
        conditions=task.words,
        captions=tuple(task.captions),
        furthest_from_calibrated=distance,
        seconds=seconds,
        float_seconds=float_seconds,
        distances=distances,
        constant_images=tuple(constant_images(images)),
    ), rows


def _write(out: Path, json: Path | None, samples: Samples, rows: list[tuple[str, F32]]) -> None:
    """The grid, or the numbers of the images, and the JSON."""
    from dq_deploy.sampling.grid import write_grid, write_samples

    for index in samples.constant_images:
        warn(f"image {index} (label {samples.captions[index]}) holds one single value")
    if out.suffix == ".safetensors":
        write_samples(out, dict(rows))
    else:
        write_grid(out, rows, list(samples.captions))
    if json is not None:
        write_json(json, samples.to_json())


def _check_picture(out: Path, subject: _Subject) -> None:
    from dq_deploy.errors import OptionError
    from dq_deploy.record.model_config import channels_of
    from dq_deploy.sampling import draws_latents

    if out.suffix != ".safetensors" and draws_latents(subject.model_config):
        raise OptionError(
            f"the model gives latents of {channels_of(subject.model_config, 'in_channels')} channels, which "
            f"{out.name} cannot show; give --out latents.safetensors and decode them with the pipeline's VAE"
        )


def _conditions(subject: _Subject, path: Path | None, number: int, seed: int) -> tuple[dict[str, Array], str | None]:
    """Embeddings of each image, and what they are, in words."""
    from dq_deploy.calibration import read_source
    from dq_deploy.models import input_specs
    from dq_deploy.sampling import conditions_for

    source = read_source(input_specs(default_call(subject.model_config)), conditions=path)
    found = conditions_for(subject.model_config, source.conditions, count=number, seed=seed)
    if not found:
        return {}, None
    if path is None:
        warn("no --conditions were given: the embeddings are random and stand for no text")
        return found, f"random normal embeddings, seed {seed}"
    warn_of_reuse(source, number, "images")
    return found, source.files["conditions"]


def _open_subject(
    ckpt: Path | None,
    engine: Path | None,
    stack: ExitStack,
    *,
    threads: int | None,
    device: str | None,
    hash_check: bool,
) -> _Subject:
    from dq_deploy.errors import FileProblemError, OptionError
    from dq_deploy.open_engine import RECORD_SUFFIXES, open_engine
    from dq_deploy.record import content_sha256, load_record

    if ckpt is None and engine is None:
        raise OptionError("got neither --ckpt nor --engine, expected at least one of them")
    record = None if ckpt is None else load_record(ckpt, hash_check=hash_check)
    if engine is None:
        assert record is not None
        return _Subject(
            family=record.family,
            model_config=record.model_config,
            scheduler_config=record.scheduler_config,
            timesteps=record.timesteps.tolist(),
            step_edges=record.step_edges.tolist(),
            record=record,
            runner=None,
        )
    if record is None and engine.suffix in RECORD_SUFFIXES:
        record = load_record(engine, hash_check=hash_check)
    runner = stack.enter_context(open_engine(engine, threads=threads, device=device, hash_check=hash_check))
    manifest = runner.manifest
    assert manifest is not None  # open_engine requires it by default
    if record is not None and content_sha256(record) != manifest.record_sha256:
        raise FileProblemError(
            f"engine {engine} was exported from the record {str(manifest.record_sha256)[:12]}, expected "
            f"{content_sha256(record)[:12]} as in {ckpt}; export it again or give its own --ckpt"
        )
    return _Subject(
        family=manifest.family,
        model_config=manifest.model_config,
        scheduler_config=manifest.scheduler_config,
        timesteps=manifest.timesteps,
        step_edges=manifest.step_edges,
        record=record,
        runner=runner,
    )


def _float_module(subject: _Subject, model: Path | None, ckpt: Path | None) -> nn.Module:
    """The float model that was quantized, or the one the user names."""
    from dq_deploy.errors import OptionError
    from dq_deploy.models import load_model

    provenance = {} if subject.record is None else subject.record.provenance
    source = model if model is not None else provenance.get("source")
    if source is None:
        raise OptionError("--compare needs the float model, expected --ckpt with its source, or --model DIR")
    if model is None and not Path(source).exists():
        raise OptionError(f"the float model {source} that {ckpt} names does not exist; give --model DIR")
    denoiser = load_model(source, variant=provenance.get("variant"))
    expected = provenance.get("source_sha256")
    if expected is None:
        _check_same_kind(subject, denoiser)
        advice = "; give --ckpt to have them checked" if subject.record is None else ": the record has no hash of them"
        warn(f"the weights of the float model {source} could not be compared with those that were quantized{advice}")
    elif denoiser.source_sha256 != expected:
        advice = "give the folder of that one" if model is not None else "give the folder of that one with --model"
        raise OptionError(
            f"the float model {source} has the hash {denoiser.source_sha256[:12]}, expected {expected[:12]}, "
            f"the one that was quantized; {advice}"
        )
    return denoiser.module


def _check_same_kind(subject: _Subject, denoiser: Denoiser) -> None:
    """Refuse a float model of another class or configuration than was quantized, where both name a value."""
    from dq_deploy.errors import OptionError

    advice = "give the model that was quantized with --model"
    mine, theirs = denoiser.config, subject.model_config
    given, wanted = (str(config.get("_class_name", "model of no named class")) for config in (mine, theirs))
    if subject.family not in (None, denoiser.family) or ("_class_name" in theirs and given != wanted):
        raise OptionError(f"the float model {denoiser.source} is a {given}, expected the {wanted} quantized; {advice}")
    for key in sorted(mine.keys() & theirs.keys()):  # a value left out is the default, which a newer file may spell out
        if not key.startswith("_") and mine[key] != theirs[key]:  # the folder's name and diffusers' version may differ
            raise OptionError(
                f"the float model {denoiser.source} has {key} {short(mine[key])}, expected {short(theirs[key])} as "
                f"what was quantized; {advice}"
            )


def _report_distance(subject: _Subject, options: SampleOptions) -> float:
    """Say how far the sampler's timesteps lie from the calibrated ones; returns the furthest."""
    import numpy as np

    from dq_deploy.sampling import bucket_distances, sampler_timesteps

    asked = sampler_timesteps(subject.scheduler_config, options)
    calibrated = np.asarray(subject.timesteps, np.float32)
    distances = bucket_distances(asked, calibrated, np.asarray(subject.step_edges, np.float32))
    worst = int(distances.argmax())
    if distances[worst] > 0:
        warn(
            f"{int((distances > 0).sum())} of {len(asked)} steps were not calibrated and use the nearest "
            f"bucket; the furthest is timestep {asked[worst]:g}, {distances[worst]:g} away from its bucket's"
        )
    return float(distances[worst])


def _draw(subject: _Subject, task: _Task, float_module: nn.Module | None) -> tuple[F32, float]:
    """Images and seconds, of the float module if there is one, else of the engine or the simulation."""
    from dq_deploy.sampling import (
        SamplingStopped,
        denoiser_of_module,
        denoiser_of_runner,
        sample_images,
    )

    if float_module is not None:
        name, denoise = "float model", denoiser_of_module(float_module)
    elif subject.runner is not None:
        name, denoise = "engine", denoiser_of_runner(subject.runner)
    else:
        from dq_deploy.simulation.fake_quant import simulate

        assert subject.record is not None
        name, denoise = "simulation", denoiser_of_module(simulate(subject.record))
    started = time.perf_counter()
    try:
        with progress(f"sampling, {name}") as advance:
            images = sample_images(
                denoise,
                model_config=subject.model_config,
                scheduler_config=subject.scheduler_config,
                count=task.count,
                labels=task.labels,
                options=task.options,
                conditions=task.conditions,
                on_step=advance,
            )
    except SamplingStopped as stop:
        raise type(stop)(f"{name}: {stop}{_first_layer(subject, stop, float_module)}", **vars(stop)) from stop
    return images, time.perf_counter() - started


def _first_layer(subject: _Subject, stop: SamplingStopped, float_module: nn.Module | None) -> str:
    """Where the float module, or else the record's simulation, leaves the finite numbers on the same input."""
    from dq_deploy.sampling import first_non_finite_layer
    from dq_deploy.simulation.fake_quant import simulate

    module = float_module
    if module is None:
        if subject.record is None:
            return "; give --ckpt to learn which layer is the first"
        module = simulate(subject.record)
    layer = first_non_finite_layer(module, stop.sample, stop.timestep, stop.conditions)
    if layer is None and (float_module is not None or subject.runner is None):
        return "; every layer's output is finite there: check the scheduler's configuration"
    if layer is None:
        return "; the checkpoint's simulation is finite there, so the engine differs from it: run dq-verify"
    return f"; the first layer whose output is not finite is {layer}"


def main() -> None:
    """Entry of the console script."""
    run(sample)


if __name__ == "__main__":
    main()
